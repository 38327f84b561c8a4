"""How every benchmark here measures: peers take turns, and medians over the turns are compared."""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any


def turns(peers: dict[str, Callable[[], object]], rounds: int = 9, seconds: float = 0.3) -> dict[str, float]:
    """Milliseconds a call for each peer: the median over `rounds` turns of about `seconds` each.

    Every peer is called twice first (tracing, compiling). Turns alternate, so that other work of the machine meets all.
    """
    taking = {name: _turn(call, seconds) for name, call in peers.items()}
    return _medians(taking, rounds)


def turns_apart(makers: dict[str, Callable[[], Any]], rounds: int = 9, seconds: float = 0.3) -> dict[str, float]:
    """The same where each maker makes its peer in a process of its own: thread pools and heaps of the others would slow
    it down. A peer whose package is not installed is left out. Makers must be picklable."""
    context = multiprocessing.get_context("spawn")
    taking: dict[str, Callable[[], float]] = {}
    pipes, processes = [], []
    try:
        for name, make in makers.items():
            here, there = context.Pipe()
            process = context.Process(target=_take_turns, args=(there, make, seconds), daemon=True)
            process.start()
            pipes.append(here)
            processes.append(process)
            there.close()
            if here.recv():  # one after another: none compiles beside another
                taking[name] = partial(_ask, here)
        return _medians(taking, rounds)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _take_turns(pipe, make: Callable[[], Any], seconds: float) -> None:
    try:
        call = make()
    except ImportError:
        pipe.send(False)
        return
    turn = _turn(call, seconds)
    pipe.send(True)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(turn())


def _ask(pipe) -> float:
    pipe.send(None)
    return pipe.recv()


def _turn(call: Callable[[], object], seconds: float) -> Callable[[], float]:
    """Milliseconds a call, over about `seconds`."""
    call()
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    calls = max(1, min(2000, round(seconds / max(once, 1e-6))))

    def turn() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls * 1e3

    return turn


def _medians(taking: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in taking}
    for _ in range(rounds):
        for name, turn in taking.items():
            spent[name].append(turn())
    return {name: statistics.median(times) for name, times in spent.items()}


def table(rows: list[list], heads: list[str]) -> None:
    """Prints a Markdown table; floats with three significant digits."""
    cells = [heads, ["---"] * len(heads), *([_cell(value) for value in row] for row in rows)]
    for row in cells:
        print("| " + " | ".join(row) + " |", flush=True)


def _cell(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
