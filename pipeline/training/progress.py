"""What a run shows while it trains: a bar on a terminal, a plain line every few seconds anywhere else."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Context manager around a training loop of `total_steps` updates of `examples` examples, begun at `start_step`.

    Writes to stderr, or to `file`. `clock` gives seconds.
    """

    def __init__(
        self,
        total_steps: int,
        examples: float,
        start_step: int = 0,
        *,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._examples, self._start = total_steps, examples, start_step
        self._file = sys.stderr if file is None else file
        self._clock = clock
        self._next_line = -math.inf
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        console = Console(file=self._file)
        # not console.is_terminal: CI services force colours on, and a bar redrawn into a log file is unreadable
        if self._file.isatty() and not console.is_dumb_terminal:
            steps, numbers = TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[numbers]}")
            self._bar = Bar(steps, BarColumn(bar_width=None), numbers, console=console, expand=True)
            self._task = self._bar.add_task("", total=self._total, completed=self._start, numbers="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(
        self, step: int, loss: float, learning_rate: float, gradient_norm: float, examples_per_second: float
    ) -> None:
        """Shows the state after `step` updates."""
        left = (self._total - step) * self._examples / examples_per_second if examples_per_second > 0 else math.nan
        numbers = (
            f"loss {loss:.4g}  rate {learning_rate:.2e}  |g| {gradient_norm:.3g}  "
            f"{examples_per_second:,.0f}/s  {_duration(left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + SECONDS_BETWEEN_LINES
            self._print(f"step {step}/{self._total}  {numbers}")

    def epoch(self, epoch: int, epochs: int, metrics: Mapping[str, float], best: bool) -> None:
        """Leaves a line with the validation metrics of an epoch; `best` marks the best so far."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._print(f"epoch {epoch}/{epochs}  {values}{'  best so far' if best else ''}")

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(Text(line, style="bold" if line.endswith("best so far") else ""))
        else:
            print(line, file=self._file, flush=True)


def _duration(seconds: float) -> str:
    """1:02:03 or 2:03; --:-- where there is no telling."""
    if not math.isfinite(seconds):
        return "--:--"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
