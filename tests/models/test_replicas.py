"""Two replicas that share a batch train a model as one does that has all of it."""

import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers
from tests.models.updates import SMALL, Training, policy

STEPS = 10
NEAR = {"float64": 1e-12, "float32": 1e-5}  # sums in another order


def two_replicas():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


def trained(options, strategy) -> tuple[list[float], list[np.ndarray], list]:
    training = Training(options, lambda: custom_optimizers.Momentum(0.05), strategy)
    losses = training.run(STEPS)
    return losses, training.values(), training.model.variables


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("task", SMALL)
def test_losses_weights_and_statistics_are_those_of_one_replica(task, dtype):
    with policy(dtype):
        losses, values, variables = trained(SMALL[task], two_replicas())
        expected_losses, expected, _ = trained(SMALL[task], tf.distribute.get_strategy())
    np.testing.assert_allclose(losses, expected_losses, rtol=NEAR[dtype])
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=NEAR[dtype], atol=NEAR[dtype])
    for variable in variables:
        copies = [copy.numpy() for copy in variable.value.values]
        np.testing.assert_array_equal(*copies, err_msg=variable.path)
    assert len({round(loss, 6) for loss in losses}) == STEPS
