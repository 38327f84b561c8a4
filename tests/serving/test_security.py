"""What a version of a model, or a manifest, may not bring along; no server."""

import hmac
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from serving.server.access import Token, check_exposure, manifest_key, rest_tls, rpc_tls
from serving.server.config import ConfigError
from serving.server.errors import Code, RequestError
from serving.server.flags import Flags
from serving.server.integrity import verify
from serving.server.operations import _is_allowed, scan
from tests.serving.certificates import write_certificate

HARDENED = Flags(serving_root=Path("/models"), profile="hardened")


def export(folder: Path, function: Callable) -> Path:
    """A SavedModel whose only signature is `function` of a string [n]."""
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": function(x)}, input_signature=[tf.TensorSpec([None], tf.string, "x")])
    tf.saved_model.save(module, str(folder), {"serving_default": module.f})
    return folder


def changed(source: Path, folder: Path, change: Callable[[saved_model_pb2.SavedModel], object]) -> Path:
    shutil.copytree(source, folder)
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    change(model)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return folder


def refusal(version: Path) -> str:
    with pytest.raises(RequestError) as caught:
        scan(version)
    assert caught.value.private
    return f"{caught.value.code.name}: {caught.value.message}"


def in_function(x):
    return tf.cond(tf.size(x) > 0, lambda: tf.io.read_file(x[0]), lambda: tf.constant(b""))


def cardinality(dataset):
    return tf.strings.as_string(tf.raw_ops.DatasetCardinality(input_dataset=dataset))


EVIL = {
    "PyFunc": lambda x: tf.numpy_function(lambda v: v, [x], tf.string),
    "EagerPyFunc": lambda x: tf.py_function(lambda v: v, [x], tf.string),
    "ReadFile": lambda x: tf.map_fn(tf.io.read_file, x),
    "WriteFile": lambda x: [tf.io.write_file("/tmp/planted", x[0]), x][1],
    "MatchingFiles": lambda x: tf.io.matching_files(x),
    "SaveV2": lambda x: [tf.raw_ops.SaveV2(prefix="/tmp/p", tensor_names=["x"], shape_and_slices=[""], tensors=[x]), x][
        1
    ],
    "RestoreV2": lambda x: tf.raw_ops.RestoreV2(
        prefix=x[0], tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.string]
    )[0],
    "PrintV2": lambda x: [tf.print(x, output_stream="file:///tmp/planted"), x][1],
    "TextLineDataset": lambda x: cardinality(
        tf.raw_ops.TextLineDataset(filenames=x, compression_type="", buffer_size=1)
    ),
    "DecodeProtoV2": lambda x: tf.io.decode_proto(x, "m", ["f"], [tf.string], descriptor_source="/etc/d").values[0],
    "Where": in_function,
}


@pytest.mark.parametrize("operation", EVIL)
def test_an_operation_that_reaches_outside_the_model_is_refused_by_name(tmp_path, operation):
    message = refusal(export(tmp_path / "1", EVIL[operation]))
    name = "ReadFile" if operation == "Where" else operation
    assert message.startswith(f"PERMISSION_DENIED: operation {name} (")


def test_a_custom_operation_is_refused(tmp_path):
    harmless = export(tmp_path / "1", tf.strings.upper)

    def rename(model):
        (node,) = [
            n for f in model.meta_graphs[0].graph_def.library.function for n in f.node_def if n.op == "StringUpper"
        ]
        node.op = "MyCompanyUpper"

    scan(harmless)
    assert "operation MyCompanyUpper (" in refusal(changed(harmless, tmp_path / "2", rename))


@pytest.mark.parametrize("name", ["saved_model.pbtxt", "saved_model.cpb"])
def test_a_second_form_of_the_graph_is_refused(tmp_path, name):
    version = export(tmp_path / "1", tf.strings.upper)
    (version / name).write_bytes(b"")
    assert name in refusal(version)


@pytest.mark.parametrize("place", ["m", "m/1", "m/1/assets/words.txt", "m/1/variables"])
def test_a_link_in_a_version_or_to_one_is_refused(saved_models, tmp_path, place):
    shutil.copytree(saved_models / "texts/7", tmp_path / "m/1")
    path, elsewhere = tmp_path / place, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert "a link, which could lead anywhere" in refusal(tmp_path / "m/1")


@pytest.mark.parametrize("content", [None, b"\xff\xff"], ids=["absent", "no_proto"])
def test_a_graph_that_cannot_be_read_is_refused(tmp_path, content):
    if content:
        (tmp_path / "saved_model.pb").write_bytes(content)
    assert refusal(tmp_path).startswith("DATA_LOSS: ")


def test_the_models_of_the_other_tests_pass(saved_models):
    for version in ("pair/1", "pair/2", "texts/7", "types/00000003"):
        scan(saved_models / version)


def no_asset(graph):
    del graph.asset_file_def[:]  # then the graph's own path would be read


def other_source(graph):
    (assign,) = [node for node in graph.graph_def.node if node.op == "AssignVariableOp"]
    assign.input[1] = graph.graph_def.node.add(name="elsewhere", op="Const").name


def other_name_of_the_variable(graph):
    (handle,) = [node for node in graph.graph_def.node if node.op == "VarHandleOp"]
    alias = graph.graph_def.node.add()
    alias.CopyFrom(handle)
    alias.name = "alias"
    graph.graph_def.node.add(name="elsewhere", op="Const")
    graph.graph_def.node.add(name="again", op="AssignVariableOp", input=["alias", "elsewhere"])


def alias_in_a_function(graph):
    (handle,) = [node for node in graph.graph_def.node if node.op == "VarHandleOp"]
    graph.graph_def.library.function[0].node_def.add().CopyFrom(handle)


def handle_given_away(graph):
    (handle,) = [node for node in graph.graph_def.node if node.op == "VarHandleOp"]
    graph.graph_def.node.add(name="given", op="Identity", input=[handle.name])


HARMS = [no_asset, other_source, other_name_of_the_variable, alias_in_a_function, handle_given_away]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_table_is_filled_from_an_asset_and_from_no_other_file(saved_models, tmp_path, harm):
    version = changed(saved_models / "texts/7", tmp_path / "1", lambda model: harm(model.meta_graphs[0]))
    assert "reads a file that is no asset" in refusal(version)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/b", "..", "a\\b", ""])
def test_an_asset_is_a_plain_name(saved_models, tmp_path, name):
    def rename(model):
        model.meta_graphs[0].asset_file_def[0].filename = name

    assert "asset " in refusal(changed(saved_models / "texts/7", tmp_path / "1", rename))


def test_what_touches_files_processes_or_networks_is_not_on_the_list():
    outside = (
        "PyFunc PyFuncStateless EagerPyFunc ReadFile WriteFile MatchingFiles Save SaveV2 Restore RestoreV2 PrintV2 "
        "TFRecordDataset TextLineReaderV2 SnapshotDataset DebugIdentity DebugIdentityV3 RemoteCall RpcClient Send Recv "
        "_Send DataServiceDataset LMDBReader LoadAndRemapMatrix GenerateVocabRemapping FixedUnigramCandidateSampler "
        "DecodeProtoV2 EncodeProto XlaCustomCall XlaCallModule WriteSummary SummaryWriter FileSystemSetConfiguration "
        "CollectiveReduceV2 TPUExecute DumpTensor NoSuchOperation"
    )
    assert [op for op in outside.split() if _is_allowed(op)] == []
    inside = (
        "MatMul Conv2D LookupTableFindV2 HashTableV2 VarHandleOp ReadVariableOp If While ParseExampleV2 DecodeImage"
    )
    assert [op for op in inside.split() if not _is_allowed(op)] == []


def signed(folder: Path, key: bytes | None) -> Path:
    """A folder with one file and a manifest, as a push writes them."""
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    manifest = {"files": {"saved_model.pb": {"bytes": 0, "sha256": empty}}, "seed": 7, "loss": 0.1, "text": "é"}
    if key:
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        manifest["manifest_hmac_sha256"] = hmac.digest(key, text, "sha256").hex()
    (folder / "MANIFEST.json").write_text(json.dumps({**manifest, "manifest_sha256": "0"}))
    return folder


def test_a_server_with_a_key_loads_only_what_was_signed_with_it(tmp_path):
    verify(signed(tmp_path / "1", b"key"), key=b"key")
    verify(signed(tmp_path / "2", None))
    for number, key in [("3", b"another"), ("4", None)]:
        with pytest.raises(RequestError, match="not signed with the key of --manifest_key_file"):
            verify(signed(tmp_path / number, key), key=b"key")


def test_a_fact_changed_after_signing_is_found(tmp_path):
    version = signed(tmp_path / "1", b"key")
    path = version / "MANIFEST.json"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 8'))
    with pytest.raises(RequestError, match="not signed"):
        verify(version, key=b"key")


def test_what_the_pipeline_signs_the_server_takes(tmp_path):
    from pipeline import manifest

    with manifest.committing(tmp_path / "1") as draft:
        (draft.path / "saved_model.pb").write_bytes(b"x")
        draft.facts.update(seed=7, loss=0.1, parents={"é": None, "b": [1e-9]}, manifest_hmac_sha256="of another")
        draft.key = b"key"
    manifest.verify(tmp_path / "1")
    verify(tmp_path / "1", required=True, key=b"key")
    with pytest.raises(RequestError, match="not signed"):
        verify(tmp_path / "1", key=b"another")


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"bind": "::1"}, True),
        ({"bind": "localhost"}, True),
        ({"bind": "0.0.0.0"}, False),
        ({"bind": "::"}, False),
        ({"bind": "10.0.0.7"}, False),
        ({"bind": "0.0.0.0", "token_file": Path("t")}, True),
        ({"bind": "0.0.0.0", "profile": "compatible"}, True),
    ],
)
def test_the_hardened_profile_listens_to_a_network_only_with_a_token(changes, allowed):
    flags = replace(HARDENED, **changes)
    if allowed:
        check_exposure(flags)
        return
    with pytest.raises(ConfigError, match=r"give --token_file, or --bind=127\.0\.0\.1") as raised:
        check_exposure(flags)
    assert raised.value.status == 2


def test_a_token_is_read_again_when_its_file_changes_and_never_becomes_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.server.access._LOOK_AGAIN_SECONDS", 0)
    file = tmp_path / "token"
    file.write_text("first\n")
    token = Token(file)
    token.check("Bearer first")
    for step in (lambda: file.write_text(""), file.unlink):
        step()
        for sent in ("Bearer ", "Bearer", "", None):
            with pytest.raises(RequestError) as caught:
                token.check(sent)
            assert caught.value.code is Code.UNAUTHENTICATED
        token.check("Bearer first")
    file.write_text("second")
    token.check("Bearer second")
    for sent in ("Bearer first", "second", "bearer second", "Bearer second ", "Bearer sécond", b"\xff"):
        with pytest.raises(RequestError):
            token.check(sent)


@pytest.mark.parametrize("content", [None, "", "\n"], ids=["absent", "empty", "white_space"])
def test_no_server_starts_with_an_empty_token_or_key(tmp_path, content):
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"--token_file .* holds no token"):
        Token(file)
    with pytest.raises(ConfigError, match="--manifest_key_file"):
        manifest_key(file)


def test_an_ssl_config_file_is_tls_for_grpc_and_may_ask_for_the_certificate_of_the_client(tmp_path):
    certificate, key = (path.read_text() for path in write_certificate(tmp_path))
    (tmp_path / "ssl.config").write_text(
        f"server_key: {json.dumps(key)} server_cert: {json.dumps(certificate)} "
        f"custom_ca: {json.dumps(certificate)} client_verify: true"
    )
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", rpc_tls(Flags(ssl_config_file=tmp_path / "ssl.config")))
    server.start()
    codes = []
    for client in [(), (key.encode(), certificate.encode())]:
        with grpc.secure_channel(
            f"127.0.0.1:{port}", grpc.ssl_channel_credentials(certificate.encode(), *client)
        ) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/any/Method")(b"", timeout=10)
            codes.append(caught.value.code().name)
    server.stop(None)
    assert codes == ["UNAVAILABLE", "UNIMPLEMENTED"]


def test_certificates_that_cannot_be_read_are_one_line(tmp_path):
    flags = Flags(tls_certificate=tmp_path / "c.pem", tls_key=tmp_path / "k.pem")
    for made in (rest_tls, rpc_tls):
        with pytest.raises(ConfigError, match=r"--tls_certificate .*c\.pem, --tls_key .*k\.pem: "):
            made(flags)
