"""JSON as TF Serving's parser (rapidjson) takes it, with its messages and byte offsets.

Other than Python's: NaN and Infinity in several spellings are numbers, the first of duplicate keys wins, text after the
first document is ignored, nesting has no limit, integers over 64 bits are doubles, and bytes that are no UTF-8 are kept
(as surrogate escapes). orjson parses what means the same in both; the parser below takes the rest, and finds the error.
"""

import math
import re
from typing import Any

import orjson

from serving.server.errors import RequestError, invalid

_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \n\r\t]*")
_PLAIN_STRING = re.compile(rb'"([^"\\\x00-\x1f]*)"')
_STRING_PART = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NON_FINITE = re.compile(rb"-?(?:NaN|Inf(?:inity)?)")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_LITERALS = {b"t": (b"true", True), b"f": (b"false", False), b"n": (b"null", None)}
_ESCAPES = {b'"': '"', b"\\": "\\", b"/": "/", b"b": "\b", b"f": "\f", b"n": "\n", b"r": "\r", b"t": "\t"}


def parse(body: bytes) -> Any:
    """The first document in `body`. Raises RequestError(INVALID_ARGUMENT)."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _Parser(body).document()
    # a duplicate key, or a colon in a string, shows as more colons than keys
    return value if body.count(b":") == _count_keys(value) else _Parser(body).document()


def _count_keys(value: Any) -> int:
    """Keys of all objects, but for those in lists that begin with a number or a text: too few is only slower."""
    count, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            count += len(item)
            pending.extend(item.values())
        elif isinstance(item, list) and item and isinstance(item[0], dict | list):
            pending.extend(item)
    return count


class _Parser:
    """Iterative, so that depth costs memory and not the stack. Byte 0 ends the text, as in rapidjson."""

    def __init__(self, body: bytes):
        self._text = body + b"\0"
        self._at = len(_BOM) if body.startswith(_BOM) else 0

    def document(self) -> Any:
        if self._next() in b"\0]},:":
            raise self._error("The document is empty.")
        containers: list[Any] = []
        keys: list[str] = []  # of the open objects: where the value being read belongs
        while True:
            value, opened = self._value()
            if opened:
                containers.append(value)
                if isinstance(value, dict):
                    keys.append(self._key())
                continue
            while containers:
                holder = containers[-1]
                if isinstance(holder, list):
                    holder.append(value)
                    if self._goes_on(b"]", "Missing a comma or ] after an array element."):
                        break
                else:
                    holder.setdefault(keys.pop(), value)
                    if self._goes_on(b"}", "Missing a comma or } after an object member."):
                        keys.append(self._key())
                        break
                value = containers.pop()
            else:
                return value

    def _next(self) -> bytes:
        """The next byte that is no white space, without taking it."""
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches nothing, too
        return self._text[self._at : self._at + 1]

    def _goes_on(self, closing: bytes, otherwise: str) -> bool:
        found = self._next()
        if found not in (b",", closing):
            raise self._error(otherwise)
        self._at += 1
        return found == b","

    def _key(self) -> str:
        if self._next() != b'"':
            raise self._error("Missing a name for object member.")
        key = self._string()
        if self._next() != b":":
            raise self._error("Missing a colon after a name of object member.")
        self._at += 1
        return key

    def _value(self) -> tuple[Any, bool]:
        """A value, and whether it is a container whose first member comes next."""
        first = self._next()
        if first in (b"{", b"["):
            self._at += 1
            empty: Any = {} if first == b"{" else []
            if self._next() == (b"}" if first == b"{" else b"]"):
                self._at += 1
                return empty, False
            return empty, True
        if first == b'"':
            return self._string(), False
        if first in _LITERALS:
            return self._literal(*_LITERALS[first]), False
        return self._number(), False

    def _literal(self, word: bytes, value: Any) -> Any:
        for letter in word:
            if self._text[self._at] != letter:
                raise self._error("Invalid value.")
            self._at += 1
        return value

    def _number(self) -> int | float:
        start = self._at
        match = _NUMBER.match(self._text, start)
        if not match:
            return self._non_finite()
        self._at = match.end()
        fraction, exponent = match.groups()
        following = self._text[self._at : self._at + 1]
        if following == b"." and not fraction and not exponent:
            self._at += 1
            raise self._error("Miss fraction part in number.")
        if following in (b"e", b"E") and not exponent:
            self._at += 2 if self._text[self._at + 1 : self._at + 2] in (b"+", b"-") else 1
            raise self._error("Miss exponent in number.")
        if not (fraction or exponent):
            digits = match.group()
            if len(digits) <= 20 and -(2**63) <= (integer := int(digits)) < 2**64:
                return integer
        number = float(match.group())
        if math.isinf(number):
            self._at = start
            raise self._error("Number too big to be stored in double.")
        return number

    def _non_finite(self) -> float:
        match = _NON_FINITE.match(self._text, self._at)
        if not match:
            if self._text[self._at : self._at + 1] == b"-":
                self._at += 1
            raise self._error("Invalid value.")
        self._at = match.end()
        return float(match.group())

    def _string(self) -> str:
        plain = _PLAIN_STRING.match(self._text, self._at)
        if plain:
            self._at = plain.end()
            return plain.group(1).decode("utf-8", "surrogateescape")
        self._at += 1
        parts = []
        while True:
            part = _STRING_PART.match(self._text, self._at)
            parts.append(part.group().decode("utf-8", "surrogateescape"))  # type: ignore[union-attr]
            self._at = part.end()  # type: ignore[union-attr]
            stop = self._text[self._at : self._at + 1]
            if stop == b'"':
                self._at += 1
                return "".join(parts)
            if stop == b"\\":
                parts.append(self._escape())
            elif stop == b"\0":
                raise self._error("Missing a closing quotation mark in string.")
            else:
                raise self._error("Invalid encoding in string.")

    def _escape(self) -> str:
        """What a backslash sequence means; errors are reported at the backslash."""
        letter = self._text[self._at + 1 : self._at + 2]
        if letter in _ESCAPES:
            self._at += 2
            return _ESCAPES[letter]
        if letter != b"u":
            raise self._error("Invalid escape character in string.")
        high = self._hex(self._at + 2)
        if not 0xD800 <= high <= 0xDFFF:
            self._at += 6
            return chr(high)
        paired = high <= 0xDBFF and self._text[self._at + 6 : self._at + 8] == b"\\u"
        low = self._hex(self._at + 8) if paired else 0
        if not 0xDC00 <= low <= 0xDFFF:
            raise self._error("The surrogate pair in string is invalid.")
        self._at += 12
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))

    def _hex(self, at: int) -> int:
        match = _HEX.match(self._text, at)
        if not match:
            raise self._error("Incorrect hex digit after \\u escape in string.")
        return int(match.group(), 16)

    def _error(self, message: str) -> RequestError:
        return invalid(f"JSON Parse error: {message} at offset: {self._at}")
