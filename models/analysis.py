"""What preprocessing learned over the whole corpus, as the models read it from a records directory.

A directory holds `analysis.json` and, by task:

    image           analysis.json: classes, class_counts, mean and variance per channel (of pixels scaled to [0, 1])
    sentiment       analysis.json: classes, class_counts
                    vocabulary.tsv: token<TAB>count, most frequent first
    recommendation  analysis.json: global_mean, lowest, highest
                    users.jsonl: {"id", "count", "items": [ids rated in training]}, items.jsonl: {"id", "count"}, both
                    sorted by id
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageAnalysis:
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of the training pixels scaled to [0, 1]."""
    variance: tuple[float, ...]


@dataclass(frozen=True)
class TextAnalysis:
    classes: tuple[str, ...]
    """Two; the second is the positive one."""
    vocabulary: Path
    """token<TAB>count, most frequent first, ties in byte order."""


@dataclass(frozen=True)
class RatingsAnalysis:
    users: tuple[str, ...]
    items: tuple[str, ...]
    user_counts: tuple[int, ...]
    """Training ratings of each user, in the order of `users`."""
    seen: tuple[tuple[str, ...], ...]
    """The items each user rated in training, in the order of `users`."""
    global_mean: float
    lowest: float
    highest: float
    """The range of the training ratings; predictions are clipped to it."""


Analysis = ImageAnalysis | TextAnalysis | RatingsAnalysis


def load(directory: Path, task: str) -> Analysis:
    """Reads the analysis of a records directory for `task`."""
    directory = Path(directory)
    values = json.loads((directory / "analysis.json").read_text(encoding="utf-8"))
    if task == "image":
        return ImageAnalysis(tuple(values["classes"]), tuple(values["mean"]), tuple(values["variance"]))
    if task == "sentiment":
        return TextAnalysis(tuple(values["classes"]), directory / "vocabulary.tsv")
    users, items = (_lines(directory / name) for name in ("users.jsonl", "items.jsonl"))
    return RatingsAnalysis(
        users=tuple(u["id"] for u in users),
        items=tuple(i["id"] for i in items),
        user_counts=tuple(u["count"] for u in users),
        seen=tuple(tuple(u["items"]) for u in users),
        global_mean=values["global_mean"],
        lowest=values["lowest"],
        highest=values["highest"],
    )


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
