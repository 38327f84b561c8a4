"""Claims about options that take several words."""

import pytest

from pipeline import arguments
from pipeline.errors import USAGE, UserError


def test_a_gate_takes_any_metric_and_says_which_one_lacks_its_value():
    words = ["cifar10", "--gate.at-least", "recall[label=cat]", "0.5", "accuracy", "0.7"]
    assert arguments.parse("run", words)[1].gate.at_least == {"recall[label=cat]": 0.5, "accuracy": 0.7}
    with pytest.raises(UserError, match="'recall' has no value") as raised:
        arguments.parse("run", ["cifar10", "--gate.at-least", "recall"])
    assert raised.value.code == USAGE


def test_a_runners_own_options_are_one_quoted_word():
    words = ["cifar10", "--data.runner", "FlinkRunner", "--data.runner-options=--parallelism=2 --name='a b'"]
    assert arguments.parse("run", words)[1].data.runner_options == ("--parallelism=2", "--name=a b")
