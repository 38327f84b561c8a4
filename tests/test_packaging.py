"""What is installed where: pins, extras, the wheel, and the commands that install."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "pyproject.toml").read_text()
PYPROJECT = tomllib.loads(TEXT)
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = PROJECT["name"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PACKAGES = ("custom_optimizers", "models", "pipeline", "serving")


def installed(extra: str = "") -> dict[str, str]:
    """Distribution -> version: all that `pip install .[extra]` needs, from the metadata of what is installed here."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(f"{OURS}[{extra}]" if extra else OURS), "")]
    while waiting:
        requirement, wanted_by = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted_by}):
            continue
        for option in {"", *requirement.extras} - {option for known, option in seen if known == name}:
            seen.add((name, option))
            if name == OURS:
                lines = EXTRAS[option] if option else PROJECT["dependencies"]
            else:
                versions[name] = importlib.metadata.version(name)
                lines = importlib.metadata.requires(name) or []
            waiting += [(Requirement(line), option) for line in lines]
    return versions


def test_every_pin_is_one_exact_version_without_address_or_hash():
    assert [line for line in PINS if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    names = [line.split("==")[0] for line in PINS]
    assert names == sorted(set(names))


def test_every_distribution_of_the_development_environment_is_pinned():
    assert set(installed("dev")) - {line.split("==")[0] for line in PINS} == set()


def test_pins_lie_within_the_bounds_of_pyproject():
    pins = dict(line.split("==") for line in PINS)
    wanted = [Requirement(line) for lines in [PROJECT["dependencies"], *EXTRAS.values()] for line in lines]
    outside = [str(r) for r in wanted if r.name in pins and not r.specifier.contains(pins[r.name])]
    assert outside == []


def test_tensorflow_keras_and_beam_have_the_upper_bounds_that_were_measured():
    bounds = {"tensorflow": "<2.22", "keras": "<3.16", "apache-beam": "<2.78"}
    for lines in [PROJECT["dependencies"], *EXTRAS.values()]:
        for requirement in map(Requirement, lines):
            bound = bounds.get(requirement.name, "<")
            assert requirement.name in {OURS, "importlib_resources", "setuptools"} or bound in str(
                requirement.specifier
            )


def test_every_dependency_says_why_it_is_there():
    lines = re.findall(
        r'^    ("[A-Za-z].*)$', TEXT[TEXT.index("dependencies = [") : TEXT.index("[project.scripts]")], re.M
    )
    assert len(lines) > 40
    assert [line for line in lines if not re.search(r"# \S+ \S+", line)] == []


@pytest.mark.parametrize(
    ("extra", "absent"),
    [
        ("", {"tensorflow", "apache-beam", "grpcio"}),
        ("client", {"tensorflow", "apache-beam"}),
        ("train", {"apache-beam", "uvicorn"}),
        ("serve", {"apache-beam", "tensorflow-datasets", "matplotlib"}),
        ("data", {"uvicorn", "tensorflow-serving-api"}),
    ],
)
def test_a_host_stays_free_of_what_another_host_needs(extra, absent):
    assert set(installed(extra)) & absent == set()


def test_all_is_every_extra_but_hardware_and_development():
    assert set(Requirement(EXTRAS["all"][0]).extras) == set(EXTRAS) - {"all", "dev", "gpu", "tpu"}


DISTRIBUTIONS = {
    "apache_beam": "apache-beam",
    "google": "protobuf",
    "google_crc32c": "google-crc32c",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "ml_dtypes": "ml-dtypes",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_serving": "tensorflow-serving-api",
}
# The extras that a host has when it runs the code of a folder; the longest prefix counts.
HOSTS = {
    "custom_optimizers": ["tensorflow"],
    "models": ["tensorflow"],
    "pipeline": ["all"],
    "pipeline/sources": ["data"],
    "pipeline/preprocess": ["data"],
    "pipeline/training": ["train"],
    "pipeline/release": ["train", "client"],
    "pipeline/advice": ["train", "report"],
    "serving": ["client"],
    "serving/server": ["serve"],
}


def declared(extras: list[str]) -> set[str]:
    """Distributions that the base and these extras name themselves: what comes along by chance does not count."""
    waiting = [Requirement(line) for extra in extras for line in EXTRAS[extra]]
    names = {Requirement(line).name for line in PROJECT["dependencies"]}
    while waiting:
        requirement = waiting.pop()
        if requirement.name == OURS:
            waiting += [Requirement(line) for extra in requirement.extras for line in EXTRAS[extra]]
        names.add(requirement.name)
    return names


def imported_distributions(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules.add(node.module.split(".")[0])
    return {DISTRIBUTIONS.get(module, module) for module in modules - sys.stdlib_module_names - set(PACKAGES)}


@pytest.mark.parametrize("folder", HOSTS)
def test_a_folder_imports_only_what_its_extras_name(folder):
    known = declared(HOSTS[folder])
    deeper = tuple(f"{other}/" for other in HOSTS if other.startswith(f"{folder}/"))
    files = [file for file in (ROOT / folder).rglob("*.py") if not str(file.relative_to(ROOT)).startswith(deeper)]
    assert {str(file.relative_to(ROOT)): imported_distributions(file) - known for file in files} == {
        str(file.relative_to(ROOT)): set() for file in files
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that no build folder is left in the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(["git", *listed], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    build = "import setuptools.build_meta as build; build.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_wheel_holds_the_files_of_the_four_packages_and_nothing_else(wheel):
    listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES]
    names = subprocess.run(["git", *listed], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {name for name in names.split("\0") if name and (ROOT / name).is_file()}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_has_the_name_the_licence_and_the_console_script(wheel):
    fields = dict(line.split(": ", 1) for line in metadata(wheel, "METADATA").splitlines() if ": " in line)
    assert (fields["Name"], fields["License-Expression"]) == ("minibatch-descent", "Apache-2.0")
    assert "minibatch = pipeline.__main__:main" in metadata(wheel, "entry_points.txt")
    assert "Apache License" in metadata(wheel, "licenses/LICENSE")


def planned(target: str, tmp_path: Path, *variables: str) -> list[str]:
    """The commands that make would run for a target in an empty environment."""
    asked = ["make", "--no-print-directory", "-n", target, f"VENV={tmp_path}/venv", *variables]
    # `make test PINS=` hands its variables to every make below it
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "PINS", "VENV", "PYTHON"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("echo ")]


def test_make_run_installs_with_the_pins_and_runs_the_demo(tmp_path):
    commands = planned("run", tmp_path)
    python = f"{tmp_path}/venv/bin/python"
    assert commands[0] == f"python3.11 -m venv {tmp_path}/venv"
    assert commands[1] == f'{python} -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"'
    assert commands[-1] == f"{tmp_path}/venv/bin/minibatch demo --fresh"


def test_make_test_installs_with_the_pins_and_runs_all_but_the_slow_and_the_violent(tmp_path):
    commands = planned("test", tmp_path)
    assert any('-c constraints.txt -e ".[dev]"' in command for command in commands)
    assert commands[-1] == f'{tmp_path}/venv/bin/python -m pytest -m "not slow and not chaos"'


def test_make_can_install_without_the_pins(tmp_path):
    assert not any("constraints" in command for command in planned("test", tmp_path, "PINS="))


def test_make_installs_once(tmp_path):
    (tmp_path / "venv/bin").mkdir(parents=True)
    for name in (".run", ".dev", "bin/pip"):  # the newest is no reason to install again
        (tmp_path / "venv" / name).touch()
    assert not any("pip install" in command for command in planned("test", tmp_path) + planned("run", tmp_path))


def test_continuous_integration_calls_make_and_nothing_else():
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert script[0] == "#!/usr/bin/env bash"
    assert script[1:] == ["set -eu", 'cd "$(dirname "$0")/.."', "exec make test"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    steps = re.findall(r"run: (.*)", (ROOT / ".github/workflows/ci.yml").read_text())
    assert steps
    assert [step for step in steps if not (step.startswith("make ") and step.split()[1] in targets)] == []


def test_commit_hooks_are_local():
    repositories = re.findall(r"repo: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert set(repositories) == {"local"}
