"""One client, both protocols, against the running server; errors and the command line."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving import command as client_command
from serving.client import (
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    Retries,
    ServingError,
    Unavailable,
)
from serving.connections import Reply
from serving.metadata import ModelSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["rest", "grpc"])
def client(request, server):
    with Client(server.rest if request.param == "rest" else server.rpc, request.param) as client:
        yield client


def test_a_list_takes_the_type_of_the_signature(client):
    outputs = client.predict("pair", {"a": [1, 2.5], "b": [2, 3]})
    assert {name: (a.dtype, a.tolist()) for name, a in outputs.items()} == {
        "total": (np.float32, [30.0, 55.0]),
        "b": (np.int32, [2, 3]),
    }


def test_a_sole_output_keeps_its_name(client):
    outputs = client.predict("pair", {"x": np.float32([[1, 2]])}, signature_name="half")
    assert {name: a.tolist() for name, a in outputs.items()} == {"y": [[2.5, 3.0]]}


def test_strings_and_bytes_go_in_and_come_back_as_bytes(client):
    outputs = client.predict("texts", {"text": ["bad", b"\xff\x00", "é"]})
    assert outputs["same"].tolist() == outputs["same_bytes"].tolist() == [b"bad", b"\xff\x00", "é".encode()]
    assert outputs["index"].tolist() == [1, -1, -1]


def test_images_are_sent_as_uint8(client):
    outputs = client.predict("types", {"image": np.full([2, 4, 4, 3], 200, np.uint8)}, "pixels", version=3)
    assert outputs["mean"].tolist() == [200.0, 200.0]
    assert outputs["first"].dtype == np.uint8


def test_an_empty_batch_keeps_type_and_shape(client):
    outputs = client.predict("texts", {"text": []})
    assert (outputs["index"].shape, outputs["index"].dtype) == ((0,), np.int64)
    assert outputs["same"].shape == (0,)


def test_examples_are_classified_and_regressed(client):
    examples = [{"x": 0.5}, {"x": [2.0], "s": "text"}]
    assert client.classify("examples", examples) == [[("low", -0.5), ("high", 0.5)], [("low", -2.0), ("high", 2.0)]]
    assert client.regress("examples", [{}, {"x": 3.0}], "regress", context={"x": 1.0}).tolist() == [2.0, 6.0]
    with pytest.raises(InvalidRequest):
        client.regress("examples", [{"x": 1}], "regress")  # an int64 where the graph wants a float


def test_status_and_metadata_say_the_same_over_both(client):
    (status,) = client.status("types")
    assert (status.version, status.state, status.error_code, status.error_message) == (3, "AVAILABLE", "OK", "")
    metadata = client.metadata("pair")
    assert metadata.version == 2
    a = metadata.signatures["serving_default"].inputs["a"]
    assert (a.dtype, a.shape) == (np.float32, (-1,))
    assert client.metadata("texts").signatures["serving_default"].inputs["text"].dtype == object


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (NotFound, "Servable not found for request: Latest\\(nobody\\)", ("nobody", {"x": [1]})),
        (NotFound, "Specific\\(pair, 9\\)", ("pair", {"x": [1]}, "half", 9)),
        (InvalidRequest, "not found", ("pair", {"x": [1]}, "no_such_signature")),
        (InvalidRequest, "(Missing named input: x|Signature input alias: x)", ("pair", {"z": [1]}, "half")),
        (InvalidRequest, "float", ("pair", {"x": ["one"]}, "half")),
        (InvalidRequest, "int32", ("pair", {"a": [1.0], "b": [1.5]})),
        (InvalidRequest, "input x is not a tensor", ("pair", {"x": [[1], [2, 3]]}, "half")),
        (InvalidRequest, "input b is not a tensor: .*out of bounds", ("pair", {"a": [1.0], "b": [2**40]})),
    ],
    ids=["model", "version", "signature", "field", "text_for_float", "float_for_int", "ragged", "too_big"],
)
def test_a_refusal_is_raised_with_the_servers_words(client, error, words, arguments):
    with pytest.raises(error, match=words):
        client.predict(*arguments)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_server_that_is_not_there_is_unavailable(protocol):
    with Client("127.0.0.1:1", protocol) as client, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        client.status("digits")


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_no_answer_in_time_is_deadline_exceeded(server, protocol):
    address = server.rest if protocol == "rest" else server.rpc
    with Client(address, protocol) as patient, Client(address, protocol, timeout=0.3) as client:
        client._known[ModelSpec("pair")] = patient.metadata("pair")
        with pytest.raises(DeadlineExceeded):
            client.predict("pair", {"steps": np.int32(1_500_000)}, "slow")


def answering(status: int, body: bytes) -> Client:
    """A client whose server always says the same."""

    class Transport:
        def send(self, request, deadline):
            return Reply(status, {}, body)

    return Client("host:1", transport=Transport(), retries=Retries(attempts=1))


@pytest.mark.parametrize(
    ("status", "error"), [(400, InvalidRequest), (429, Overloaded), (503, Unavailable), (504, DeadlineExceeded),
                          (500, ServingError)]
)  # fmt: skip
def test_an_http_status_becomes_its_error(status, error):
    client = answering(status, b'{"error": "so it is"}')
    with pytest.raises(error, match="so it is") as raised:
        client.status("m")
    assert raised.type is error


def test_a_server_of_another_kind_is_named_as_such():
    with pytest.raises(ServingError, match="is this its REST port"):
        answering(200, b"<html>").status("m")


def test_outputs_that_changed_with_a_new_version_are_asked_about_again(server):
    with Client(server.rest) as client:
        client._known[ModelSpec("texts")] = client.metadata("pair")  # as if the model had been this one a moment ago
        assert set(client.predict("texts", {"text": ["good"]})) == {"index", "same", "same_bytes"}


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    status = client_command.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_prints_the_answer_as_json(capsys, server):
    status, out, _ = command(capsys, "texts", "--address", server.rest, "--text", "good", "bad")
    assert (status, json.loads(out)["index"], json.loads(out)["same"]) == (0, [0, 1], ["good", "bad"])
    status, out, _ = command(
        capsys, "pair", "--address", server.rpc, "--protocol=grpc", "--inputs", '{"a": [1], "b": [2]}', "--version", "2"
    )
    assert (status, json.loads(out)) == (0, {"b": [2], "total": [30.0]})


def test_a_refused_command_is_one_line_and_a_status(capsys, server):
    status, out, err = command(capsys, "pair", "--address", server.rest, "--text", "good")
    assert (status, out) == (65, "")
    assert err == "minibatch predict: Missing named input: a in 'inputs' object.\n"
    status, _, err = command(capsys, "pair", "--address", "127.0.0.1:1", "--text", "good")
    assert status == 69
    assert err.count("\n") == 1
    assert "minibatch serve" in err


@pytest.mark.parametrize(
    ("arguments", "inputs", "signature"),
    [
        (["--image", "IMAGE"], {"image_bytes": [b"\xff\xd8"]}, "serving_default"),
        (["--user", "7", "8"], {"user_id": ["7", "8"]}, "recommend"),
        (["--user", "7", "--item", "1", "2"], {"user_id": ["7", "7"], "item_id": ["1", "2"]}, "serving_default"),
    ],
    ids=["image_files_are_sent_as_bytes", "users_get_recommendations", "one_user_rates_each_item"],
)
def test_what_a_command_asks(tmp_path, arguments, inputs, signature):
    image = tmp_path / "a.jpg"
    image.write_bytes(b"\xff\xd8")
    parsed = client_command._parser().parse_args(["m", *(str(image) if a == "IMAGE" else a for a in arguments)])
    assert client_command._inputs(parsed) == (inputs, signature)


def test_a_command_reads_stdin_and_prints_only_the_outputs_asked_for(capsys, monkeypatch, server):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": [1], "b": [2]}'))
    status, out, _ = command(capsys, "pair", "--address", server.rest, "--inputs", "-", "--output", "total")
    assert (status, json.loads(out)) == (0, {"total": [30.0]})


def test_a_command_sends_label_and_token(capsys, tmp_path, monkeypatch):
    asked = []

    class Transport:
        def send(self, request, deadline):
            asked.append((request.path, request.headers))
            return Reply(404, {}, b'{"error": "nothing here"}')

        def close(self):
            pass

    monkeypatch.setattr("serving.connections.connect", lambda *_: Transport())
    token = tmp_path / "token"
    token.write_text("secret\n")
    status, _, err = command(capsys, "m", "--label", "canary", "--token_file", str(token), "--text", "a")
    assert (status, err) == (65, "minibatch predict: nothing here\n")
    assert asked == [("/v1/models/m/labels/canary/metadata", (("authorization", "Bearer secret"),))]


@pytest.mark.parametrize(
    ("arguments", "words", "expected"),
    [
        (["--inputs", "{"], "--inputs is not JSON", 65),
        (["--inputs", "[1]"], "--inputs is an object", 65),
        (["--image", "/no/such.jpg"], "--image /no/such.jpg: No such file", 66),
        (["--text", "a", "--token_file", "/no/such"], "/no/such: No such file", 66),
        (["--text", "a", "--tls_ca", "/no/such.pem"], "/no/such.pem: No such file", 66),
        (["--text", "a", "--tls_ca", __file__], "no certificate", 66),
        (["--text", "a", "--address", "http://host:1/"], "an address is host:port", 65),
        (["--text", "a", "--timeout", "0"], "seconds above 0", 65),
        (["--item", "1", "--text", "a"], "--item goes with --user", 65),
        (["--user", "1", "2", "--item", "1", "2", "3"], "2 users and 3 items", 65),
    ],
)
def test_a_command_that_cannot_be_sent_says_why(capsys, arguments, words, expected):
    status, _, err = command(capsys, "m", *arguments)
    assert status == expected
    assert words in err


def test_the_client_imports_no_tensorflow_and_no_server(server):
    code = f"""
import sys
from serving.client import Client
for protocol, address in [("rest", "{server.rest}"), ("grpc", "{server.rpc}")]:
    print(Client(address, protocol).predict("pair", {{"x": [1.0]}}, "half")["y"].tolist())
print([m for m in sys.modules if m == "tensorflow" or m.startswith(("tensorflow_serving", "serving.server"))])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[2.5]", "[2.5]", "[]"], done.stderr


def test_both_message_pools_live_in_one_process():
    from tensorflow_serving.apis import predict_pb2

    from serving import protocol

    theirs = predict_pb2.PredictRequest()
    theirs.model_spec.name = "m"
    ours = protocol.PredictRequest.FromString(theirs.SerializeToString())
    assert ours.model_spec.name == "m"
    assert type(ours) is not type(theirs)


def test_the_kept_messages_are_those_of_the_installed_api():
    from serving import protocol

    assert protocol._PATH.read_bytes() == protocol._describe_installed().SerializeToString(deterministic=True)
