"""The curves of a run as inline SVG: no fonts, no fixed colours, no dates, so that a page restyles them and equal logs
give equal bytes.

Text and lines take their colour from the page: currentColor for ink, the custom property --accent for what matters.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from pipeline.training.diagnosis import gradients

Series = tuple[np.ndarray, np.ndarray]
POINTS = 240  # more than a figure this wide can show
# Stand-ins that matplotlib writes as they are; black it would leave out, as SVG's default.
INK, ACCENT = "#010101", "#020202"
SETTINGS = {
    "svg.hashsalt": "minibatch",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "lines.linewidth": 1.5,
}


@dataclass(frozen=True)
class Curve:
    """One figure: `svg` is markup made here, with no text from data in it; the other fields are plain text."""

    title: str
    svg: str
    keys: tuple[str, ...]
    """What is drawn, out of "training" (grey, a band for the range) and "validation" (accent)."""
    note: str = ""


def curves(lines: Sequence[dict[str, Any]], monitor: str | None, best_step: int | None) -> list[Curve]:
    """Loss, the monitored metric, learning rate, gradient norm and what monitors read, over steps; those of which the
    log has nothing are left out. `lines` as journal.read gives them; the best step is marked where validation is drawn.
    """
    wanted = [
        ("Loss", "loss", ("train", "val")),
        ("Learning rate", "learning_rate", ("train",)),
        ("Gradient norm", "gradient_norm", ("train",)),
        ("Update / weight", "update_to_weight", ("monitor",)),
        ("Gradient / weight: median and range over the layers", "gradient", ("layers",)),
        ("Dead units", "dead_units", ("monitor",)),
    ]
    if monitor not in (None, "loss"):
        wanted.insert(1, (f"Validation {monitor}", monitor, ("val",)))
    last = max((line["step"] for line in lines), default=0)
    drawn: list[Curve] = []
    for title, name, splits in wanted:
        series = {split: _layers(lines) if split == "layers" else _series(lines, split, name) for split in splits}
        series = {split: (steps, values) for split, (steps, values) in series.items() if len(steps)}
        if series:
            drawn.append(_draw(title, f"{name}-{len(drawn)}", series, best_step, last))
    return drawn


def _series(lines: Sequence[dict[str, Any]], split: str, name: str) -> Series:
    """Steps [n] and values [n] of a split that has the name; what is no number is NaN."""
    points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
    values = [value if isinstance(value, int | float) else math.nan for _, value in points]
    return np.array([step for step, _ in points]), np.array(values, np.float64)


def _layers(lines: Sequence[dict[str, Any]]) -> Series:
    """Steps [n] and the smallest, middle and largest finite |g| / |w| over the layers [n, 3]."""
    read = [(line["step"], [*gradients(line).values()]) for line in lines if line["split"] == "monitor"]
    finite = [(step, [g for g in values if math.isfinite(g)]) for step, values in read]
    points = [(step, np.quantile(values, (0, 0.5, 1))) for step, values in finite if values]
    return np.array([step for step, _ in points]), np.array([quantiles for _, quantiles in points])


def _draw(title: str, name: str, series: dict[str, Series], best: int | None, last: int) -> Curve:
    lost = sum(int((~np.isfinite(values)).sum()) for _, values in series.values())
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        axes = figure.add_subplot()
        if "train" in series:
            steps, low, mean, high = _bucketed(*series["train"])
            axes.fill_between(steps, low, high, color=INK, alpha=0.12, linewidth=0)
            axes.plot(steps, mean, color=INK, alpha=0.6)
        if "monitor" in series:
            axes.plot(*series["monitor"], color=INK, alpha=0.6, marker="o", markersize=3)
        if "layers" in series:
            steps, (low, middle, high) = series["layers"][0], series["layers"][1].T
            axes.fill_between(steps, low, high, color=INK, alpha=0.12, linewidth=0)
            axes.plot(steps, middle, color=INK, alpha=0.6, marker="o", markersize=3)
        if "val" in series:
            steps, values = series["val"]
            values = np.where(np.isfinite(values), values, np.nan)
            axes.plot(steps, values, color=ACCENT, marker="o", markersize=3)
            _mark_best(axes, steps, values, best)
        if not name.startswith("learning_rate"):  # a schedule is read by its shape
            _scale(axes, np.concatenate([values.ravel() for _, values in series.values()]))
        axes.set_xlim(0, max(last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("updates")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    keys = tuple(key for split, key in (("train", "training"), ("val", "validation")) if split in series)
    note = f"{lost} value{'s' if lost > 1 else ''} that {'are' if lost > 1 else 'is'} not finite cannot be drawn."
    return Curve(title, _inline(file.getvalue(), re.sub(r"\W", "-", name)), keys, note if lost else "")


def _bucketed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Last step, lowest, mean and highest finite value of at most POINTS groups of neighbours; NaN without any."""
    groups = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    finite = [values[g][np.isfinite(values[g])] for g in groups]
    ends = np.array([steps[g[-1]] for g in groups])
    low, mean, high = (np.array([f(v) if len(v) else np.nan for v in finite]) for f in (np.min, np.mean, np.max))
    return ends, low, mean, high


def _mark_best(axes: Axes, steps: np.ndarray, values: np.ndarray, best: int | None) -> None:
    at = np.flatnonzero(steps == best)
    if len(at) and np.isfinite(values[at[0]]):
        axes.axvline(steps[at[0]], color=ACCENT, linewidth=0.8, dashes=(3, 3))
        axes.plot(steps[at[0]], values[at[0]], color=ACCENT, marker="o", markersize=7, fillstyle="none")


def _scale(axes: Axes, values: np.ndarray) -> None:
    """Logarithmic where the values span more than two powers of ten; ticks are few and short."""
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() / np.quantile(finite, 0.05) > 100:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _inline(svg: str, prefix: str) -> str:
    """The <svg> element alone, to stand in a page beside others: no date, ids of its own, its colours the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"(\bid=\"|url\(#|xlink:href=\"#)", rf"\g<1>{prefix}-", svg).replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return svg.replace(INK, "currentColor").replace(ACCENT, "var(--accent)").strip()
