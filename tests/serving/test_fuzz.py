"""Malformed requests over both protocols: each gets the status that the protocol gives it, and the server goes on.

The tables in fuzz_*.toml are always sent; malformed_rest.py and malformed_rpc.py draw the others, with their statuses.
"""

import contextlib
import re
import socket
import time
import tomllib
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings

from serving import protocol
from serving.channels import _options
from serving.client import Client
from serving.connections import Connections, Request
from serving.exchange import Deadline
from tests.serving import malformed_rest, malformed_rpc
from tests.serving.conftest import Server

FOLDER = Path(__file__).parent
SECONDS = 30.0  # within which every answer has to come
MAX_GROWTH = 50 * 2**20
SERVICES = {"GetModelStatus": "ModelService", "HandleReloadConfigRequest": "ModelService"}


def table(file: str, kind: str) -> list:
    rows = tomllib.loads((FOLDER / file).read_text())[kind]
    return [pytest.param(row, id=row["name"].replace(" ", "_")) for row in rows]


def spelled(text: str | list) -> bytes:
    """What a text of the tables stands for."""
    pieces = [(text, 1)] if isinstance(text, str) else text
    return b"".join(_unescaped(piece.encode()) * times for piece, times in pieces)


def _unescaped(text: bytes) -> bytes:
    known = {b"r": b"\r", b"n": b"\n", b"\\": b"\\"}
    return re.sub(rb"\\(x..|r|n|\\)", lambda m: known.get(m[1]) or bytes.fromhex(m[1][1:].decode()), text)


def allowed(row: dict) -> set:
    return set(row["status"]) if isinstance(row["status"], list) else {row["status"]}


def resident(server: Server) -> int:
    """Bytes of memory that the server holds now."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def http(server):
    connections = Connections(server.rest, 5)
    yield connections
    connections.close()


@pytest.fixture(scope="module")
def rpc(server):
    """rpc(method, bytes): the name of the status code."""
    with grpc.insecure_channel(server.rpc, _options(5)) as channel:

        def call(method: str, message: bytes) -> str:
            service = SERVICES.get(method, "PredictionService")
            try:
                channel.unary_unary(f"/tensorflow.serving.{service}/{method}")(message, timeout=SECONDS)
            except grpc.RpcError as error:
                return error.code().name
            return "OK"

        yield call


@pytest.fixture(autouse=True)
def the_next_good_request_is_right(server):
    yield
    assert server.process.poll() is None, server.log.read_text()[-2000:]
    for protocol_name, address in (("rest", server.rest), ("grpc", server.rpc)):
        with Client(address, protocol_name, timeout=SECONDS) as client:
            outputs = client.predict("pair", {"a": np.float32([1, 2.5]), "b": np.int32([2, 3])})
            assert {name: a.tolist() for name, a in outputs.items()} == {"total": [30.0, 55.0], "b": [2, 3]}


@pytest.fixture(scope="module", autouse=True)
def memory_does_not_grow(server):
    rows = ", ".join(["1"] * 1_000_000)  # what the first large request needs is not growth
    assert server.predict("pair", f'{{"signature_name": "half", "instances": [{rows}]}}').status_code == 200
    time.sleep(2)  # and is given back a second later
    before = resident(server)
    yield
    deadline = time.monotonic() + SECONDS  # what large requests took is given back a second later
    while (growth := resident(server) - before) >= MAX_GROWTH:
        assert time.monotonic() < deadline, f"{growth / 2**20:.0f} MB more than before"
        time.sleep(0.1)


def post(http: Connections, model: str, body: bytes, headers: dict[str, str] | None = None) -> int:
    request = Request("POST", f"/v1/models/{model}:predict", body, tuple((headers or {}).items()))
    return http.send(request, Deadline(SECONDS, "the server")).status


@pytest.mark.parametrize("row", table("fuzz_corpus.toml", "json"))
def test_json_of_the_corpus(http, row):
    model = spelled(row.get("model", "pair")).decode()
    assert post(http, model, spelled(row["body"]), row.get("headers")) in allowed(row)


@pytest.mark.parametrize("row", table("fuzz_corpus.toml", "path"))
def test_paths_and_methods_of_the_corpus(http, row):
    body = spelled(row.get("body", ""))
    headers = (("content-length", str(len(body))),) if body and row["method"] != "POST" else ()
    request = Request(row["method"], spelled(row["path"]).decode(), body, headers)
    assert http.send(request, Deadline(SECONDS, "the server")).status in allowed(row)


@pytest.mark.parametrize("row", table("fuzz_messages.toml", "message"))
def test_messages_of_the_corpus(rpc, row):
    name = {"Classify": "ClassificationRequest", "Regress": "RegressionRequest"}.get(row["method"])
    name = name or row["method"].removeprefix("Handle").removesuffix("Request") + "Request"
    message = text_format.Parse(spelled(row["text"]), getattr(protocol, name)())
    assert rpc(row["method"], message.SerializeToString()) in allowed(row)


def converse(address: str, sent: bytes, hold: bool, enough: int) -> list[int]:
    """The statuses of the answers until the server ends the line, or there are `enough` of them."""
    host, _, port = address.partition(":")
    received = b""
    with socket.create_connection((host, int(port)), SECONDS) as line:
        try:
            line.sendall(sent)
            if not hold and not enough:
                line.shutdown(socket.SHUT_WR)
            while not (enough and received.count(b"HTTP/1.1 ") >= enough and not hold):
                data = line.recv(2**16)
                if not data:
                    break
                received += data
        except (ConnectionResetError, BrokenPipeError):
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


@pytest.mark.parametrize("row", table("fuzz_wire.toml", "rest"))
def test_bytes_on_the_rest_port(server, row):
    answers = converse(server.rest, spelled(row["send"]), row.get("hold", False), len(row["answers"]))
    assert len(answers) >= len(row["answers"])
    for status, choice in zip(answers, row["answers"], strict=False):
        assert status in (choice if isinstance(choice, list) else [choice])
    assert not set(answers) & set(range(500, 600))


@pytest.mark.parametrize("row", table("fuzz_wire.toml", "grpc"))
def test_bytes_on_the_grpc_port(server, row):
    host, _, port = server.rpc.partition(":")
    with socket.create_connection((host, int(port)), SECONDS) as line:
        line.settimeout(1)
        with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):  # others are to be answered
            line.sendall(spelled(row["send"]))
            while line.recv(2**16):
                pass


def test_200_connections_that_never_finish_a_request_keep_nobody_waiting(server, http):
    host, _, port = server.rest.partition(":")
    lines = [socket.create_connection((host, int(port)), SECONDS) for _ in range(200)]
    try:
        for line in lines:
            line.sendall(b"POST /v1/models/pair:predict HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{")
        for _ in range(3):
            assert post(http, "pair", b'{"signature_name": "half", "inputs": 1}') == 200
            for line in lines:
                line.sendall(b" ")
    finally:
        for line in lines:
            line.close()


def drawn(count: int) -> Any:
    """Settings of `count` requests: the same ones at each short run, others at each long one."""
    return settings(
        max_examples=count,
        derandomize=count < 1000,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def check_rest(http: Connections, request: tuple[str, str, bytes]) -> None:
    model, where, body = request
    assert post(http, model + where, body) in malformed_rest.expected(model, where, body)


def check_rpc(rpc, request: Any) -> None:
    assert rpc("Predict", request.SerializeToString()) in malformed_rpc.expected_of_predict(request)


def check_garbage(rpc, message: bytes) -> None:
    try:
        expected = malformed_rpc.expected_of_predict(protocol.PredictRequest.FromString(message))
    except DecodeError:
        expected = {"INVALID_ARGUMENT"}
    assert rpc("Predict", message) in expected


SHARES = [(check_rest, "http", malformed_rest.requests(), 0.6),
          (check_rpc, "rpc", malformed_rpc.predict_requests(), 0.3),
          (check_garbage, "rpc", malformed_rpc.garbage(), 0.1)]  # fmt: skip


def run(request: pytest.FixtureRequest, share: tuple, count: int) -> None:
    check, fixture, strategy, part = share
    over = request.getfixturevalue(fixture)

    @drawn(round(count * part))
    @given(strategy)
    def each(drawn_request):
        check(over, drawn_request)

    each()


@pytest.mark.parametrize("share", SHARES, ids=["rest", "grpc", "grpc_garbage"])
def test_drawn_requests_get_the_status_that_the_protocol_gives(request, share):
    run(request, share, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("share", SHARES, ids=["rest", "grpc", "grpc_garbage"])
def test_20000_drawn_requests_get_the_status_that_the_protocol_gives(request, share):
    run(request, share, 20_000)
