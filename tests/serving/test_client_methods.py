"""Classify, regress, multi-inference, reload, labels and filters as a server of either protocol gets them."""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf import text_format

from serving import protocol
from serving.client import Class, Client, InvalidRequest, Overloaded, Retries, ServingError, Unavailable, Unsupported
from serving.connections import Reply

EXAMPLES = [{"age": 31, "name": "Ann", "sizes": [1.0, 2.5]}, {"age": np.int64(4), "raw": [b"\xff"], "on": True}]


class Rest:
    """Answers by path, and keeps what it was asked."""

    def __init__(self, **answers):
        self.answers = {name.replace("_", ":"): answer for name, answer in answers.items()}
        self.asked: list = []

    def send(self, request, deadline):
        self.asked.append((request.path, json.loads(request.body or "null")))
        answer = next(a for name, a in self.answers.items() if request.path.endswith(name))
        return Reply(200, {}, json.dumps(answer).encode())


def rest(**answers) -> tuple[Rest, Client]:
    transport = Rest(**answers)
    return transport, Client("host:1", transport=transport)


class Rpc(grpc.GenericRpcHandler):
    """Answers a request message with the text of the other message, and keeps what it was asked."""

    def __init__(self):
        self.answers: dict[str, str] = {}
        self.asked: list = []

    def service(self, details):
        name = details.method.rpartition("/")[2].removeprefix("Handle").removesuffix("Request")
        request = getattr(protocol, {"Classify": "Classification", "Regress": "Regression"}.get(name, name) + "Request")
        response = getattr(protocol, request.DESCRIPTOR.name.removesuffix("Request") + "Response")

        def answer(message, context):
            self.asked.append(message)
            text = self.answers[name]
            if isinstance(text, grpc.StatusCode):
                context.set_trailing_metadata([("retry-after", "2")])
                context.abort(text, "no")
            return text_format.Parse(text, response())

        return grpc.unary_unary_rpc_method_handler(answer, request.FromString, response.SerializeToString)


@pytest.fixture(scope="module")
def rpc_server():
    handler = Rpc()
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    handler.address = f"127.0.0.1:{port}"
    yield handler
    server.stop(None)


@pytest.fixture
def rpc(rpc_server):
    rpc_server.asked.clear()
    rpc_server.answers.clear()
    with Client(rpc_server.address, "grpc", retries=Retries(1)) as client:
        yield rpc_server, client


CLASSES = [[Class("cat", 0.75), Class("dog", 0.25)], [Class("", 1.0)]]
CLASSES_TEXT = """
    classifications { classes { label: "cat" score: 0.75 } classes { label: "dog" score: 0.25 } }
    classifications { classes { score: 1 } }"""


def test_rest_examples_keep_the_kind_of_each_feature():
    server, client = rest(_classify={"results": [[["cat", 0.75], ["dog", 0.25]], [["", 1.0]]]})
    assert client.classify("m", EXAMPLES, "s", label="canary", context={"place": "here"}) == CLASSES
    (path, body), = server.asked  # fmt: skip
    assert path == "/v1/models/m/labels/canary:classify"
    assert body == {
        "signature_name": "s",
        "examples": [{"age": [31], "name": ["Ann"], "sizes": [1.0, 2.5]},
                     {"age": [4], "raw": [{"b64": "/w=="}], "on": [1]}],
        "context": {"place": ["here"]},
    }  # fmt: skip
    assert isinstance(body["examples"][0]["sizes"][0], float)


def test_rpc_examples_keep_the_kind_of_each_feature(rpc):
    server, client = rpc
    server.answers["Classify"] = f"result {{ {CLASSES_TEXT} }}"
    assert client.classify("m", EXAMPLES, "s", label="canary", context={"place": "here"}) == CLASSES
    (request,) = server.asked
    assert (request.model_spec.version_label, request.model_spec.signature_name) == ("canary", "s")
    examples = request.input.example_list_with_context
    assert examples.context.features.feature["place"].bytes_list.value == [b"here"]
    first, second = (example.features.feature for example in examples.examples)
    assert first["age"].int64_list.value == [31]
    assert first["sizes"].float_list.value == [1.0, 2.5]
    assert first["name"].bytes_list.value == [b"Ann"]
    assert (second["raw"].bytes_list.value, second["on"].int64_list.value) == ([b"\xff"], [1])


def test_regress_answers_one_number_an_example_over_both(rpc):
    server, grpc_client = rpc
    server.answers["Regress"] = "result { regressions { value: 1.5 } regressions { value: 2 } }"
    _, rest_client = rest(_regress={"results": [1.5, 2.0]})
    for client in (grpc_client, rest_client):
        answer = client.regress("m", [{}, {}])
        assert (answer.dtype, answer.tolist()) == (np.float32, [1.5, 2.0])
    assert server.asked[0].input.WhichOneof("kind") == "example_list"


def test_multi_inference_answers_its_tasks_in_order(rpc):
    server, client = rpc
    server.answers["MultiInference"] = (
        f"results {{ classification_result {{ {CLASSES_TEXT} }} }} "
        "results { regression_result { regressions { value: 3 } } }"
    )
    classes, values = client.multi_inference("m", [{"x": 1.0}], [("classify", "a"), ("regress", "b")], version=5)
    assert (classes, values.tolist()) == (CLASSES, [3.0])
    (request,) = server.asked
    assert [(t.method_name, t.model_spec.signature_name, t.model_spec.version.value) for t in request.tasks] == [
        ("tensorflow/serving/classify", "a", 5),
        ("tensorflow/serving/regress", "b", 5),
    ]


def test_reload_sends_the_configuration(rpc):
    server, client = rpc
    server.answers["ReloadConfig"] = "status {}"
    client.reload('model_config_list { config { name: "m" base_path: "/models/m" model_platform: "tensorflow" } }')
    assert server.asked[0].config.model_config_list.config[0].base_path == "/models/m"
    with pytest.raises(InvalidRequest, match="not a ModelServerConfig"):
        client.reload("model_config_list { nonsense: 1 }")


def test_what_rest_lacks_is_said_before_anything_is_sent():
    server, client = rest()
    with pytest.raises(Unsupported, match="protocol='grpc'"):
        client.multi_inference("m", [{}], [("classify", "s")])
    with pytest.raises(Unsupported, match="gRPC only"):
        client.reload("")
    assert server.asked == []


METADATA = {
    "model_spec": {"version": "3"},
    "metadata": {"signature_def": {"signature_def": {"serving_default": {
        "inputs": {"x": {"dtype": "DT_FLOAT", "tensor_shape": {"unknown_rank": True}}},
        "outputs": {n: {"dtype": "DT_INT64", "tensor_shape": {"unknown_rank": True}} for n in "yz"}}}}},
}  # fmt: skip


def test_output_filter_and_label_work_over_both(rpc):
    server, grpc_client = rpc
    server.answers["GetModelMetadata"] = "model_spec { version { value: 3 } }"
    server.answers["Predict"] = """
        model_spec { version { value: 3 } }
        outputs { key: "z" value { dtype: DT_INT64 int64_val: 9007199254740993 } }"""
    asked, rest_client = rest(predict={"outputs": {"y": 1, "z": 2**53 + 1}}, metadata=METADATA)
    for client in (grpc_client, rest_client):
        outputs = client.predict("m", {"x": np.float32(1)}, label="stable", output_filter=["z"])
        assert {name: a.tolist() for name, a in outputs.items()} == {"z": 2**53 + 1}
    assert server.asked[-1].output_filter == ["z"]
    assert server.asked[-1].model_spec.version_label == "stable"
    assert [path for path, _ in asked.asked] == ["/v1/models/m/labels/stable/metadata",
                                                "/v1/models/m/labels/stable:predict"]  # fmt: skip
    with pytest.raises(InvalidRequest, match="no output q in serving_default: y, z"):
        rest_client.predict("m", {"x": [1]}, label="stable", output_filter=["q"])


def test_the_version_that_answered_is_told_by_rpc(rpc):
    server, client = rpc
    server.answers["Predict"] = "model_spec { version { value: 3 } }"
    assert client.predict("m", {"x": np.float32(1)}).version == 3


@pytest.mark.parametrize("values", [[2**63, 2**64 - 1, 0], []], ids=["above_int64", "empty"])
def test_uint64_outputs_keep_all_digits_in_json(values):
    metadata = json.loads(json.dumps(METADATA).replace("DT_INT64", "DT_UINT64"))
    _, client = rest(predict={"outputs": {"y": values, "z": values}}, metadata=metadata)
    assert client.predict("m", {"x": [1]})["y"].tolist() == values


@pytest.mark.parametrize("feature", [[[1]], None, {"b64": "AA=="}, ["a", 1], 2**63, 2**64, [1j]])
def test_a_feature_that_is_no_flat_list_of_one_kind_is_named(feature):
    _, client = rest()
    with pytest.raises(InvalidRequest, match="feature f is not"):
        client.regress("m", [{"f": feature}])


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.UNIMPLEMENTED, Unsupported),
        (grpc.StatusCode.INTERNAL, ServingError),
    ],
)
def test_a_grpc_code_becomes_its_error(rpc, code, error):
    server, client = rpc
    server.answers["GetModelStatus"] = code
    with pytest.raises(error, match="no") as raised:
        client.status("m")
    assert type(raised.value) is error
    assert getattr(raised.value, "retry_after", 2.0) == 2.0


def test_an_answer_of_an_unknown_type_is_an_error_of_the_tree(rpc):
    server, client = rpc
    server.answers["Predict"] = 'outputs { key: "y" value { dtype: DT_RESOURCE } }'
    with pytest.raises(ServingError, match="output y: "):
        client.predict("m", {"x": np.float32(1)})
