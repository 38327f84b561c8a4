"""Texts: UTF-8 with something in it; token counts and lengths by the model's own tokeniser."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import tensorflow as tf

from pipeline.preprocess import rows

BATCH = 1024
"""Texts in one call of the tokeniser."""
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass
class Tokens:
    counts: Counter[bytes]
    """Token -> occurrences."""
    lengths: Counter[int]
    """Tokens in a text -> texts."""


@dataclass(frozen=True)
class Sentiment:
    classes: tuple[str, ...]
    vocabulary_size: int

    def clean(self, raw: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": rows.string(raw, "id"),
            "label": rows.label(raw, self.classes),
            "text": rows.string(raw, "text"),
            **rows.group(raw),
        }

    def content(self, row: dict[str, Any]) -> bytes:
        return rows.grouped(row, row["text"].encode())

    def part(self, members: Iterable[dict[str, Any]]) -> Tokens:
        from models.sentiment import tokenise  # brings Keras, which only texts should pay for

        part = Tokens(Counter(), Counter())
        texts = [row["text"].encode() for row in members]
        for start in range(0, len(texts), BATCH):
            tokens = tokenise(tf.constant(texts[start : start + BATCH]))  # [batch, None]
            part.counts.update(tokens.flat_values.numpy().tolist())
            part.lengths.update(tokens.row_lengths().numpy().tolist())
        return part

    def add(self, into: Tokens, part: Tokens) -> None:
        into.counts.update(part.counts)
        into.lengths.update(part.lengths)

    def write(self, part: Tokens, class_counts: dict[str, int], directory: Path) -> None:
        values = {
            "classes": list(class_counts),
            "class_counts": class_counts,
            "token_quantiles": {str(q): quantile(part.lengths, q) for q in QUANTILES},
        }
        (directory / "analysis.json").write_text(json.dumps(values, indent=1) + "\n")
        ranked = sorted(part.counts.items(), key=lambda item: (-item[1], item[0]))[: self.vocabulary_size]
        with open(directory / "vocabulary.tsv", "wb") as file:
            file.writelines(b"%b\t%d\n" % item for item in ranked)


def quantile(counts: Counter[int], share: float) -> int:
    """The smallest value that at least `share` of the counted things do not exceed."""
    values = sorted(counts)
    needed = math.ceil(share * counts.total())
    reached = accumulate(counts[value] for value in values)
    return next(value for value, below in zip(values, reached, strict=True) if below >= needed)
