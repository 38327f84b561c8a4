"""The compiled step itself, as the loop calls it, is one XLA program for each task: last batch padded and masked."""

import dataclasses

import keras
import numpy as np
import pytest
from tensorflow.python.util import _pywrap_determinism

from models.analysis import load
from models.spec import spec_of
from pipeline.training import descent, inputs, loop, step
from pipeline.training.rows import prepare
from pipeline.training.strategy import strategy_of
from tests import tiny

SCORED = ("loss", "norm", "count", "bad")


@pytest.fixture(autouse=True)
def any_kernel():
    """XLA's gradient of max pooling is not deterministic, and another test may have asked for that."""
    before = _pywrap_determinism.is_enabled(), keras.config.dtype_policy()
    _pywrap_determinism.enable(False)
    yield
    _pywrap_determinism.enable(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.mark.parametrize(
    ("task", "precision"),
    [("image", "float32"), ("image", "mixed_bfloat16"), ("sentiment", "float32"), ("recommendation", "float32")],
)
def test_the_step_of_each_task_compiles_and_does_what_it_does_without_xla(task, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "WIDTHS", 2)  # each is a program of its own
    records = tiny.records_dir(task, tmp_path)
    told = []
    for jit in (False, True):
        config = tiny.config(task, tmp_path, jit=jit, precision=precision, batch_size=20)  # 96 rows: the last has 16
        config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name="sgd", clip="norm"))
        if task == "sentiment":  # whose masks depend on the width that a batch is padded to
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))
        spec, analysis, strategy = spec_of(task), load(records, task), strategy_of("cpu")
        rows = prepare(records, config, spec, analysis, tmp_path / "unused")
        keras.config.set_dtype_policy(precision)
        keras.utils.set_random_seed(0)
        model = spec.build(config.model, analysis)
        optimizer = descent.optimizer_of(config.optimizer, 5, 2)
        optimizer.build(model.trainable_variables)
        batches = inputs.Batches(rows, config, strategy)
        steps = step.compiled(model, optimizer, spec, config, strategy)
        at, outcomes = 0, []
        while at < batches.per_epoch:
            (count, *_) = batches.counts(at)
            outcome = steps(batches.part(at, count), count == 1)
            outcomes.append([float(getattr(outcome, name)) for name in SCORED])
            at += int(outcome.count)
        batches.close()
        told.append(outcomes[-1])
    np.testing.assert_allclose(*told, rtol=1e-3 if precision == "float32" else 5e-2)


@pytest.mark.parametrize(("jit", "traces"), [(False, 1), (True, 2)])
def test_only_xla_gets_a_program_of_its_own_for_an_update_made_alone(jit, traces, tmp_path, monkeypatch):
    made, update = [], descent.update
    monkeypatch.setattr(descent, "update", lambda *arguments: made.append(arguments) or update(*arguments))
    loop.train(tiny.config("recommendation", tmp_path, jit=jit), tiny.records_dir("recommendation", tmp_path))
    assert len(made) == traces
