"""Images: JPEG or PNG that TensorFlow can decode; mean and variance of each channel."""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.preprocess import rows
from pipeline.preprocess.rows import BadRow

MAX_PIXELS = 40_000_000
"""A header that claims more is refused before anything is decoded."""
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"


@dataclass
class Pixels:
    """Exact sums over pixel values 0..255: integers, so the order of adding cannot change a bit."""

    count: int
    """Pixels of one channel."""
    total: list[int]
    """Sum of the values, per channel."""
    squares: list[int]
    """Sum of their squares, per channel."""


@dataclass(frozen=True)
class Image:
    classes: tuple[str, ...]
    height: int
    width: int
    channels: int

    def clean(self, raw: dict[str, Any]) -> dict[str, Any]:
        row = {"id": rows.string(raw, "id"), "label": rows.label(raw, self.classes), **rows.group(raw)}
        data = rows.given(raw, "image_bytes")
        pixels = self.decode(data).reshape(-1, self.channels).astype(np.int64)  # [height * width, channels]
        sums = (pixels.sum(0).tolist(), (pixels * pixels).sum(0).tolist())
        return {**row, "image_bytes": data, "sums": sums}

    def decode(self, data: Any) -> np.ndarray:
        """uint8 [height, width, channels], as the model's input sees the image. Raises BadRow."""
        if not isinstance(data, bytes):
            raise BadRow("image_bytes is not bytes", data)
        if not data:
            raise BadRow("image of 0 bytes")
        if not data.startswith((PNG, JPEG)):
            raise BadRow("image is neither JPEG nor PNG", data)
        width, height = size(data)
        if width * height > MAX_PIXELS:
            raise BadRow(f"image of more than {MAX_PIXELS // 10**6} megapixels", f"{width}x{height}")
        try:
            image = tf.io.decode_image(data, self.channels, expand_animations=False)  # [h, w, channels]
        except tf.errors.OpError:
            raise BadRow("image is truncated or corrupt", data) from None
        if image.shape[:2] != (self.height, self.width):
            from models.image import resize  # brings Keras, which only images of another size should pay for

            image = resize(image[None], (self.height, self.width))[0]
        return image.numpy()

    def content(self, row: dict[str, Any]) -> bytes:
        return rows.grouped(row, row["image_bytes"])

    def part(self, members: Iterable[dict[str, Any]]) -> Pixels:
        part = Pixels(0, [0] * self.channels, [0] * self.channels)
        for row in members:
            self.add(part, Pixels(self.height * self.width, *row["sums"]))
        return part

    def add(self, into: Pixels, part: Pixels) -> None:
        into.count += part.count
        into.total = [a + b for a, b in zip(into.total, part.total, strict=True)]
        into.squares = [a + b for a, b in zip(into.squares, part.squares, strict=True)]

    def write(self, part: Pixels, class_counts: dict[str, int], directory: Path) -> None:
        """mean = S / 255 n and variance = (n Q - S^2) / (255 n)^2, with n pixels, S their sum, Q the sum of squares."""
        n = part.count
        values = {
            "classes": list(class_counts),
            "class_counts": class_counts,
            "mean": [s / (255 * n) for s in part.total],
            "variance": [(n * q - s * s) / (255 * n) ** 2 for s, q in zip(part.total, part.squares, strict=True)],
        }
        (directory / "analysis.json").write_text(json.dumps(values, indent=1) + "\n")


def size(data: bytes) -> tuple[int, int]:
    """(width, height) that the header of a JPEG or PNG claims. Raises BadRow where the header is cut short."""
    try:
        if data.startswith(PNG):
            return struct.unpack_from(">II", data, 16)
        at = 2
        while True:
            marker, length = struct.unpack_from(">HH", data, at)
            if marker == 0xFFFF:  # a fill byte
                at += 1
            elif 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):  # a start of frame
                height, width = struct.unpack_from(">HH", data, at + 5)
                return width, height
            else:
                at += 2 + length
    except struct.error:
        raise BadRow("image is truncated or corrupt", data) from None
