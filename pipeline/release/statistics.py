"""What the model's inputs look like, for the server's drift monitor: assets.extra/statistics.json of an export.

    {"format": 1, "rows": 500, "features": {"user_id": {"kind": "id", "known": "…", "measures":
        {"unknown": {"edges": [0.0], "shares": [0.98, 0.02]}}}}}

Taken over validation rows, which the model was not fitted to: what is unknown there is what to expect of clients.
`known` holds the CRC-32 of every known word or id, sorted, as base64 of little-endian uint32: it tells a server who is
new, and no reader who is not. The measures are those of serving/server/drift.py; a test holds the two together.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models.analysis import Analysis, RatingsAnalysis, TextAnalysis

ROWS = 500
_BINS = 10
_WORD = re.compile(r"[\w']+")


def write(path: Path, rows: dict[str, np.ndarray], analysis: Analysis, options: Any) -> None:
    """`rows` as `records.load` gives them, `options` those of the model."""
    count = len(next(iter(rows.values())))
    chosen = {name: values[:: max(1, count // ROWS)][:ROWS] for name, values in rows.items()}
    statistics = {"format": 1, "rows": min(count, ROWS), "features": features(chosen, analysis, options)}
    path.write_text(json.dumps(statistics, sort_keys=True))


def features(rows: dict[str, np.ndarray], analysis: Analysis, options: Any) -> dict[str, Any]:
    """By the name of the input. No measure is made of values that are not finite, or of no row."""
    if isinstance(analysis, RatingsAnalysis):
        known = {"user_id": analysis.users, "item_id": analysis.items}
        return {name: _id(rows[name], ids) for name, ids in known.items()}
    if isinstance(analysis, TextAnalysis):
        with open(analysis.vocabulary, encoding="utf-8", newline="\n") as file:
            words = [line.split("\t")[0] for line in file][: options.vocabulary_size]
        return {"text": _text(rows["text"], words)}
    image = _image(rows["image_bytes"])
    return {"image_bytes": image, "image": image}


def _text(texts: Iterable[bytes], vocabulary: Iterable[str]) -> dict[str, Any]:
    known = {word.encode() for word in vocabulary}
    words = [_WORD.findall(text.decode("utf-8", "replace").lower()) for text in texts]
    unknown = [sum(word.encode() not in known for word in each) / len(each) for each in words if each]
    measures = {"words": _histogram([len(each) for each in words]), "unknown": _histogram(unknown)}
    return {"kind": "text", "known": _codes(known), "measures": measures}


def _id(ids: Iterable[bytes], known: Iterable[str]) -> dict[str, Any]:
    names = {name.encode() for name in known}
    unknown = _histogram([float(name not in names) for name in ids])
    return {"kind": "id", "known": _codes(names), "measures": {"unknown": unknown}}


def _image(images: Iterable[bytes]) -> dict[str, Any]:
    pixels = [tf.io.decode_image(data, expand_animations=False).numpy() / 255 for data in images]
    measures = {"contrast": _histogram([float(each.std()) for each in pixels])}
    for channel in range(min(each.shape[-1] for each in pixels)):
        measures[f"mean_{channel}"] = _histogram([float(each[..., channel].mean()) for each in pixels])
    return {"kind": "image", "measures": measures}


def _histogram(values: Iterable[float]) -> dict[str, list[float]]:
    """Upper edges at the deciles, equal ones once, and the share of the values in each bin; the last has no edge."""
    found = np.asarray(list(values), np.float64)
    if not len(found):
        return {"edges": [], "shares": [1.0]}
    edges = np.unique(np.quantile(found, np.arange(1, _BINS) / _BINS))
    counts = np.bincount(np.searchsorted(edges, found, side="left"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "shares": (counts / len(found)).tolist()}


def _codes(words: Iterable[bytes]) -> str:
    codes = np.array(sorted({zlib.crc32(word) for word in words}), "<u4")
    return base64.b64encode(codes.tobytes()).decode()
