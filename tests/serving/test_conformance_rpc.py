"""Predict on messages where TF Serving surprises: defaults, types beyond numpy's, ranks, flags. Without a process."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2

from serving.server import predict
from serving.server.errors import RequestError
from serving.server.servable import Servable


@pytest.fixture(scope="module")
def servable(tmp_path_factory):
    """The default signature adds `b`, which has a default; `kinds` gives back rare types; `twice` has two outputs."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "a"), tf.TensorSpec([None], tf.float32, "b")])
    def add(a, b):
        return {"sum": a + b}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], dtype, name)
            for name, dtype in [("brain", tf.bfloat16), ("half", tf.float16), ("c64", tf.complex64), ("u16", tf.uint16)]
        ]
    )
    def kinds(brain, half, c64, u16):
        return {"brain": tf.identity(brain), "half": half * 1, "c64": tf.identity(c64), "u16": tf.identity(u16)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def twice(x):
        return {"y": x * 2, "z": x * 3}

    folder = str(tmp_path_factory.mktemp("conformance"))
    tf.saved_model.save(tf.Module(), folder, {"serving_default": add, "kinds": kinds, "twice": twice})
    loaded = Servable(folder)
    loaded.signatures["serving_default"].defaults["b"].CopyFrom(tf.make_tensor_proto([10.0]))
    yield loaded
    loaded.close()


def request(text: str = "", signature: str = "", **inputs) -> predict_pb2.PredictRequest:
    message = text_format.Parse(text, predict_pb2.PredictRequest())
    message.model_spec.signature_name = signature
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return message


def answer(servable, message, **flags) -> dict[str, tensor_pb2.TensorProto]:
    call = predict.read(servable, message, **flags)
    return dict(call.write(servable.run(call.feeds, call.fetches)).outputs)


def refusal(servable, message, **flags) -> tuple[str, str]:
    with pytest.raises(RequestError) as raised:
        answer(servable, message, **flags)
    return raised.value.code.name, raised.value.message


def test_an_input_that_is_not_sent_has_the_default_of_its_signature(servable):
    assert list(answer(servable, request(a=[1.0, 2.0]))["sum"].float_val) == [11.0, 12.0]
    assert list(answer(servable, request(a=[1.0], b=[2.0]))["sum"].float_val) == [3.0]


A = np.float32([1])
REFUSALS = [
    ("no_default_either", request(b=A), "INVALID_ARGUMENT",
     "Signature input alias: a(feed name: serving_default_a:0) not found in request and no default value provided. "
     "Inputs expected to be in the request {b}, or default input alias set: b"),
    ("nothing_sent", request(), "INVALID_ARGUMENT",
     "Signature input alias: a(feed name: serving_default_a:0) not found in request and no default value provided. "
     "Inputs expected to be in the request {}, or default input alias set: b"),
    ("a_wrong_name_instead_of_a_default", request(a=A, c=A), "INVALID_ARGUMENT",
     "Inputs contains invalid name. Used request inputs: a, request input: a,c"),
    ("more_than_there_are", request(a=A, b=A, c=A), "INVALID_ARGUMENT",
     "input size does not match signature: 3!=2 len({a,b,c}) != len({a,b}). Sent extra: {c}. "
     "Missing but required: {}."),
    ("fewer_without_defaults", request(signature="kinds", u16=A, more=A), "INVALID_ARGUMENT",
     "input size does not match signature: 2!=4 len({more,u16}) != len({brain,c64,half,u16}). Sent extra: {more}. "
     "Missing but required: {brain,c64,half}."),
    ("inputs_before_the_output_filter", request('output_filter: "no"', "twice", y=A), "INVALID_ARGUMENT",
     "Signature input alias: x(feed name: twice_x:0) not found in request and no default value provided. "
     "Inputs expected to be in the request {y}, or default input alias set: "),
    ("the_signature_before_the_inputs", request(signature="no", y=A), "FAILED_PRECONDITION",
     'Serving signature key "no" not found.'),
    ("an_unknown_output", request('output_filter: "y" output_filter: "no"', "twice", x=A), "INVALID_ARGUMENT",
     "output tensor alias not found in signature: no Outputs expected to be in the set {y,z}."),
    ("another_type", request(signature="twice", x=[1]), "INVALID_ARGUMENT",
     "Expects arg[0] to be float but int32 is provided"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "code", "text"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_predict_refuses(servable, message, code, text):
    assert refusal(servable, message) == (code, text)


TENSORS = [
    ("a_type_of_0", "float_val: 1"),
    ("an_unknown_type", "dtype: 99"),
    ("a_resource", "dtype: DT_RESOURCE"),
    ("a_negative_dimension", "dtype: DT_FLOAT tensor_shape { dim { size: -1 } }"),
    ("255_dimensions", "dtype: DT_FLOAT tensor_shape { " + "dim { size: 1 } " * 255 + "}"),
    ("content_too_short", 'dtype: DT_FLOAT tensor_content: "abc"'),
    ("content_too_long", 'dtype: DT_FLOAT tensor_content: "abcdabcd"'),
]


@pytest.mark.parametrize("text", [t for _, t in TENSORS], ids=[name for name, _ in TENSORS])
def test_a_tensor_that_tensorflow_cannot_read_is_refused_by_its_alias(servable, text):
    message = request(f'inputs {{ key: "x" value {{ {text} }} }}', "twice")
    assert refusal(servable, message) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_a_default_is_read_like_an_input(servable):
    signature = servable.signatures["serving_default"]
    kept = signature.defaults["b"].SerializeToString()
    signature.defaults["b"].tensor_content = b"abc"
    try:
        assert refusal(servable, request(a=A)) == ("INVALID_ARGUMENT", "tensor parsing error: b")
    finally:
        signature.defaults["b"].ParseFromString(kept)


def test_answers_of_every_type_stand_in_their_typed_field(servable):
    values = {
        "brain": tf.constant([1.5], tf.bfloat16),
        "half": np.float16([1.5, -2]),
        "c64": np.complex64([1 + 2j]),
        "u16": np.uint16([65535]),
    }
    outputs = answer(servable, request(signature="kinds", **{k: tf.constant(v).numpy() for k, v in values.items()}))
    assert list(outputs["brain"].half_val) == [0x3FC0]
    assert list(outputs["half"].half_val) == [0x3E00, 0xC000]
    assert list(outputs["c64"].scomplex_val) == [1.0, 2.0]
    assert list(outputs["u16"].int_val) == [65535]
    assert {proto.tensor_content for proto in outputs.values()} == {b""}


def test_answers_stand_in_tensor_content_when_a_flag_asks_for_it(servable):
    outputs = answer(servable, request(signature="twice", x=np.float32([1, 2])), packed=True)
    assert outputs["y"].tensor_content == np.float32([2, 4]).tobytes()
    assert list(outputs["y"].float_val) == []


def test_the_rank_of_an_input_need_not_be_the_signatures(servable):
    outputs = answer(servable, request(signature="twice", x=np.ones([1, 2, 1], np.float32)))
    assert tf.make_ndarray(outputs["y"]).tolist() == [[[2.0], [2.0]]]
    assert answer(servable, request(signature="twice", x=np.float32(3)))["y"].float_val == [6.0]


def test_only_filtered_outputs_are_fetched(servable):
    call = predict.read(servable, request('output_filter: "z"', "twice", x=A))
    assert len(call.fetches) == 1
    assert list(call.write(servable.run(call.feeds, call.fetches)).outputs) == ["z"]


def test_method_names_are_checked_when_a_flag_asks_for_it_and_only_then(servable):
    odd = servable.signatures["odd"] = type(servable.signatures["twice"])()
    odd.CopyFrom(servable.signatures["twice"])
    odd.method_name = "something/else"
    assert list(answer(servable, request(signature="odd", x=A))["y"].float_val) == [2.0]
    assert list(answer(servable, request(signature="twice", x=A), checks=True)["y"].float_val) == [2.0]
    assert refusal(servable, request(signature="odd", x=A), checks=True) == (
        "INTERNAL",
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: something/else",
    )
