"""Claims about choosing a strategy."""

import pytest
import tensorflow as tf

from pipeline.errors import USAGE, UserError
from pipeline.training.strategy import strategy_of


def test_cpu_is_one_device_and_mirrored_is_every_logical_cpu_where_there_is_no_gpu():
    assert strategy_of("cpu").num_replicas_in_sync == 1
    mirrored = strategy_of("mirrored")
    assert isinstance(mirrored, tf.distribute.MirroredStrategy)
    assert mirrored.num_replicas_in_sync == 2


@pytest.mark.parametrize(
    ("name", "what"), [("gpu", "sees no GPU"), ("multi_worker", "TF_CONFIG"), ("tpu", "no TPU could be reached")]
)
def test_a_device_that_is_not_there_is_one_line_that_says_what_to_do(name, what, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(UserError, match=what) as raised:
        strategy_of(name)
    assert raised.value.code == USAGE
    assert "\n" not in str(raised.value)
