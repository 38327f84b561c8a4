"""Claims about the second backend: every optimizer runs on JAX, in fit and as a pure function, and ends the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import custom_optimizers as suite
from tests.custom_optimizers import backends, problem

ROOT = Path(__file__).resolve().parent.parent.parent
NEAR = 2e-5

A_FEW = ("AdamW", "ScheduleFreeAdamW", "chain")  # the quick tests look at these


@pytest.fixture(scope="module")
def a_few(tmp_path_factory) -> dict:
    return on_jax_backend(tmp_path_factory.mktemp("few"), *A_FEW)


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory) -> dict:
    return on_jax_backend(tmp_path_factory.mktemp("jax"))


def on_jax_backend(folder: Path, *names: str) -> dict:
    """What a process of its own makes of every run: a process has one backend."""
    result = folder / "runs.json"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.custom_optimizers.backends", str(result), *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(result.read_text())


def of(runs: dict, name: str) -> dict:
    assert "error" not in runs[name], runs[name]["error"]
    return runs[name]


def test_the_package_is_imported_without_tensorflow(a_few):
    assert a_few["backend"] == "jax"
    assert not a_few["tensorflow"]


@pytest.mark.parametrize("name", A_FEW)
def test_a_few_optimizers_end_where_they_do_on_tensorflow(a_few, name):
    expected = backends.by_fit(backends.images(), backends.new(name), eager=True)["weights"]
    for way in ("fit", "stateless"):
        assert problem.far(of(a_few, f"{way} {name}")["weights"], expected) < NEAR
    assert problem.far(problem.values(backends.images().trainable_variables), expected) > 50 * NEAR  # it has moved


@pytest.mark.slow
@pytest.mark.parametrize("name", backends.OPTIONS)
def test_an_optimizer_ends_in_fit_where_it_does_on_tensorflow(on_jax, name):
    expected = backends.by_fit(backends.images(), backends.new(name), eager=True)["weights"]
    assert problem.far(of(on_jax, f"fit {name}")["weights"], expected) < NEAR
    assert problem.far(problem.values(backends.images().trainable_variables), expected) > 50 * NEAR  # it has moved


@pytest.mark.slow
@pytest.mark.parametrize("name", backends.OPTIONS)
def test_an_optimizer_ends_as_a_pure_function_where_it_does_in_fit(on_jax, name):
    assert problem.far(of(on_jax, f"stateless {name}")["weights"], of(on_jax, f"fit {name}")["weights"]) < NEAR


@pytest.mark.slow
@pytest.mark.parametrize("name", backends.WATCHED)
def test_validation_at_the_evaluation_weights_is_that_on_tensorflow(on_jax, name):
    expected, found = backends.watched(backends.WATCHED[name](), eager=True), of(on_jax, f"watched {name}")
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=NEAR)
    assert found["loss"] == pytest.approx(expected["loss"], rel=NEAR)
    assert problem.far(found["weights"], expected["weights"]) < NEAR


@pytest.mark.slow
def test_a_table_ends_where_it_does_on_tensorflow_with_sparse_gradients(on_jax):
    expected = backends.by_fit(backends.table(), suite.Adam(0.05), backends.IDS, eager=True)["weights"]
    assert problem.far(of(on_jax, "table")["weights"], expected) < NEAR
