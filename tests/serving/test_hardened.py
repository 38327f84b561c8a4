"""--profile=hardened on the wire: one server with TLS, a token, signed manifests and an admin port, put to the test."""

import base64
import gzip
import hashlib
import hmac
import json
import shutil
import signal
import ssl
import struct
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.certificates import write_certificate
from tests.serving.conftest import START_SECONDS, Server, free_ports, start_server, stop_server

TOKEN, KEY = "an-open-sesame-of-32-characters!", b"the key of the manifests"
HALF = '{"signature_name": "half", %s}'
METRICS = "/monitoring/prometheus/metrics"


@dataclass
class Hardened:
    """The server, and clients that trust its certificate."""

    server: Server
    admin: str
    certificate: Path
    folder: Path

    def ask(self, method: str, path: str, body=None, *, token: str | None = TOKEN, admin: bool = False, **headers):
        address = self.admin if admin else self.server.rest
        if token:
            headers["authorization"] = f"Bearer {token}"
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        url = f"https://{address}{path}"
        return httpx.request(method, url, content=body, headers=headers, verify=trusted, trust_env=False, timeout=30)

    def predict(self, model: str, body, **options) -> httpx.Response:
        return self.ask("POST", f"/v1/models/{model}:predict", body, **options)

    def counted(self, name: str, **labels: str) -> float:
        text = self.ask("GET", METRICS, admin=True).text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(s.value for s in samples if s.name == f"{name}_total" and labels.items() <= s.labels.items())

    def log(self) -> str:
        return self.server.log.read_text()


def sign(version: Path, key: bytes = KEY) -> None:
    files = {
        str(p.relative_to(version)): {
            "bytes": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in version.rglob("*")
        if p.is_file()
    }
    manifest: dict = {"files": files}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    manifest["manifest_hmac_sha256"] = hmac.digest(key, text, "sha256").hex()
    (version / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def hardened(saved_models, tmp_path_factory):
    """Serves copies of `pair`, `texts` and `types`; `evil` calls Python, `foreign` was signed by somebody else."""
    folder = tmp_path_factory.mktemp("hardened")
    root = folder / "root"
    for version in ("pair/1", "texts/7", "types/00000003"):
        shutil.copytree(saved_models / version, root / version)
        sign(root / version)
    shutil.copytree(root / "pair/1", root / "foreign/1")
    sign(root / "foreign/1", b"another key")
    evil = tf.Module()
    evil.f = tf.function(
        lambda x: tf.numpy_function(lambda v: v, [x], tf.float32), input_signature=[tf.TensorSpec([None], tf.float32)]
    )
    tf.saved_model.save(evil, str(root / "evil/1"), {"serving_default": evil.f})
    sign(root / "evil/1")
    certificate, key = write_certificate(folder)
    (folder / "token").write_text(TOKEN)
    (folder / "manifest.key").write_bytes(KEY)
    (admin,) = free_ports(1)
    server = start_server(
        folder,
        root,
        "--profile=hardened",
        f"--serving_root={root}",
        f"--admin_port={admin}",
        f"--tls_certificate={certificate}",
        f"--tls_key={key}",
        f"--token_file={folder / 'token'}",
        f"--manifest_key_file={folder / 'manifest.key'}",
        "--max_rows=100",
        "--max_image_pixels=1000000",
        "--max_num_load_retries=0",
        "--file_system_poll_wait_seconds=0.1",
    )
    try:
        server.wait_for("Serving .*", START_SECONDS)
        yield Hardened(server, f"127.0.0.1:{admin}", certificate, folder)
    finally:
        stop_server(server)


@pytest.fixture(scope="module")
def channel(hardened):
    credentials = grpc.ssl_channel_credentials(hardened.certificate.read_bytes())
    with grpc.secure_channel(hardened.server.rpc, credentials) as channel:
        yield channel


def refused(method, message, token: str | None = TOKEN) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        method(message, timeout=30, metadata=[("authorization", f"Bearer {token}")] if token else [])
    return caught.value.code().name, caught.value.details()


def half(values) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "pair", "half"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32(values)))
    return request


def png_bomb() -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def test_a_caller_with_the_token_is_answered_over_both_protocols(hardened, channel):
    assert hardened.predict("pair", HALF % '"instances": [1]').json() == {"predictions": [2.5]}
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(half([1]), timeout=30, metadata=[("authorization", f"Bearer {TOKEN}")])
    assert list(response.outputs["y"].float_val) == [2.5]


@pytest.mark.parametrize("token", [None, "wrong", TOKEN + "x", TOKEN[:-1]], ids=["none", "wrong", "longer", "shorter"])
def test_a_caller_without_the_token_is_refused_over_both_protocols(hardened, channel, token):
    message = "The request carries no valid token."
    for method, path in [("POST", "/v1/models/pair:predict"), ("GET", "/v1/models/pair"), ("GET", "/v1/x")]:
        response = hardened.ask(method, path, token=token)
        assert (response.status_code, response.json()) == (401, {"error": message})
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    assert refused(stub.Predict, half([1]), token) == ("UNAUTHENTICATED", message)
    assert refused(models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest(), token)[0] == "UNAUTHENTICATED"


def test_nothing_is_said_without_tls(hardened):
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{hardened.server.rest}/v1/models/pair", trust_env=False)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{hardened.admin}/healthz", trust_env=False)
    with grpc.insecure_channel(hardened.server.rpc) as plain:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(plain)
        assert refused(stub.Predict, half([1]))[0] == "UNAVAILABLE"


def test_health_of_grpc_needs_no_token(channel):
    assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1


MIB = 2**20
REFUSALS = {
    "a_body_over_16_mib": (b" " * (16 * MIB + 1), {}, 413, "The request is larger than 16777216 bytes."),
    "a_chunked_body_over_16_mib": ([b" " * MIB] * 17, {}, 413, "The request is larger than 16777216 bytes."),
    "a_gzip_bomb": (gzip.compress(bytes(40 * MIB)), {"content-encoding": "gzip"}, 413, "The gzip body unpacks to more"),
    "deep_json": (b"[" * 10_000, {}, 400, "The JSON nests deeper than 64."),
    "too_many_rows": ((HALF % f'"instances": [{"1," * 100}1]').encode(), {}, 400, "The request has 101 rows; 100 is"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_request_over_a_limit_is_refused_and_the_next_one_is_answered(hardened, case):
    body, headers, status, message = REFUSALS[case]
    response = hardened.predict("pair", iter(body) if isinstance(body, list) else body, **headers)
    assert (response.status_code, response.json()["error"][: len(message)]) == (status, message)
    assert hardened.predict("pair", HALF % '"instances": [1]').status_code == 200


def test_a_message_over_16_mib_is_refused_and_the_next_one_is_answered(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    assert refused(stub.Predict, half(np.zeros(5 * MIB)))[0] == "RESOURCE_EXHAUSTED"
    assert refused(stub.Predict, half(np.zeros(101))) == (
        "INVALID_ARGUMENT",
        "The request has 101 rows; 100 is the most here.",
    )
    assert stub.Predict(half([1]), timeout=30, metadata=[("authorization", f"Bearer {TOKEN}")]).outputs


def test_an_image_header_bomb_is_refused_before_the_graph(hardened, channel):
    message = "An image of 400000000 pixels by its header; 1000000 is the most here."
    before = hardened.counted(":tensorflow:serving:request_count", status="INVALID_ARGUMENT")
    encoded = base64.b64encode(png_bomb()).decode()
    response = hardened.predict("texts", json.dumps({"instances": ["good", {"b64": encoded}]}))
    assert (response.status_code, response.json()) == (400, {"error": message})
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "texts"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([png_bomb()]))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    assert refused(stub.Predict, request) == ("INVALID_ARGUMENT", message)
    assert hardened.counted(":tensorflow:serving:request_count", status="INVALID_ARGUMENT") == before + 2


def test_what_tensorflow_says_stays_in_the_log_under_the_id_that_the_caller_gets(hardened, channel):
    body = '{"signature_name": "matrix", "inputs": [[1, 2, 3]]}'
    response = hardened.predict("pair", body, **{"x-request-id": "id-17"})
    told = "The model cannot run on this input. Its log says more under request id-17."
    assert (response.status_code, response.json()) == (400, {"error": told})
    request = half([[1, 2, 3]])
    request.model_spec.signature_name = "matrix"
    code, details = refused(prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict, request)
    assert (code, details[: len(told) - 6]) == ("INVALID_ARGUMENT", told[:-6])
    for name in ("id-17", details.split()[-1].rstrip(".")):
        assert f"request {name}: INVALID_ARGUMENT: " in hardened.log()
    assert "Matrix size-incompatible" in hardened.log()


def test_what_the_caller_can_mend_is_told_in_full(hardened):
    response = hardened.predict("pair", '{"inputs": {"a": [1]}}')
    assert response.json() == {"error": "Missing named input: b in 'inputs' object."}
    assert hardened.predict("pair", '{"instances": [1,]}').json() == {
        "error": "JSON Parse error: Invalid value. at offset: 17"
    }


def test_versions_that_reach_outside_or_were_not_signed_here_do_not_serve_and_no_path_is_told(hardened, channel):
    for model, reason in [("evil", "operation PyFunc"), ("foreign", "not signed with the key")]:
        assert hardened.predict(model, HALF % '"instances": [1]').status_code == 404
        (version,) = hardened.ask("GET", f"/v1/models/{model}").json()["model_version_status"]
        assert version["state"] == "END"
        assert version["status"]["error_message"] == "The version did not load; the server's log says why."
        assert reason in hardened.log()
        assert hardened.counted(":minibatch:serving:load_failures", model_name=model) == 1
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        answer = stub.GetModelStatus(request, timeout=30, metadata=[("authorization", f"Bearer {TOKEN}")])
        assert str(hardened.folder) not in str(answer)


def test_pages_are_on_the_admin_port_only(hardened):
    paths = ["/healthz", "/readyz", METRICS, "/v1/models"]
    assert [hardened.ask("GET", path).status_code for path in paths] == [404, 404, 404, 400]
    assert [hardened.ask("GET", path, admin=True).status_code for path in paths] == [200] * 4
    assert [hardened.ask("GET", path, token=None, admin=True).status_code for path in paths] == [200, 200, 401, 401]
    assert hardened.predict("pair", HALF % '"instances": [1]', admin=True).status_code == 404


def test_no_request_can_change_what_is_served(hardened, channel):
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="passwd", base_path="/etc")
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    assert refused(stub.HandleReloadConfigRequest, request)[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    "path", ["/debug", "/debug/pprof", "/docs", "/openapi.json", "/trace", "/metrics", "/config", "/../etc/passwd"]
)
def test_there_are_no_debug_pages(hardened, path):
    for admin in (False, True):
        assert hardened.ask("GET", path, admin=admin).status_code == 404


@pytest.mark.parametrize(
    "method",
    ["/tensorflow.ProfilerService/Profile", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
     "/tensorflow.serving.SessionService/SessionRun"],
)  # fmt: skip
def test_there_are_no_debug_services(channel, method):
    call = channel.unary_unary(method, empty_pb2.Empty.SerializeToString, empty_pb2.Empty.FromString)
    assert refused(call, empty_pb2.Empty())[0] == "UNIMPLEMENTED"


def test_made_up_names_are_one_series(hardened):
    for i in range(30):
        hardened.predict(f"made_up_{i}", "{}")
    text = hardened.ask("GET", METRICS, admin=True).text
    assert "made_up" not in text
    assert hardened.counted(":tensorflow:serving:request_count", model_name="other", status="NOT_FOUND") >= 30


def test_grpc_counts_predictions_and_nothing_else(hardened, channel):
    name, labels = ":tensorflow:serving:request_count", {"model_name": "pair"}
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    before = [hardened.counted(name, status=status, **labels) for status in ("OK", "INVALID_ARGUMENT")]
    stub.Predict(half([1]), timeout=30, metadata=[("authorization", f"Bearer {TOKEN}")])
    refused(stub.Predict, half(np.zeros(101)))
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "pair"
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    models.GetModelStatus(status, timeout=30, metadata=[("authorization", f"Bearer {TOKEN}")])
    after = [hardened.counted(name, status=status, **labels) for status in ("OK", "INVALID_ARGUMENT")]
    assert after == [before[0] + 1, before[1] + 1]


NAMES = [
    "..", "../pair", "..%2Fpair", "%2e%2e", "%2e%2e%2fpair", "..%252f..%252fetc%252fpasswd", "%00", "pair%00",
    "pair%00x", "pair%2f1", "pair%5c1", "..%5c..%5cpair", "%2fetc%2fpasswd", "%2Fproc%2Fself%2Fenviron", "~", "~root",
    ".", "%2e", "C:%5cpair", "file:%2f%2f%2fetc", "http:%2f%2f127.0.0.1", "gs:%2f%2fb", "pair%0a", "pair%0d%0ax: y",
    "%0d%0a", "%20pair", "pair%20", "PAIR", "pa%69r%2e", "%c0%ae%c0%ae%2fpair", "%ff%fe", "\u2025", "pair;ls", "$(id)",
    "`id`", "{{7*7}}", "<script>", "%3Cscript%3E", "' OR 1=1", "a" * 300,
]  # fmt: skip


def test_no_name_of_a_model_version_or_label_reaches_a_file(hardened, channel):
    assert len(NAMES) == 40
    for name in NAMES:
        for url in (f"/v1/models/{name}", f"/v1/models/{name}:predict", f"/v1/models/pair/labels/{name}:predict",
                    f"/v1/models/pair/versions/{name}:predict"):  # fmt: skip
            response = hardened.ask("POST" if url.endswith("predict") else "GET", url, "{}")
            assert response.status_code in (400, 404), (url, response.text)
            assert "root:x:" not in response.text
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    for name in ["../pair", "/etc/passwd", "pair\0", "..\\pair", "~", "\n"]:
        request = half([1])
        request.model_spec.name = name
        assert refused(stub.Predict, request)[0] == "NOT_FOUND"
        request.model_spec.name, request.model_spec.version_label = "pair", name
        assert refused(stub.Predict, request)[0] == "INVALID_ARGUMENT"


def test_no_secret_and_no_body_is_in_the_log_or_on_a_page(hardened, channel):
    planted = "planted-canary-4711"
    hardened.predict("texts", json.dumps({"instances": [planted]}))
    hardened.predict("texts", f'{{"instances": [["{planted}"], "{planted}"]}}')
    hardened.predict("texts", f'{{"inputs": "{planted}", ')
    hardened.predict("pair", HALF % '"instances": [1]', token=planted)
    hardened.predict("pair", HALF % '"instances": [1]', **{"x-api-key": planted, "cookie": planted})
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "texts"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([planted, planted]))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    stub.Predict(request, timeout=30, metadata=[("authorization", f"Bearer {TOKEN}")])
    pages = "".join(hardened.ask("GET", path, admin=True).text for path in (METRICS, "/v1/models"))
    for secret in (planted, TOKEN, KEY.decode()):
        assert secret not in hardened.log()
        assert secret not in pages


def test_a_new_token_takes_the_place_of_the_old_one_within_two_seconds(hardened):
    (hardened.folder / "token").write_text("another-open-sesame")
    deadline = time.monotonic() + 30
    while hardened.predict("pair", HALF % '"instances": [1]', token="another-open-sesame").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert hardened.predict("pair", HALF % '"instances": [1]').status_code == 401
    (hardened.folder / "token").write_text(TOKEN)
    while hardened.predict("pair", HALF % '"instances": [1]').status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_readiness_goes_before_the_last_request_is_answered(hardened):
    """Last here, since it stops the server."""
    answers = []
    slow = '{"signature_name": "slow", "inputs": 300000}'
    asking = threading.Thread(target=lambda: answers.append(hardened.predict("pair", slow).status_code))
    asking.start()
    time.sleep(0.3)
    assert hardened.ask("GET", "/readyz", token=None, admin=True).status_code == 200
    hardened.server.process.send_signal(signal.SIGTERM)
    hardened.server.wait_for("stopping after the requests under way")
    assert hardened.ask("GET", "/readyz", token=None, admin=True).status_code == 503
    assert hardened.ask("GET", "/healthz", token=None, admin=True).status_code == 200
    asking.join()
    assert answers == [200]
    assert hardened.server.process.wait(timeout=60) == 0
