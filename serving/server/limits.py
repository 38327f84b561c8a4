"""How much one request may ask for. A limit of 0 is none, which is what --profile=compatible starts with."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serving.server.call import Call
from serving.server.errors import Code, RequestError, invalid
from serving.server.flags import Flags
from serving.server.images import pixels

_MAX_INFLATED = 100 * 2**20  # TF Serving's
_ALWAYS_INFLATED = 2**20  # a short text of few different words shrinks more than any ratio allows
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # possessive: what is never closed is read once, too
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_REST = bytes(set(range(256)) - set(b"[]{}"))


class Range(NamedTuple):
    """What the values of an input may be, such as the ids that an embedding has rows for."""

    name: str
    low: float
    high: float

    def check(self, array: np.ndarray) -> None:
        outside = array[~((array >= self.low) & (array <= self.high))]
        if outside.size:
            raise invalid(f"Input {self.name} holds {outside[0]}, which is not within {self.low} and {self.high}.")


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 0
    gzip_ratio: float = 0
    json_depth: int = 0
    rows: int = 0
    image_pixels: int = 0
    arrival_seconds: float = 0
    connections: int = 0

    @classmethod
    def of(cls, flags: Flags) -> "Limits":
        return cls(
            flags.max_body_bytes,
            flags.max_gzip_ratio,
            flags.max_json_depth,
            flags.max_rows,
            flags.max_image_pixels,
            flags.max_arrival_seconds,
            flags.max_connections,
        )

    def check_size(self, size: int) -> None:
        """Raises RequestError (413) for a body of `size` bytes, before it is read where a header tells."""
        if self.body_bytes and size > self.body_bytes:
            raise _too_large(f"The request is larger than {self.body_bytes} bytes.")

    def inflated(self, body: bytes, encoding: str) -> bytes:
        """A gzip body unpacked. One that is broken, or over TF Serving's 100 MB, counts as empty, as there.

        Raises RequestError (413) over our limits; no more than the limit is ever unpacked.
        """
        if "gzip" not in encoding.lower():
            return body
        ours = [self.body_bytes] if self.body_bytes else []
        if self.gzip_ratio:
            ours.append(max(_ALWAYS_INFLATED, int(self.gzip_ratio * len(body))))
        allowed = min([_MAX_INFLATED, *ours])
        inflater = zlib.decompressobj(wbits=31)
        try:
            inflated = inflater.decompress(body, allowed + 1)
        except zlib.error:
            return b""
        if len(inflated) > allowed and ours:
            raise _too_large(f"The gzip body unpacks to more than {allowed} bytes.")
        return inflated if inflater.eof and len(inflated) <= allowed else b""

    def check_json(self, body: bytes) -> None:
        """Raises RequestError for JSON that nests too deep, before it is parsed."""
        limit = self.json_depth
        if limit and body.count(b"[") + body.count(b"{") > limit:
            brackets = _STRING.sub(b"", body).translate(_BRACKETS, _REST)
            for _ in range(limit):  # one level less each time
                brackets = brackets.replace(b"[]", b"")
            if b"[" in brackets:  # also what never closes, which the parser would refuse
                raise invalid(f"The JSON nests deeper than {limit}.")

    def check_call(self, call: Call, ranges: Mapping[str, Range]) -> None:
        """Raises RequestError for too many rows, for an image whose header declares too many pixels, and for a value
        out of the `ranges` by tensor name: what CPU kernels refuse, GPU kernels may answer with zeros."""
        for tensor, array in call.feeds.items():
            if tensor in ranges and array.dtype.kind in "iuf":  # another type is the signature's to refuse
                ranges[tensor].check(array)
            if self.rows and array.ndim and len(array) > self.rows:
                raise invalid(f"The request has {len(array)} rows; {self.rows} is the most here.")
            if self.image_pixels and array.dtype == object:
                for value in array.flat:
                    if pixels(value) > self.image_pixels:
                        raise invalid(
                            f"An image of {pixels(value)} pixels by its header; {self.image_pixels} is the most here."
                        )


def ranges_of(described: Mapping[str, Any], signatures: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges that statistics.json declares ("low" and "high" of an input), by tensor name."""
    return {
        info.name: Range(alias, described[alias]["low"], described[alias]["high"])
        for signature in signatures.values()
        for alias, info in signature.inputs.items()
        if {"low", "high"} <= described.get(alias, {}).keys()
    }


def _too_large(message: str) -> RequestError:
    return RequestError(Code.RESOURCE_EXHAUSTED, message, http=413)
