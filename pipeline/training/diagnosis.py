"""What the monitor lines of a journal mean, in words: gradients that vanish or explode, dead units, updates of a wrong
size.

The bounds are orders of magnitude apart from what healthy nets show, so that a warning means something.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

Line = Mapping[str, Any]
VANISHING = 1e-5  # a layer's gradient, as a share of that of the layer with the largest
EXPLODING = 100.0  # gradient / weight
DEAD = 0.5  # share of a layer's units
LARGE, SMALL = 0.1, 1e-6  # update / weight; about 1e-3 is healthy
NAMED = 3  # layers, in a sentence

ADVICE = {
    "vanishing gradients": "what lies there hardly learns; use batch normalisation (--model.batch-norm), fewer layers, "
    "ReLU instead of sigmoid or tanh, or shortcuts around layers",
    "exploding gradients": "clip (--optimizer.clip global_norm), lower --optimizer.learning-rate or add "
    "--optimizer.warmup-epochs, and scale inputs and targets to about 1",
    "dead units": "they pass no gradient and stay so; lower --optimizer.learning-rate, add "
    "--optimizer.warmup-epochs or use batch normalisation (--model.batch-norm)",
    "updates too large": "lower --optimizer.learning-rate or add --optimizer.warmup-epochs",
    "updates too small": "raise --optimizer.learning-rate",
}


@dataclass(frozen=True)
class Finding:
    """`kind` is a key of ADVICE; `epochs`: those in which it showed, ascending; `words` say where, how much and what to
    do."""

    kind: str
    epochs: tuple[int, ...]
    words: str


def diagnose(lines: Sequence[Line]) -> list[Finding]:
    """What the monitor lines among `lines` show, the earliest first; each kind once, as its last epoch shows it."""
    monitored = [line for line in lines if line["split"] == "monitor"]
    seen: dict[str, tuple[list[int], str]] = {}
    still = True  # no update was of a usual size so far
    for i, line in enumerate(monitored):
        symptoms = [*_symptoms(line)]
        still = still and (ratio := line.get("update_to_weight", math.nan)) < SMALL
        # Not the first epoch alone, whose schedule may end at 0; nor a later one, for what has converged rests.
        if still and i:
            symptoms.append(("updates too small", f"one update changes the weights by {ratio:.0e} (1e-3 is usual)"))
        for kind, detail in symptoms:
            epochs, _ = seen.get(kind, ([], ""))
            seen[kind] = [*epochs, int(line["epoch"])], detail
    last = int(monitored[-1]["epoch"]) if monitored else 0
    return [
        Finding(kind, tuple(epochs), f"{detail}, {_when(epochs, last)}: {ADVICE[kind]}.")
        for kind, (epochs, detail) in seen.items()
    ]


def warn(lines: Sequence[Line]) -> None:
    """Logs what the last of these monitor lines shows for the first time."""
    for finding in diagnose(lines):
        if finding.epochs == (int(lines[-1]["epoch"]),):
            log.warning("%s", finding.words)


def gradients(line: Line) -> dict[str, float]:
    """Layer -> |g| / |w|."""
    return _named(line, "gradient/")


def _symptoms(line: Line) -> Iterator[tuple[str, str]]:
    """(kind, where and how much) of what one monitor line shows by itself."""
    layers = gradients(line)
    largest = max((g for g in layers.values() if math.isfinite(g)), default=0.0)
    if weak := {layer: g for layer, g in layers.items() if g < VANISHING * largest}:
        yield (
            "vanishing gradients",
            f"the gradient nearly vanishes in {_some(sorted(weak, key=weak.__getitem__))} "
            f"({min(weak.values()):.0e} of the weights, elsewhere up to {largest:.0e})",
        )
    if strong := {layer: g for layer, g in layers.items() if not g <= EXPLODING}:
        yield (
            "exploding gradients",
            f"the gradient is {max(strong.values()):.0e} times the weights in "
            f"{_some(sorted(strong, key=strong.__getitem__, reverse=True))}",
        )
    if dead := {layer: share for layer, share in _named(line, "dead_units/").items() if share > DEAD}:
        worst = sorted(dead, key=dead.__getitem__, reverse=True)
        yield "dead units", f"up to {max(dead.values()):.0%} of the units are 0 for every example in {_some(worst)}"
    if (ratio := line.get("update_to_weight", math.nan)) > LARGE:
        yield "updates too large", f"one update changes the weights by {ratio:.0%} (0.1% is usual)"


def _named(line: Line, prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}


def _some(layers: Sequence[str]) -> str:
    more = len(layers) - NAMED
    return ", ".join(layers[:NAMED]) + (f" and {more} more layer{'s' if more > 1 else ''}" if more > 0 else "")


def _when(epochs: Sequence[int], last: int) -> str:
    if len(epochs) == last - epochs[0] + 1:
        return f"since epoch {epochs[0]}"
    return f"in epoch {epochs[0]}" if len(epochs) == 1 else f"in {len(epochs)} epochs, first in epoch {epochs[0]}"
