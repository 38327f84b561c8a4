"""The house rules that a reader cannot see at a glance: who imports whom, how big files are, what is never called."""

import ast
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("custom_optimizers", "models", "pipeline", "serving")
STAGES = ("sources", "preprocess", "training", "release", "advice")
FOLDERS = {*PACKAGES, "tests", "benchmarks", "docs", ".github", ".ci"}
MAX_LINES = 400


def repository_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return sorted(Path(name) for name in set(listed.split("\0")) - {""} if (ROOT / name).is_file())


FILES = repository_files()
PYTHON = [file for file in FILES if file.suffix == ".py"]
SOURCES = [file for file in PYTHON if file.parts[0] in PACKAGES]
TREES = {file: ast.parse((ROOT / file).read_text(), str(file)) for file in PYTHON}


def imported(file: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports, wherever the import stands; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = file.parts[: len(file.parts) - node.level] if node.level else ()
            stem = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def may_import(file: Path, name: str) -> bool:
    """The direction of imports: pipeline -> models, custom_optimizers; pipeline/release -> serving.client."""
    package, folder = file.parts[0], file.parts[1]
    if within(name, "apache_beam"):
        return file.parts[:2] == ("pipeline", "preprocess")
    if package == "serving" and within(name, "keras"):
        return False
    if file.parent == Path("serving") and within(name, "tensorflow", "tensorflow_serving", "serving.server"):
        return False
    if not within(name, *PACKAGES) or within(name, package):
        return package != "pipeline" or stage_may_import(folder, name)
    if within(name, "serving"):
        return (package, folder) == ("pipeline", "release") and within(name, "serving.client")
    return package == "pipeline"


# The modules that all stages share; they know no stage. The others in pipeline/ stand above the stages.
SHARED = tuple(f"pipeline.{noun}" for noun in ("config", "errors", "manifest", "records", "runs", "checkpoints"))
EXCEPTIONS = {
    "preprocess": ["pipeline.sources"],
    "training": ["pipeline.release.evaluate", "pipeline.release.metrics"],
    "advice": ["pipeline.training"],
}


def stage_may_import(folder: str, name: str) -> bool:
    """Inside pipeline: __main__ -> run -> stages -> shared modules; a stage is a folder."""
    if not within(name, "pipeline"):
        return True
    if folder in STAGES:
        return within(name, *SHARED, f"pipeline.{folder}", *EXCEPTIONS.get(folder, []))
    if f"pipeline.{folder.removesuffix('.py')}" in SHARED:
        return within(name, *SHARED)
    return folder == "__main__.py" or not within(name, "pipeline.__main__")


def test_imports_go_only_in_the_direction_of_the_layout():
    wrong = [
        f"{file}:{line} imports {name}"
        for file in SOURCES
        for line, name in imported(file, TREES[file])
        if not may_import(file, name)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/image.py", "import pipeline.config"),
        ("models/image.py", "from custom_optimizers import SOAP"),
        ("custom_optimizers/soap.py", "from models import options"),
        ("serving/server/rest.py", "import keras"),
        ("serving/server/rest.py", "from pipeline.errors import UserError"),
        ("serving/client.py", "import tensorflow as tf"),
        ("serving/client.py", "from .server import rest"),
        ("pipeline/run.py", "import serving.client"),
        ("pipeline/release/push.py", "from serving.server import rest"),
        ("pipeline/training/inputs.py", "import apache_beam"),
        ("pipeline/training/loop.py", "from pipeline.release import push"),
        ("pipeline/sources/tfds.py", "from ..preprocess import clean"),
        ("pipeline/release/gate.py", "def f():\n    from pipeline.training import loop"),
        ("pipeline/release/gate.py", "import importlib\nimportlib.import_module('pipeline.run')"),
        ("pipeline/records.py", "from pipeline import sources"),
        ("pipeline/run.py", "from pipeline import __main__"),
    ],
)
def test_the_direction_check_sees_a_forbidden_import(file, line):
    path = Path(file)
    assert not all(may_import(path, name) for _, name in imported(path, ast.parse(line)))


def test_no_code_file_is_longer_than_400_lines():
    kinds = {".py", ".jinja", ".html", ".toml", ".yml", ".yaml", ".config", ""}
    code = [file for file in FILES if file.suffix in kinds]
    lengths = {str(file): (ROOT / file).read_bytes().count(b"\n") for file in code}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_module_is_named_after_a_drawer():
    drawers = re.compile(r"(^|_)(utils?|common|base|helpers?|managers?|factory|misc)($|_)")
    assert [str(file) for file in PYTHON if any(drawers.search(Path(part).stem) for part in file.parts)] == []


def test_top_level_folders_are_the_fixed_ones():
    assert {file.parts[0] for file in FILES if len(file.parts) > 1} <= FOLDERS


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of each way to run code that hides in data."""
    only = {"allow_pickle": False, "safe_mode": True, "shell": False}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id="enable_unsafe_deserialization") | ast.Attribute(attr="enable_unsafe_deserialization"):
                yield node.lineno, "enable_unsafe_deserialization"
            case ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "unsafe_load" | "full_load"):
                yield node.lineno, "yaml.load"
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                yield node.lineno, name
            case ast.keyword(arg=("allow_pickle" | "safe_mode" | "shell") as name, value=value):
                if not (isinstance(value, ast.Constant) and value.value is only[name]):
                    yield node.value.lineno, f"{name}={ast.unparse(value)}"


UNSAFE_MODULES = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


def test_nothing_loads_code_out_of_data():
    found = [f"{file}:{line} {what}" for file in PYTHON for line, what in unsafe(TREES[file])]
    found += [
        f"{file}:{line} import {name}"
        for file in PYTHON
        for line, name in imported(file, TREES[file])
        if within(name, *UNSAFE_MODULES) or name == "yaml.load"
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "keras.models.load_model(p, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
        "yaml.load(text)",
        "subprocess.run(c, shell=True)",
        "eval(text)",
    ],
)
def test_the_unsafe_check_sees_an_unsafe_call(code):
    assert list(unsafe(ast.parse(code)))


def test_packages_in_pyproject_equal_the_packages_on_disk():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {".".join(file.parent.parts) for file in FILES if file.parts[0] in PACKAGES}
    assert sorted(listed) == sorted(on_disk)


def test_no_file_holds_a_machine_path_or_a_registry_address():
    # One letter of each stands in brackets, so that this file does not hold what it looks for.
    path = r"(?<![\w.}*])/(?:[w]ork|[r]oot|[h]ome|[U]sers)/\w"
    registry = r"[p]ypi\.org|[p]ythonhosted|[i]ndex-url|[r]egistry\.\w+\.\w+|[n]pmjs|[ag]cr\.io"
    forbidden = re.compile(f"{path}|{registry}")
    found = []
    for file in FILES:
        try:
            lines = (ROOT / file).read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{file}:{n} {line.strip()}" for n, line in enumerate(lines, 1) if forbidden.search(line)]
    assert found == []


def test_command_line_and_client_import_no_heavy_library():
    code = (
        "import sys, models.options, serving.client\n"
        "import pipeline.__main__, pipeline.config, pipeline.presets, pipeline.manifest\n"
        "heavy = {'tensorflow', 'keras', 'apache_beam', 'jax', 'matplotlib', 'tensorflow_datasets'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_answers_in_half_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_tests_see_two_logical_cpu_devices_and_no_gpu():
    import tensorflow as tf

    assert len(tf.config.list_logical_devices("CPU")) == 2
    assert tf.config.list_logical_devices("GPU") == []


def test_tests_cannot_open_a_file_beside_the_checkout():
    if ROOT.is_relative_to(tempfile.gettempdir()):
        pytest.skip("the checkout lies in the temporary folder, which tests may use")
    with pytest.raises(PermissionError, match="beside the checkout"):
        (ROOT.parent / "neighbour" / "rows.csv").read_text()
