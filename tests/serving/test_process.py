"""How the server process starts, refuses to start, and stops."""

import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.client import Client

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "serving.server", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_help_and_refusals_import_no_tensorflow():
    code = (
        "import sys; from serving.server.__main__ import main\n"
        "try: status = main([{!r}])\n"
        "except SystemExit as stop: status = stop.code\n"
        "print(status, 'tensorflow' in sys.modules)"
    )
    for flag, status in [("--help", 0), ("--serving_root=/no/such/folder", 66)]:
        done = subprocess.run([sys.executable, "-c", code.format(flag)], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == [f"{status} False"], done.stderr


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_a_port_in_use_is_one_line_that_names_it_and_its_flag(tmp_path, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = {"--port": "--rest_api_port", "--rest_api_port": "--port"}[flag]
        done = run(f"--serving_root={tmp_path}", f"{flag}={port}", f"{other}=0")
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == (
        f"minibatch serve: cannot listen on 127.0.0.1 port {port} (Address already in use); "
        f"choose another with {flag}\n"
    )


def test_a_start_waits_for_the_base_path_and_ends_with_tf_servings_words_when_the_model_does_not_load(
    tmp_path, processes
):
    folder = tmp_path / "digits"
    server = processes("--model_name=digits", f"--model_base_path={folder}", "--max_num_load_retries=1",
                       "--load_retry_interval_micros=1000", "--file_system_poll_wait_seconds=0.1")  # fmt: skip
    server.wait_for(f"Could not find base path {folder} for servable digits; waiting for it", 200)
    with pytest.raises(httpx.ConnectError):
        server.call("GET", "/v1/models/digits")
    folder.mkdir()
    server.wait_for(f"No versions of servable digits found under base path {folder}")
    draft = folder / "draft"
    draft.mkdir()
    (draft / "MANIFEST.json").write_text("{")
    draft.rename(folder / "7")
    assert server.process.wait(timeout=30) == 65
    log = server.log.read_text()
    assert "digits/7 not loaded" in log
    assert "attempt 2 of 2" in log
    assert log.splitlines()[-1].startswith(
        "minibatch serve: Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        f"{{{{{{name: digits version: 7}} due to error: DATA_LOSS: {folder}/7/MANIFEST.json is not a readable manifest"
    )


def test_the_version_is_told_without_importing_tensorflow():
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"minibatch (unreleased|[\d.]+)\nTensorFlow Library: 2\.\d+\.\d+\n", done.stdout)


def test_nothing_to_serve_is_a_usage_error():
    done = run("--port=1")
    assert done.returncode == 2
    assert re.fullmatch(r"minibatch serve: nothing to serve: give --serving_root.*\n", done.stderr)


def test_an_unknown_flag_is_passed_over_with_a_warning(server):
    assert server.wait_for("unknown argument: .*") == "unknown argument: --no_such_flag (passed over)"


def test_the_ready_line_names_addresses_and_models(server):
    line = server.wait_for("Serving .*")
    assert line == f"Serving 4 models on REST {server.rest} and gRPC {server.rpc}: examples/1, pair/2, texts/7, types/3"


def test_a_config_file_keeps_all_versions_requests_time_out_and_sigterm_drains(saved_models, tmp_path, processes):
    """One process for all three, since starting it costs seconds."""
    config = tmp_path / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "numbers" base_path: "{saved_models}/pair" model_platform: "tensorflow" '
        "model_version_policy { all {} } } }"
    )
    socket_path = tmp_path / "rpc"
    server = processes(
        f"--model_config_file={config}", "--rest_api_timeout_in_ms", "2000", f"--grpc_socket_path={socket_path}",
        "--tensorflow_session_parallelism=1", "--num_request_iterations_for_warmup=2",
    )  # fmt: skip
    for version in ("numbers/1", "numbers/2"):  # the server is ready with the first of them
        server.wait_for(f"{version} loaded from .*", 200)
    server.wait_for("Serving .*", 200)
    old = server.predict("numbers/versions/1", '{"inputs": {"a": [1], "b": [2]}}')
    assert old.json() == {"outputs": {"b": [2], "total": [3.0]}}

    late = server.predict("numbers", '{"signature_name": "slow", "inputs": 2000000000}')
    assert (late.status_code, late.json()) == (504, {"error": "Timed out waiting for notification"})

    with Client(f"unix:{socket_path}", "grpc") as client:
        assert client.predict("numbers", {"a": [1.0], "b": [2]})["total"] == [30.0]
    answers = []
    with Client(server.rpc, "grpc") as client:
        assert client.predict("numbers", {"steps": np.int32(1)}, "slow") == {"steps": 1}
        asking = threading.Thread(
            target=lambda: answers.append(client.predict("numbers", {"steps": np.int32(60_000)}, "slow"))
        )
        asking.start()
        time.sleep(0.3)  # the request is under way
        server.process.terminate()
        assert server.process.wait(timeout=60) == 0
        asking.join()
    assert answers == [{"steps": np.int32(60_000)}]
    server.log.read_text().index("stopping after the requests under way")
