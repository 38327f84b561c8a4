"""What docs/optimizers.md prints runs, and it names all there is."""

import re
import runpy
from pathlib import Path

import keras
import pytest

import custom_optimizers
from custom_optimizers.wrapper import Wrapper

PAGE = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
INNER = custom_optimizers.AdamW
ROWS, COLUMNS = 30, 20


def only_code() -> str:
    """The python blocks, one after another, each line where it stands on the page."""
    lines, inside = [], False
    for line in PAGE.splitlines():
        fence = line.startswith("```")
        inside = line == "```python" or (inside and not fence)
        lines.append(line if inside and not fence else "")
    return "\n".join(lines)


def test_the_code_of_the_page_runs_from_top_to_bottom(tmp_path):
    path = tmp_path / "optimizers.py"
    path.write_text(only_code())
    names = runpy.run_path(str(path))
    assert isinstance(names["optimizer"], custom_optimizers.Chain)


def test_every_public_name_stands_on_the_page():
    assert [name for name in custom_optimizers.__all__ if not re.search(rf"`{name}\b", PAGE)] == []


def table() -> list[tuple[str, str]]:
    """(name, state) of each optimizer in the tables of what there is."""
    section = PAGE.partition("## What there is")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    return [(name, row[2]) for row in rows for name in re.findall(r"`(\w+)", row[0]) if is_optimizer(name)]


def is_optimizer(name: str) -> bool:
    value = getattr(custom_optimizers, name, None)
    rule = isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    return rule and name != "Optimizer"  # the base of them all


def test_each_optimizer_has_one_row():
    assert sorted(name for name, _ in table()) == sorted(filter(is_optimizer, custom_optimizers.__all__))


@pytest.mark.parametrize(("name", "state"), table())
def test_the_state_is_as_large_as_its_row_says(name, state):
    rule = getattr(custom_optimizers, name)
    around = issubclass(rule, Wrapper | keras.optimizers.LossScaleOptimizer)
    optimizer = rule(INNER()) if around else rule()
    with keras.name_scope("dense"):
        optimizer.build([keras.Variable("ones", (ROWS, COLUMNS), name="kernel")])
    size = sum(variable.value.shape.num_elements() for variable in optimizer.variables)
    unit = ROWS if "a row" in state else ROWS * COLUMNS
    said = int(re.match(r"\+?(\d)", state)[1]) * unit + (2 * unit if around else 0)
    said += 2 * (ROWS**2 + COLUMNS**2) if "2 (m^2 + n^2)" in state else 0
    assert 0 <= size - said < 15  # what is kept once, whatever the size
