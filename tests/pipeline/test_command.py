"""Claims about the command `minibatch`: what is wrong is one line on stderr, and the exit code says what kind it is."""

import dataclasses
import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf  # noqa: F401  before any command looks for it

from pipeline import __main__ as command
from pipeline import arguments, demo, errors, manifest, records, runs, stages
from pipeline.config import Config, to_json
from pipeline.errors import CANNOT_WRITE, CHANGED, DATA, INTERRUPTED, MISSING, REFUSED, USAGE, UserError
from pipeline.training import plan
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
# A run of the preset that trains in a second on the tiny records.
TINY = ("--model.factors", "4", "--train.epochs", "2", "--train.batch-size", "16", "--train.no-tensorboard")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail; its exit code and its one line on stderr."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command.main(list(words))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("minibatch: ")
        return ended.value.code, line

    return run


def config_of(*words: str) -> Config:
    return arguments.parse("train", ["ratings-sample", *words])[1]


def committed_records(*words: str) -> Path:
    """The tiny ratings where `minibatch train ratings-sample` looks for them."""
    config, tiny_dir = config_of(*words), tiny.records_dir("recommendation", Path("tiny"))
    destination = config.records_root / "fedcba9876543210"
    with manifest.committing(destination) as draft:
        shutil.copytree(tiny_dir, draft.path, dirs_exist_ok=True)
        described = manifest.read(tiny_dir)
        (draft.path / manifest.NAME).unlink()
        draft.rows.update({name: file["rows"] for name, file in described["files"].items() if "rows" in file})
        draft.facts["key"] = {"task": "recommendation", "settings": {"data": to_json(config.data)}}
    return destination


def unfinished_run() -> Path:
    config = config_of()
    fingerprint = {"records": "0", "code": "0", "versions": {}}
    return runs.open_run(config, {"config": to_json(config), "records": "records/0", "fingerprint": fingerprint})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fly", "Unknown command 'fly': there are run, preprocess, train,"),
        ("run digits", "Unknown preset 'digits': there are cifar10, cifar10-fast,"),
        ("run --train.epochs 3", "Unknown preset '--train.epochs'"),
        ("run imdb --train.bach-size 3", "--train.bach-size, 3. Perhaps you meant --train.batch-size."),
        ("run imdb --model.filters 3", "Unrecognized options: --model.filters, 3."),
        ("run imdb extra", "Unrecognized options: extra."),
        ("run imdb --train.batch-size", "Missing value for argument '--train.batch-size'"),
        ("run imdb --train.batch-size many", "--train.batch-size: invalid literal for int() with base 10: 'many'"),
        ("run imdb --optimizer.schedule square", "invalid choice 'square' for argument '--optimizer.schedule'"),
        ("run imdb --train.batch-size 0", "--train.batch-size 0: must be above 0."),
        ("run imdb --data.test-fraction 1", "--data.test-fraction 1.0: give a share"),
        ("run imdb --run.name ../x", "--run.name '../x': use 1 to 64 letters"),
        ("train imdb --run.model a/b", "--run.model 'a/b': use 1 to 64 letters"),
        ("demo --rot x", "unrecognized arguments: --rot x; `minibatch demo --help`"),
    ],
)
def test_a_wrong_word_is_one_line_and_usage(refused, words, said):
    code, line = refused(*words.split())
    assert said in line
    assert code == USAGE


@pytest.mark.parametrize("columns", ["20", "80"])
def test_a_long_word_is_not_broken_to_fit_the_terminal(refused, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    path = "/".join(["a-long-folder-name"] * 20)
    assert path in refused("run", "imdb", "--data.pat", path)[1]
    assert os.environ["COLUMNS"] == columns


@pytest.mark.parametrize("name", [name for name, (_, modules, _) in command.COMMANDS.items() if modules])
def test_a_command_whose_extra_is_not_installed_names_it(refused, monkeypatch, name):
    extra, modules, _ = command.COMMANDS[name]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda m, *a: None if m == modules[-1] else find(m, *a))
    code, line = refused(name, "imdb")
    assert f"`minibatch {name}` needs {modules[-1]}: pip install '.[{extra}]' in the project's folder." in line
    assert code == USAGE


@pytest.mark.parametrize("name", ["run", "push"])
def test_a_server_that_the_push_would_boot_is_missed_at_once_unless_it_is_not_asked_for(refused, monkeypatch, name):
    find, done = importlib.util.find_spec, []
    monkeypatch.setattr(importlib.util, "find_spec", lambda m, *a: None if m == "uvicorn" else find(m, *a))
    monkeypatch.setattr(stages, name, lambda *_: done.append(name))
    code, line = refused(name, "imdb")
    assert "unless --push.no-validate is given, needs uvicorn: pip install '.[all]'" in line
    assert (code, done) == (USAGE, [])
    command.main([name, "imdb", "--push.no-validate"])
    assert done == [name]


def test_a_package_that_is_only_there_as_a_namespace_is_missing(monkeypatch):
    find = importlib.util.find_spec

    def without(module, *rest):
        if module == "google.protobuf":
            raise ModuleNotFoundError("No module named 'google'")
        return find(module, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=r"needs google.protobuf: pip install '\.\[client\]'"):
        command.needs_modules("predict")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_its_stage_and_an_extra_of_the_distribution(name):
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert command.COMMANDS[name][0] in extras
    elsewhere = ("serve", "predict", "demo", "launch", "job", *command.OPERATIONS)
    assert name in elsewhere or callable(getattr(stages, name.replace("-", "_")))


def test_movielens_without_its_folder_says_which_option_names_it(refused):
    code, line = refused("preprocess", "movielens")
    assert "needs --data.path: the folder that holds u1.base to u5.test" in line
    assert code == MISSING


def test_a_tfds_set_that_is_not_there_says_which_option_names_it(refused):
    code, line = refused("preprocess", "cifar10", "--data.path", "nowhere")
    assert "nowhere" in line
    assert code == MISSING
    assert os.listdir(".") == []


def test_training_without_records_says_how_to_make_them(refused):
    code, line = refused("train", "ratings-sample")
    assert "records/ratings holds no records for these settings: `minibatch preprocess`" in line
    assert code == MISSING
    assert os.listdir(".") == []


@pytest.mark.parametrize("stage", ["export", "evaluate", "gate", "validate", "push", "report"])
def test_a_stage_after_training_without_a_run_says_what_comes_first(refused, stage):
    code, line = refused(stage, "ratings-sample")
    assert "runs/ratings-sample holds no run yet: run `minibatch train` with the same options first." in line
    assert code == MISSING


def test_pushing_before_the_gate_says_what_comes_first(refused):
    unfinished_run()
    code, line = refused("push", "ratings-sample")
    assert "was not judged yet: run `minibatch gate` with the same options first." in line
    assert code == MISSING


@pytest.mark.parametrize("stage", ["evaluate", "gate"])
def test_judging_before_the_export_says_what_comes_first(refused, stage):
    unfinished_run()
    code, line = refused(stage, "ratings-sample")
    assert "has no export yet: run `minibatch export` with the same options first." in line
    assert code == MISSING


def test_pushing_what_the_gate_refused_is_refused(refused):
    run_dir = unfinished_run()
    (run_dir / "decision.json").write_text(json.dumps({"accepted": False}))
    code, line = refused("push", "ratings-sample")
    assert "was refused by the gate" in line
    assert code == REFUSED
    assert not Path("exports").exists()


def test_damaged_records_are_one_line_with_the_file_and_start_no_run(refused):
    shard = committed_records() / records.shard_name("train", 0, 1)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    code, line = refused("train", "ratings-sample", *TINY)
    assert f"{shard} has changed since it was written" in line
    assert code == DATA
    assert not Path("runs").exists()


def test_training_trains_reports_what_is_finished_and_refuses_other_settings(refused, capsys, monkeypatch):
    monkeypatch.setattr(plan, "TRIAL_SECONDS", 0.05)
    committed_records()
    command.main(["train", "ratings-sample", *TINY])
    run_dir, outcome = capsys.readouterr().out.splitlines()[-2:]
    assert run_dir == "runs/ratings-sample/0001"
    assert json.loads(outcome)["epochs"] == 2
    command.main(["train", "ratings-sample", *TINY])
    assert capsys.readouterr().out.splitlines()[-2:] == [run_dir, outcome]
    code, line = refused("train", "ratings-sample", *TINY, "--optimizer.learning-rate", "0.02")
    assert "(optimizer.learning_rate: 0.004 -> 0.02): pass --fresh" in line
    assert code == CHANGED


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.jsonl"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/x/metrics.jsonl"),
        RuntimeError("runs/x/metrics.jsonl; No space left on device\nsecond line"),
    ],
)
def test_a_disk_that_fills_up_anywhere_is_one_line_with_the_path(refused, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(stages, "train", fails)
    code, line = refused("train", "imdb")
    assert "runs/x/metrics.jsonl" in line
    assert "Free space or choose another folder with --run.root" in line
    assert code == CANNOT_WRITE


def test_a_root_that_is_a_file_is_one_line(refused):
    committed_records("--run.root", "there")
    shutil.rmtree("there/runs", ignore_errors=True)
    Path("there/runs").write_text("a file")
    code, line = refused("train", "ratings-sample", *TINY, "--run.root", "there")
    assert "Not a directory: 'there/runs/ratings-sample'" in line
    assert code == CANNOT_WRITE


def test_a_defect_of_ours_is_not_dressed_up_as_a_mistake_of_the_user(monkeypatch):
    def fails(*_):
        raise FileNotFoundError(errno.ENOENT, "gone", "x")

    monkeypatch.setattr(stages, "train", fails)
    with pytest.raises(FileNotFoundError):
        command.main(["train", "imdb"])


def test_ctrl_c_is_130(refused, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "train", interrupted)
    assert refused("train", "imdb")[0] == INTERRUPTED == 130


def test_a_message_of_several_lines_is_told_in_one(refused, monkeypatch):
    def fails(*_):
        raise UserError("first\nsecond", code=MISSING)

    monkeypatch.setattr(stages, "train", fails)
    assert refused("train", "imdb") == (MISSING, "minibatch: first second")


@pytest.fixture
def executed(monkeypatch) -> list:
    calls: list = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    return calls


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        ([], ["--serving_root=exports"]),
        (["--port", "1"], ["--serving_root=exports", "--port", "1"]),
        (["--serving_root", "x"], ["--serving_root", "x"]),
        (["--serving_root=x", "--port=1"], ["--serving_root=x", "--port=1"]),
        (["--model_name=m", "--model_base_path=/m"], ["--model_name=m", "--model_base_path=/m"]),
        (["--model_config_file", "f"], ["--model_config_file", "f"]),
        (["--help"], ["--help"]),
    ],
)
def test_serve_becomes_the_server_on_exports_unless_told_otherwise(executed, words, passed):
    command.main(["serve", *words])
    assert executed == [(sys.executable, [sys.executable, "-m", "serving.server", *passed])]


def test_predict_becomes_the_client(executed):
    command.main(["predict", "reviews", "--text", "a fine film"])
    assert executed == [(sys.executable, [sys.executable, "-m", "serving.command", "reviews", "--text", "a fine film"])]


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_commands_presets_and_exit_codes(capsys, words):
    command.main(words)
    said = capsys.readouterr().out
    for name in (*command.COMMANDS, *command.PRESETS):
        assert name in said
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert all(str(code) in said for code in codes)


def test_a_command_s_help_lists_the_presets_and_a_preset_s_help_its_options(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["run", "--help"])
    assert not ended.value.code
    assert "reviews-sample  Rotten Tomatoes reviews" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        command.main(["run", "imdb", "--help"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "minibatch run imdb" in said
    assert "--optimizer.learning-rate FLOAT" in said


def test_a_command_without_a_preset_is_usage():
    with pytest.raises(SystemExit) as ended:
        command.main(["run"])
    assert ended.value.code == USAGE


def test_options_reach_the_config_nested_and_typed():
    words = (
        "--train.batch-size 128 --optimizer.name sgd --optimizer.learning-rate 3e-4 --optimizer.arguments momentum 0.9"
    )
    preset, config = arguments.parse("run", ["digits-sample", *words.split(), "--model.filters", "8", "16", "--fresh"])
    assert preset == "digits-sample"
    assert config.train.batch_size == 128
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("sgd", 3e-4)
    assert config.optimizer.arguments == {"momentum": 0.9}
    assert config.model.filters == (8, 16)
    assert config.run.fresh
    assert arguments.parse("run", ["digits-sample"])[1] == arguments.preset_of("digits-sample")


def test_a_stage_refuses_other_settings_than_the_run_was_trained_with(tmp_path):
    config = tiny.config("image", tmp_path)
    runs.open_run(config, runs.describe(config, "tiny", tmp_path / "records"))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, crop=2))
    with pytest.raises(UserError, match=r"model.crop: 1 -> 2") as raised:
        stages.export("tiny", other)
    assert raised.value.code == CHANGED


def test_the_demo_tells_a_failed_command_with_its_exit_code(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"`minibatch fly` ended with exit code 2 instead of 0") as raised:
        demo.command("fly")
    assert raised.value.code == USAGE


def test_the_demo_s_bad_candidate_is_a_valid_command_for_the_same_model():
    preset, config = arguments.parse("run", list(demo.BAD))
    good = arguments.preset_of(preset)
    assert (config.run.model, config.run.name != good.run.name) == (good.run.model, True)
    assert dataclasses.replace(config, run=good.run, train=good.train, optimizer=good.optimizer) == good


def test_a_real_process_says_one_line_and_nothing_else():
    words = [sys.executable, "-m", "pipeline", "train", "ratings-sample", "--run.root", str(Path.cwd())]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == MISSING
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
