"""JSON as TF Serving's parser (rapidjson) takes it, with its messages and byte offsets.

Other than Python's: NaN and Infinity in several spellings are numbers, the first of duplicate keys wins, text after the
first document is ignored, nesting has no limit, integers over 64 bits are doubles, and bytes that are no UTF-8 are kept
(as surrogate escapes). orjson parses what means the same in both; the parser below takes the rest, and finds the error.
"""

import re
from typing import Any

import orjson

from serving.server.errors import RequestError, invalid

_BOM = re.compile(b"\xef?\xbb?\xbf?")
_SPACE = re.compile(rb"[ \n\r\t]*")
_PLAIN_STRING = re.compile(rb'"([^"\\\x00-\x1f]*)"')
_STRING_PART = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NON_FINITE = re.compile(rb"-?(?:NaN|Inf(?:inity|(?!i)))")
_NON_FINITE_PART = re.compile(rb"-?(?:N(?:a)?|I(?:n(?:f(?:i(?:n(?:i(?:t)?)?)?)?)?)?)?")
_COLON_OF_KEY = re.compile(rb'"[ \n\r\t]*:')
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_TENTH_OF_MAX = 1.7976931348623157e307
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
    # each key has a colon of its own: if no key is missing, none came twice
    if _has_keys(value, body.count(b":")) or _has_keys(value, len(_COLON_OF_KEY.findall(body))):
        return value
    return _Parser(body).document()


def _has_keys(value: Any, wanted: int) -> bool:
    """Whether the objects have `wanted` keys in all; of a list, only members of the first one's type are looked at."""
    pending = [value]
    while pending:
        item = pending.pop()
        if type(item) is list and item and type(item[0]) is list:
            pending.extend(item)
            continue
        objects = item if type(item) is list else [item]
        objects = [member for member in objects if type(member) is dict]
        wanted -= sum(map(len, objects))
        if not wanted:
            return True
        for member in objects:
            pending.extend(member.values())
    return not wanted


class _Parser:
    """Iterative, so that depth costs memory and not the stack. Byte 0 ends the text, as in rapidjson."""

    def __init__(self, body: bytes):
        self._text = body + b"\0"
        self._at = _BOM.match(body).end()  # type: ignore[union-attr]  # matches nothing, too

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
                    if self._goes_on(b"]", "Missing a comma or ']' after an array element."):
                        break
                else:
                    holder.setdefault(keys.pop(), value)
                    if self._goes_on(b"}", "Missing a comma or '}' after an object member."):
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
        whole, fraction, exponent = match.groups()
        if len(whole) > 308 and abs(float(whole[:-1])) >= _TENTH_OF_MAX:
            raise self._error("Number too big to be stored in double.")
        self._at = match.end()
        following = self._text[self._at : self._at + 1]
        if following == b"." and not fraction and not exponent:
            self._at += 1
            raise self._error("Miss fraction part in number.")
        if following in (b"e", b"E") and not exponent:
            self._at += 2 if self._text[self._at + 1 : self._at + 2] in (b"+", b"-") else 1
            raise self._error("Miss exponent in number.")
        if not (fraction or exponent) and len(whole) <= 20 and -(2**63) <= (integer := int(whole)) < 2**64:
            return integer
        power = (exponent or b"")[1:].lstrip(b"+0")
        if power[:1] not in (b"", b"-") and (len(power) > 9 or int(power) > 308 + len((fraction or b".")[1:])):
            self._at = start
            raise self._error("Number too big to be stored in double.")
        return float(match.group())  # 2e308 still passes, as infinity

    def _non_finite(self) -> float:
        match = _NON_FINITE.match(self._text, self._at)
        if not match:
            self._at = _NON_FINITE_PART.match(self._text, self._at).end()  # type: ignore[union-attr]
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
            else:  # a control character
                raise self._error("Invalid escape character in string.")

    def _escape(self) -> str:
        """What a backslash sequence means; errors are reported at the backslash."""
        letter = self._text[self._at + 1 : self._at + 2]
        if letter in _ESCAPES:
            self._at += 2
            return _ESCAPES[letter]
        if letter != b"u":
            raise self._error("Invalid escape character in string.")
        code, length = self._hex(self._at + 2), 6
        if 0xD800 <= code <= 0xDBFF:
            low = self._hex(self._at + 8) if self._text[self._at + 6 : self._at + 8] == b"\\u" else 0
            if not 0xDC00 <= low <= 0xDFFF:
                raise self._error("The surrogate pair in string is invalid.")
            code, length = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00), 12
        self._at += length
        # a second half alone is taken: its three bytes, though they are no UTF-8
        return chr(code).encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")

    def _hex(self, at: int) -> int:
        match = _HEX.match(self._text, at)
        if not match:
            raise self._error("Incorrect hex digit after \\u escape in string.")
        return int(match.group(), 16)

    def _error(self, message: str) -> RequestError:
        return invalid(f"JSON Parse error: {message} at offset: {self._at}")
