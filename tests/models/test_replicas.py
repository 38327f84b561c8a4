"""Replicas that share a batch train a model as one does that has all of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers
from tests.models.updates import SMALL, Training, policy

STEPS = 10
NEAR = {"float64": 1e-12, "float32": 1e-5}  # sums in another order


def two_replicas():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


def trained(task: str, dtype: str, strategy) -> tuple[list[np.ndarray], list]:
    """Losses, weights and statistics; and the variables."""
    with policy(dtype):
        training = Training(SMALL[task], lambda: custom_optimizers.Momentum(0.05), strategy)
        losses = training.run(STEPS)
    return [np.array(losses), *training.values()], training.model.variables


def assert_near(values, dtype: str, task: str) -> None:
    """These are what one replica gets."""
    expected, _ = trained(task, dtype, tf.distribute.get_strategy())
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=NEAR[dtype], atol=NEAR[dtype])
    assert len(set(np.round(values[0], 6))) == STEPS


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", SMALL)
def test_losses_weights_and_statistics_are_those_of_one_replica(task, dtype):
    values, variables = trained(task, dtype, two_replicas())
    assert_near(values, dtype, task)
    for variable in variables:
        copies = [copy.numpy() for copy in variable.value.values]
        np.testing.assert_array_equal(*copies, err_msg=variable.path)


def work(folder: str) -> None:
    """What each of the two processes of the next test does."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    for task in SMALL:
        values, _ = trained(task, "float64", strategy)
        np.savez(Path(folder) / f"{task}-{strategy.cluster_resolver.task_id}.npz", *values)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    for server in sockets:
        server.close()
    code = "import sys; from tests.models.test_replicas import work; work(sys.argv[1])"
    processes = []
    for index in range(2):
        place = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(place)}
        command = [sys.executable, "-c", code, str(tmp_path)]
        processes.append(subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment))
    try:
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for task in SMALL:
        one, other = (list(np.load(tmp_path / f"{task}-{index}.npz").values()) for index in range(2))
        for value, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(value, same)
        assert_near(one, "float64", task)
