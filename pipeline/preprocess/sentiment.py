"""Texts: UTF-8 with something in it; token counts by the model's own tokeniser."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from pipeline.preprocess import rows

BATCH = 1024
"""Texts in one call of the tokeniser."""
Tokens = Counter[bytes]
"""Token -> occurrences."""


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

        part = Tokens()
        texts = [row["text"].encode() for row in members]
        for start in range(0, len(texts), BATCH):
            tokens = tokenise(tf.constant(texts[start : start + BATCH]))  # [batch, None]
            part.update(tokens.flat_values.numpy().tolist())
        return part

    def add(self, into: Tokens, part: Tokens) -> None:
        into.update(part)

    def write(self, part: Tokens, class_counts: dict[str, int], directory: Path) -> None:
        values = {"classes": list(class_counts), "class_counts": class_counts}
        (directory / "analysis.json").write_text(json.dumps(values, indent=1) + "\n")
        ranked = sorted(part.items(), key=lambda item: (-item[1], item[0]))[: self.vocabulary_size]
        with open(directory / "vocabulary.tsv", "wb") as file:
            file.writelines(b"%b\t%d\n" % item for item in ranked)
