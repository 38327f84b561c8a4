"""What an operator types, and what comes back: one line or a table, an exit code, nothing imported that is slow."""

import json
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline import __main__ as command
from pipeline import manifest
from pipeline.release import live
from pipeline.release.live import Live
from pipeline.release.traffic import PATH
from tests.serving.certificates import write_certificate

ROOT = Path(__file__).parents[3]


@pytest.fixture
def exports(tmp_path) -> Path:
    root = tmp_path / "exports"
    for number in (1, 2, 3):
        with manifest.committing(root / "digits" / str(number)) as draft:
            (draft.path / "saved_model.pb").write_text(str(number))
    with live.locked(root / "digits"):
        live.commit(root / "digits", "push", None, Live(2, 1), "accepted by the gate: runs/digits/0001")
    return root


@pytest.fixture
def minibatch(exports, capsys):
    """Runs a command on the root: exit code, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            command.main([*words, "--root", str(exports)])
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_release_from_canary_to_rollback(minibatch, exports):
    assert minibatch("canary", "digits", "--version", "3", "--percent", "20", "--why", "new data") == (
        0, "digits: version 3 gets 20% of the requests, version 2 the others.\n", "",
    )  # fmt: skip
    assert minibatch("promote", "digits")[1] == "digits: version 3 is stable, version 2 stays loaded.\n"
    assert minibatch("rollback", "digits", "--why", "slow")[1] == "digits: version 2 is stable.\n"
    assert live.read(exports / "digits") == Live(2)
    told = [(event.event, event.why) for event in live.events(exports / "digits")]
    assert told[1:] == [("canary", "new data"), ("promote", "by hand"), ("rollback", "slow")]


def test_status_shows_what_is_on_the_disk_what_is_live_and_what_happened_last(minibatch, exports):
    (exports / "digits" / "9").mkdir()
    minibatch("canary", "digits", "--version", "3", "--percent", "0.5")
    code, told, _ = minibatch("status", "digits")
    rows = [line.split() for line in told.splitlines()]
    assert code == 0
    assert rows[1:5] == [
        ["9", "uncommitted"], ["3", "committed", "canary", "0.5%"], ["2", "committed", "stable"],
        ["1", "committed", "previous"],
    ]  # fmt: skip
    assert rows[5][0] == "canary,"


def test_status_without_a_model_shows_all(minibatch, exports):
    with manifest.committing(exports / "reviews" / "7"):
        pass
    told = minibatch("status")[1]
    assert "digits" in told
    assert "reviews" in told


def test_status_says_what_the_server_says(minibatch):
    with Fake({"/v1/models/digits": json.dumps(STATUS)}) as address:
        rows = [line.split() for line in minibatch("status", "digits", "--address", address)[1].splitlines()]
    assert rows[1] == ["5", "missing", "END", "broken"]
    assert rows[3] == ["2", "committed", "stable", "AVAILABLE"]


STATUS = {
    "model_version_status": [
        {"version": "5", "state": "END", "status": {"error_code": "UNKNOWN", "error_message": "broken"}},
        {"version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
    ]
}


class Fake:
    """A server of fixed pages on the loopback device: for callers with `token` only, over TLS with `pem`, its
    certificate and key."""

    def __init__(self, pages: dict[str, str], token: str | None = None, pem: tuple[Path, Path] | None = None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                known = token is None or self.headers["Authorization"] == f"Bearer {token}"
                body = pages.get(self.path, "").encode() if known else b"{}"
                self.send_response(401 if not known else 200 if body else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*pem)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> str:
        self.thread.start()
        return f"127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_a_server_that_does_not_answer_is_one_line(minibatch):
    code, _, said = minibatch("status", "digits", "--address", "127.0.0.1:9")
    assert (code, said.count("\n")) == (69, 1)
    assert "127.0.0.1:9" in said


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    return write_certificate(tmp_path_factory.mktemp("pem"))


COMMANDS = {
    "canary": "canary digits --version 3 --judge --max-seconds 0.1",
    "status": "status digits",
    "models-config": "models-config --output OUTPUT",
}


@pytest.fixture(params=COMMANDS)
def asking(request, minibatch, tmp_path):
    """Runs a command that asks a server; exit code and standard error."""
    words = COMMANDS[request.param].replace("OUTPUT", str(tmp_path / "models.config")).split()

    def run(address: str, *more: object) -> tuple[int, str]:
        code, _, said = minibatch(*words, "--address", address, *map(str, more))
        return code, said

    run.done = 3 if request.param == "canary" else 0  # nobody asks the canary, so that it is rolled back in the end
    return run


PAGES = {PATH: "# nothing\n", "/v1/models/digits": json.dumps(STATUS)}
SECRET = "s3cret-t0ken"


def test_a_server_over_tls_with_a_token_is_asked_with_both(asking, pem, tmp_path):
    (tmp_path / "token").write_text(f"{SECRET}\n")
    with Fake(PAGES, SECRET, pem) as address:
        code, said = asking(address, "--tls_ca", pem[0], "--token_file", tmp_path / "token")
    assert code == asking.done, said
    assert SECRET not in said


def test_a_server_that_asks_for_a_token_is_unavailable_without_it(asking, tmp_path):
    with Fake(PAGES, SECRET) as address:
        code, said = asking(address)
        (tmp_path / "token").write_text("another")
        other, told = asking(address, "--token_file", tmp_path / "token")
    assert (code, other, said.count("\n"), told.count("\n")) == (69, 69, 1, 1)
    assert "token" in said
    assert "another" not in told


def test_a_server_over_tls_that_is_asked_in_the_clear_or_is_not_trusted_is_unavailable(asking, pem, tmp_path):
    strange, _ = write_certificate(tmp_path)
    with Fake(PAGES, pem=pem) as address:
        for more in ([], ["--tls_ca", strange]):
            code, said = asking(address, *more)
            assert (code, said.count("\n")) == (69, 1)


def test_an_address_that_is_none_is_one_line_without_its_password(asking):
    code, said = asking(f"https://user:{SECRET}@host")
    assert (code in (2, 69), said.count("\n")) == (True, 1)
    assert SECRET not in said


@pytest.mark.parametrize("option", ["--token_file", "--tls_ca"])
@pytest.mark.parametrize("text", [None, "", f"{SECRET}\ntwo lines", f"{SECRET}\u00e9"])
def test_a_file_without_token_or_certificates_is_told_before_anything_is_done(asking, exports, tmp_path, option, text):
    if text is not None:
        (tmp_path / "file").write_text(text)
    code, said = asking("127.0.0.1:9", option, tmp_path / "file")
    assert (code, said.count("\n")) == (66, 1)
    assert f"{option} {tmp_path / 'file'}" in said
    assert SECRET not in said
    assert live.read(exports / "digits") == Live(2, 1)


def test_a_judge_without_metrics_says_which_flag_the_server_needs_and_begins_no_canary(minibatch, exports):
    with Fake({}) as address:
        code, out, said = minibatch("canary", "digits", "--version", "3", "--judge", "--address", address)
    assert (code, out) == (69, "")
    assert f"answers 404: start the server with --monitoring_config_file, whose `path` is {PATH}." in said
    assert live.read(exports / "digits") == Live(2, 1)


def test_a_judged_canary_that_is_undecided_in_time_ends_with_exit_code_3(minibatch, exports):
    words = ["canary", "digits", "--version", "3", "--judge", "--max-seconds", "0.1"]
    with Fake({PATH: "# nothing\n"}) as address:
        code, _, said = minibatch(*words, "--address", address)
    assert code == 3
    assert "the canary 3 was rolled back: undecided after 0.1 s" in said
    assert live.read(exports / "digits") == Live(2, 1)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("canary digits", "required: --version"),
        ("canary digits --version 3 --percent 101", "101 is not from 0 to 100"),
        ("canary digits --version 3 --judge", "--judge needs --address"),
        ("canary digits --version 3 --confidence 1", "1 is not between 0 and 1"),
        ("rollback", "required: MODEL"),
        ("promote digits extra", "unrecognized arguments: extra"),
        ("models-config", "required: --output"),
        *(
            (f"{name} {model}", "use 1 to 64 letters")
            for name in ("rollback", "audit")
            for model in ("..", "a/b", ".x")
        ),
    ],
)
def test_words_that_make_no_sense_are_exit_code_2_and_one_line(minibatch, exports, words, named):
    code, _, said = minibatch(*words.split())
    assert code == 2
    assert named in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in exports.iterdir()) == ["digits"]


def test_a_model_that_is_not_there_makes_no_folder(minibatch, exports):
    for words in (["rollback"], ["promote"], ["canary", "--version", "1"], ["audit"]):
        code, _, said = minibatch(words[0], "digitz", *words[1:])
        assert code == 66
        assert "holds no version yet" in said
    assert sorted(path.name for path in exports.iterdir()) == ["digits"]


@pytest.mark.parametrize("name", command.OPERATIONS)
def test_an_operation_imports_neither_tensorflow_nor_keras(name):
    code = (
        "import sys\nfrom pipeline import __main__ as command\n"
        f"try:\n    command.main([{name!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "import pipeline.release.trial, pipeline.release.audit, pipeline.release.tfserving, pipeline.release.standing\n"
        "sys.exit(str({'tensorflow', 'keras', 'apache_beam'} & {*sys.modules} or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: minibatch {name}")
