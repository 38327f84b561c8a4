"""Claims about the words after a command: options that take several, and what tyro says of wrong ones."""

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


UTF_8 = """\
\x1b[31m╭─\x1b[0m Unrecognized options \x1b[31m──────────────────╮
│ Unrecognized options: --train.bach-size, 3 │
│ ────────────────────────────────────────── │
│ Perhaps you meant:                         │
│     --train.batch-size INT                 │
╰────────────────────────────────────────────╯
"""
ASCII = """\
 Unrecognized options
 --------------------------------------------
  Unrecognized options: --train.bach-size, 3
  -------------------------------------------
  Perhaps you meant:
      --train.batch-size INT

"""


@pytest.mark.parametrize("box", [UTF_8, ASCII])
def test_a_framed_error_is_read_in_utf_8_and_ascii_coloured_or_not(box):
    said = "Unrecognized options: --train.bach-size, 3. Perhaps you meant --train.batch-size."
    assert arguments.in_one_line(box) == said
