"""Counters, gauges and histograms, and their text as TF Serving's Prometheus page has it.

Ours, since prometheus-client writes HELP lines, adds _total to a counter's name and a _created series to each, where
TF Serving writes `# TYPE` lines only, braces even without labels, and buckets cut to six digits. Sums keep all digits.

A metric may be written from any thread: CPython changes threads between calls, never inside `cell[i] += 1`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence


def exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """Upper bounds of `count` buckets; one more, to infinity, follows them."""
    limits = [scale]
    while len(limits) < count:
        limits.append(limits[-1] * growth)
    return tuple(limits)


class Metric:
    """`name` with TF Serving's slashes. One cell for each tuple of label values that was seen."""

    kind = ""

    def __init__(self, name: str, *labels: str):
        self.name = name.replace("/", ":")
        self.labels = labels
        self._cells: dict[tuple[str, ...], list] = {}

    def forget(self, *values: str) -> None:
        """Drops the cells whose first labels have these values."""
        for key in [key for key in list(self._cells) if key[: len(values)] == values]:
            self._cells.pop(key, None)

    def lines(self) -> Iterator[str]:
        yield f"# TYPE {self.name} {self.kind}"
        for values, cell in list(self._cells.items()):
            pairs = zip(self.labels, values, strict=True)
            yield from self._series(",".join(f'{label}="{_escaped(value)}"' for label, value in pairs), cell)

    def _series(self, labels: str, cell: list) -> Iterator[str]:
        yield f"{self.name}{{{labels}}} {_number(cell[0])}"


class Counter(Metric):
    kind = "counter"

    def add(self, amount: float, *values: str) -> None:
        cell = self._cells.get(values)
        if cell is None:
            cell = self._cells.setdefault(values, [0])
        cell[0] += amount

    def first(self) -> int:
        """The value of the series that came first."""
        return int(next(iter(list(self._cells.values())), [0])[0])


class Gauge(Metric):
    kind = "gauge"

    def set(self, value: float, *values: str) -> None:
        self._cells[values] = [value]


class Histogram(Metric):
    kind = "histogram"

    def __init__(self, name: str, limits: Sequence[float], *labels: str):
        super().__init__(name, *labels)
        self._limits = limits

    def add(self, value: float, *values: str) -> None:
        """A value on a limit counts above it, as in TF Serving."""
        cell = self._cells.get(values)
        if cell is None:
            cell = self._cells.setdefault(values, [0] * (len(self._limits) + 2))
        cell[bisect_right(self._limits, value)] += 1
        cell[-1] += value

    def _series(self, labels: str, cell: list) -> Iterator[str]:
        comma = "," if labels else ""
        total = 0
        for limit, count in zip([*(f"{limit:.6g}" for limit in self._limits), "+Inf"], cell, strict=False):
            total += count
            yield f'{self.name}_bucket{{{labels}{comma}le="{limit}"}} {total}'
        yield f"{self.name}_sum{{{labels}}} {_number(cell[-1])}"
        yield f"{self.name}_count{{{labels}}} {total}"


def page(metrics: Sequence[Metric]) -> str:
    """Every metric in the order of its name, with its type even before it has a value."""
    return "".join(f"{line}\n" for metric in sorted(metrics, key=lambda m: m.name) for line in metric.lines())


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
