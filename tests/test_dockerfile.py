"""No Docker engine is needed to see that the images would build: paths, installs and entry points are checked here."""

import ast
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

Instruction = tuple[str, str]  # (FROM, the rest of the line)


def instructions(text: str) -> list[Instruction]:
    """The instructions in order: comments dropped, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def stages(text: str) -> dict[str, list[Instruction]]:
    """Stage name -> its instructions, those of the stage that it starts from included."""
    found: dict[str, list[Instruction]] = {}
    for word, rest in instructions(text):
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            found[name] = [*found.get(source, []), (word, rest)]
        else:
            found[name].append((word, rest))
    return found


STAGES = stages((ROOT / "Dockerfile").read_text())
ALL = [(name, *instruction) for name, stage in STAGES.items() for instruction in stage]
COPIES = [(rest.split()[:-1], rest.split()[-1]) for _, word, rest in ALL if word == "COPY"]


def command(stage: str) -> list[str]:
    """ENTRYPOINT and CMD of a stage as one argument list; both in exec form."""
    last = dict(STAGES[stage])
    return json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])


def options(stage: str) -> dict[str, str]:
    return dict(part.removeprefix("--").split("=", 1) for part in command(stage) if "=" in part)


def sent(path: str) -> bool:
    """Whether .dockerignore lets a path into the build: the last rule that matches decides."""
    kept = True
    for rule in (ROOT / ".dockerignore").read_text().split("\n"):
        pattern = rule.removeprefix("!")
        names = (path, Path(path).parts[0])
        if rule and not rule.startswith("#") and any(fnmatch(name, pattern) for name in names):
            kept = rule.startswith("!")
    return kept


def test_the_targets_are_train_serve_operate_and_tfserving():
    assert set(STAGES) - {"base"} == {"train", "serve", "operate", "tfserving"}


def test_every_copied_path_exists_and_is_sent_to_the_build():
    sources = {source for from_paths, _ in COPIES for source in from_paths}
    assert {path for path in sources if not (ROOT / path).exists() or not sent(path)} == set()


def test_what_no_image_installs_is_not_sent_to_the_build():
    assert not any(sent(path) for path in ("tests/conftest.py", ".git/HEAD", ".venv/bin/python", "runs/cifar10/1"))


def test_every_package_is_copied_into_the_images_that_install_the_project():
    copied = {source for from_paths, _ in COPIES for source in from_paths}
    assert {
        "custom_optimizers",
        "models",
        "pipeline",
        "serving",
        PROJECT["readme"],
        *PROJECT["license-files"],
    } <= copied


@pytest.mark.parametrize("stage", ["train", "serve", "operate"])
def test_images_install_with_the_pins_and_extras_of_make(stage):
    (install,) = [rest for word, rest in STAGES[stage] if word == "RUN" and "pip install" in rest]
    pins, extras = re.fullmatch(r'pip install (-c \S+) "\.\[([a-z,]+)\]"', install).groups()
    makefile = (ROOT / "Makefile").read_text()
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert f"PINS ?= {pins}\n" in makefile
    assert '-e ".[all]"' in makefile
    assert set(extras.split(",")) <= set(re.search(r"\[(.+)\]", everything)[1].split(","))


def test_the_training_image_has_no_server_and_the_serving_image_no_beam():
    assert not re.search(r"\bserve\b", dict(STAGES["train"])["RUN"])
    assert not re.search(r"\b(data|all)\b", dict(STAGES["serve"])["RUN"])


def defines(module: str, function: str) -> bool:
    file = ROOT / f"{module.replace('.', '/')}.py"
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in ast.parse(file.read_text()).body)


@pytest.mark.parametrize("stage", ["train", "operate"])
def test_the_entry_point_is_the_console_script(stage):
    assert command(stage)[0] in PROJECT["scripts"]


EXAMPLES = re.findall(r"^#.*\bdocker run (.+?) IMAGE(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_the_example_of_the_training_image_asks_for_no_server():
    from pipeline.arguments import parse

    ((name, *words),) = [words.split() for _, words in EXAMPLES if " run " in words]
    assert not parse(name, words)[1].push.validate


def test_the_examples_of_the_server_publish_to_this_machine_only_or_ask_for_a_token():
    from serving.server.flags import parse

    for options, words in [(options, words) for options, words in EXAMPLES if ":/models" in options]:
        published = re.findall(r"-p (\S+)", options)
        flags, unknown = parse([*command("serve")[3:], *words.split()])
        assert unknown == []
        assert flags.token_file or all(port.startswith("127.0.0.1:") for port in published)
    assert {bool(words) for options, words in EXAMPLES if ":/models" in options} == {True, False}


def test_the_operator_s_image_brings_no_tensorflow():
    assert re.search(r"\.\[client\]", dict(STAGES["operate"])["RUN"])
    assert not any("tensorflow" in line for line in PROJECT["optional-dependencies"]["client"])


def test_every_console_script_names_a_function_that_exists():
    assert all(defines(*target.split(":")) for target in PROJECT["scripts"].values())


def test_the_serving_entry_point_is_a_module_that_can_be_run():
    python, flag, module = command("serve")[:3]
    assert (python, flag) == ("python", "-m")
    assert (ROOT / module.replace(".", "/") / "__main__.py").exists()


def test_the_embedded_server_knows_its_flags_and_listens_outside_the_container():
    from serving.server.flags import parse

    flags, unknown = parse(command("serve")[3:])
    assert (unknown, flags.bind, str(flags.serving_root)) == ([], "0.0.0.0", "/models")


def test_every_configuration_file_that_tf_serving_is_told_to_read_was_copied():
    copies = [rest.rsplit(" ", 1) for word, rest in STAGES["tfserving"] if word == "COPY"]
    copied = {target: source for source, target in copies}
    named = [Path(value) for name, value in options("tfserving").items() if name.endswith("_file")]
    assert named
    assert [str(path) for path in named if not (ROOT / copied[str(path.parent)] / path.name).is_file()] == []


@pytest.mark.parametrize("stage", ["serve", "tfserving"])
def test_both_servers_listen_on_the_ports_they_expose(stage):
    ports = {options(stage)["port"], options(stage)["rest_api_port"]}
    assert set(dict(STAGES[stage])["EXPOSE"].split()) == ports == {"8500", "8501"}


@pytest.mark.parametrize("stage", ["train", "serve", "operate"])
def test_our_images_do_not_run_as_root(stage):
    assert dict(STAGES[stage])["USER"] == "minibatch"


def test_the_image_runs_the_python_that_the_pins_were_resolved_for():
    assert dict(STAGES["base"])["FROM"].startswith("python:3.11-")
    assert "--python-version 3.11" in (ROOT / "constraints.txt").read_text()
    assert PROJECT["requires-python"] == ">=3.11"
