"""How every benchmark here measures: peers take turns in the same process, and medians over the turns are compared."""

import statistics
import time
from collections.abc import Callable


def turns(peers: dict[str, Callable[[], object]], rounds: int = 9, seconds: float = 0.3) -> dict[str, float]:
    """Milliseconds a call for each peer: the median over `rounds` turns of about `seconds` each.

    Every peer is called twice first (tracing, compiling). Turns alternate, so that other work of the machine meets all.
    """
    calls = {}
    for name, call in peers.items():
        call()
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        calls[name] = max(1, min(2000, round(seconds / max(once, 1e-6))))
    spent: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, call in peers.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                call()
            spent[name].append((time.perf_counter() - start) / calls[name] * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def table(rows: list[list], heads: list[str]) -> None:
    """Prints a Markdown table; floats with three significant digits."""
    cells = [heads, ["---"] * len(heads), *([_cell(value) for value in row] for row in rows)]
    for row in cells:
        print("| " + " | ".join(row) + " |", flush=True)


def _cell(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
