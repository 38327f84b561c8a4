"""Predict requests in JSON, most with something wrong in them, and the HTTP status that the protocol gives each.

The oracle parses with Python's json and walks the values one by one; it shares no code with the server.
"""

import base64
import json
import re
from math import isinf, prod
from typing import Any

from hypothesis import strategies as st

from tests.serving.model_signatures import AVAILABLE, INPUTS, Shape, has_rows, runs

RANGES = {"int32": (-(2**31), 2**31), "uint8": (-(2**31), 2**31), "int64": (-(2**63), 2**63), "uint64": (0, 2**64)}
KEYS = ["x", "a", "b", "text", "f64", "i64", "flag", "u64", "image", "", "é", "no_such"]


class Raw(str):
    """JSON text that stands for itself."""


class Pairs(list):
    """A JSON object as (key, value) pairs, so that a key can come twice."""


def dump(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(k)}: {dump(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


GOOD = {
    "float": st.one_of(st.floats(allow_nan=True), st.integers(-(10**20), 10**20)),
    "double": st.one_of(st.floats(), st.integers(-(10**20), 10**20)),
    "half": st.floats(-1e4, 1e4),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "uint8": st.integers(0, 300),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "bool": st.booleans(),
    "string": st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.binary(max_size=5).map(lambda b: Pairs([("b64", base64.b64encode(b).decode())])),
    ),
}
STRANGE = st.sampled_from(
    [None, True, 1.5, 1.0, -1, 2**31, 2**63, 2**64, 10**25, 1e39, -1e308, "text", "", [], [[]], [1, [2]], Pairs([]),
     Raw("NaN"), Raw("-Infinity"), Raw("1e400"), Raw("1E5"), Raw("-0"), Raw("01"), Raw("+1"), Raw("1."), Raw("'a'"),
     Raw("0x1"), Raw("nul"), Raw('"\\ud83d\\ude00"'), Raw('"\\q"'), Raw('"a\tb"'), Raw("9" * 400),
     Pairs([("b64", "!")]), Pairs([("b64", 1)]), Pairs([("b64", "YQ=="), ("c", 1)]), Pairs([("b64", "")])]
)  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn, kind: str, shape: Shape) -> Any:
    if not shape:
        return draw(GOOD[kind])
    return [draw(tensors(kind, shape[1:])) for _ in range(shape[0])]


def spoil(draw: st.DrawFn, value: Any) -> Any:
    """A tensor with one place made strange: a value, or the length of a list."""
    if isinstance(value, list) and not isinstance(value, Pairs) and value and draw(st.integers(0, 4)):
        i = draw(st.integers(0, len(value) - 1))
        change = draw(st.integers(0, 5))
        if change == 0:
            return value[:i] + value[i + 1 :]
        if change == 1:
            return [*value, value[i]]
        return [*value[:i], spoil(draw, value[i]), *value[i + 1 :]]
    return draw(STRANGE)


def shapes_of(signature: str) -> st.SearchStrategy[Shape]:
    sizes = st.integers(1, 3)
    if signature == "pixels":
        return st.tuples(sizes, sizes, sizes, st.just(3))
    if signature == "matrix":
        return st.tuples(sizes, st.just(2))
    return st.lists(sizes, max_size=2).map(tuple)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """(model, what follows it in the path, body)."""
    model, signature = draw(st.sampled_from(sorted(INPUTS)))
    inputs = INPUTS[model, signature]
    first = draw(shapes_of(signature))
    rows = draw(st.booleans())
    count = draw(st.integers(1, 3))
    columns = {}
    for name, kind in inputs.items():
        shape = first if draw(st.integers(0, 3)) else draw(shapes_of(signature))
        columns[name] = draw(tensors(kind, (count, *(shape[1:] if signature in ("pixels", "matrix") else shape))
                                     if rows else shape))  # fmt: skip
    if draw(st.integers(0, 2)) == 0:
        name = draw(st.sampled_from(sorted(columns)))
        columns[name] = spoil(draw, columns[name])
    if draw(st.integers(0, 9)) == 0:
        columns.pop(draw(st.sampled_from(sorted(columns))))
    if draw(st.integers(0, 9)) == 0:
        columns[draw(st.sampled_from(KEYS))] = draw(STRANGE)
    members = Pairs([("signature_name", signature)] if signature != "serving_default" or draw(st.booleans()) else [])
    members += [("instances", as_rows(draw, columns)) if rows else ("inputs", as_columns(draw, columns))]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1]))):
        key = draw(st.sampled_from(["signature_name", "instances", "inputs", "other"]))
        members.insert(draw(st.integers(0, len(members))), (key, draw(STRANGE)))
    model = model if draw(st.integers(0, 19)) else "nobody"
    where = draw(st.sampled_from([""] * 12 + [f"/versions/{AVAILABLE.get(model, 1)}", "/versions/9", "/labels/none"]))
    text = dump(members if draw(st.integers(0, 29)) else draw(STRANGE)).encode("utf-8", "surrogatepass")
    return model, where, spoiled_text(draw, text)


def as_rows(draw: st.DrawFn, columns: dict[str, Any]) -> Any:
    lists = [value for value in columns.values() if isinstance(value, list) and not isinstance(value, Pairs)]
    if len(lists) != len(columns):
        return draw(STRANGE)
    if len(columns) == 1 and draw(st.booleans()):
        return lists[0]
    rows = [Pairs() for _ in range(max(map(len, lists), default=0))]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=False):
            row.append((name, value))
    return rows


def as_columns(draw: st.DrawFn, columns: dict[str, Any]) -> Any:
    if len(columns) == 1 and draw(st.booleans()):
        return next(iter(columns.values()))
    return Pairs(columns.items())


def spoiled_text(draw: st.DrawFn, text: bytes) -> bytes:
    change = draw(st.integers(0, 19))
    at = draw(st.integers(0, len(text)))
    if change == 0:
        return text[:at]
    if change == 1:
        return (
            text[:at] + draw(st.sampled_from([b"\0", b"\xff", b",", b"]", b"}", b'"', b" ", b"\\", b"1"])) + text[at:]
        )
    if change == 2:
        return text + draw(st.sampled_from([b" ", b"\0", b"junk", b"{}", b"\xff"]))
    return b"\xef\xbb\xbf" + text if change == 3 else text


class Refused(Exception):
    """`statuses`: more than one where the protocol file leaves it open."""

    def __init__(self, *statuses: int):
        super().__init__(statuses)
        self.statuses = set(statuses)


def expected(model: str, where: str, body: bytes) -> set[int]:
    """The statuses that may answer this predict request."""
    try:
        request = parsed(body)
        if not isinstance(request, dict) or not isinstance(request.get("signature_name", ""), str):
            raise Refused(400)
        if where.startswith("/labels/"):  # is looked up first, and no model here has one
            raise Refused(400)
        if model not in AVAILABLE or where not in ("", f"/versions/{AVAILABLE[model]}"):
            raise Refused(404)
        signature = request.get("signature_name") or "serving_default"
        if (model, signature) not in INPUTS or ("instances" in request) == ("inputs" in request):
            raise Refused(400)
        kinds = INPUTS[model, signature]
        if "instances" in request:
            shapes = rows_shapes(request["instances"], kinds)
            if not has_rows(model, signature):
                raise Refused(400)
        else:
            shapes = columns_shapes(request["inputs"], kinds)
        if signature == "halves":
            raise Refused(400) if prod(shapes["x"]) else Refused(200, 400)  # of no values, none is unwritable
        if not runs(model, signature, shapes):
            raise Refused(400)
    except Refused as refused:
        return refused.statuses
    return {200}


def parsed(body: bytes) -> Any:
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").lstrip(" \n\r\t")
    try:
        return _DECODER.raw_decode(text)[0]
    except ValueError:
        raise Refused(400) from None


def _number(text: str) -> int | float:
    value = float(text) if set(text) & set(".eE") or not -(2**63) <= int(text) < 2**64 else int(text)
    if isinstance(value, float) and isinf(value):
        raise ValueError("too big for a double")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=lambda pairs: dict(reversed(pairs)), parse_float=_number, parse_int=_number
)


def is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def rows_shapes(instances: Any, kinds: dict[str, str]) -> dict[str, Shape]:
    if not isinstance(instances, list) or not instances:
        raise Refused(400)
    named = is_named(instances[0])
    if any(is_named(row) != named for row in instances) or (not named and len(kinds) > 1):
        raise Refused(400)
    rows = instances if named else [{next(iter(kinds)): row} for row in instances]
    shapes: dict[str, Shape] = {}
    for row in rows:
        if row.keys() != kinds.keys():
            raise Refused(400)
        for name, kind in kinds.items():
            try:
                shape = checked(row[name], kind)
            except Refused:
                raise Refused(400) from None
            if shapes.setdefault(name, shape) != shape:
                raise Refused(400)
    return {name: (len(rows), *shape) for name, shape in shapes.items()}


def columns_shapes(inputs: Any, kinds: dict[str, str]) -> dict[str, Shape]:
    if not is_named(inputs):
        if len(kinds) > 1:
            raise Refused(400)
        inputs = {name: inputs for name in kinds}
    if not kinds.keys() <= inputs.keys():
        raise Refused(400)
    return {name: checked(inputs[name], kind) for name, kind in kinds.items()}


def checked(value: Any, kind: str) -> Shape:
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    walk(value, tuple(shape), kind)
    return tuple(shape)


def walk(value: Any, shape: Shape, kind: str) -> None:
    if not shape:
        if isinstance(value, list):
            raise Refused(400)
        check_leaf(value, kind)
    elif not isinstance(value, list) or len(value) != shape[0]:
        raise Refused(400)
    else:
        for member in value:
            walk(member, shape[1:], kind)


def check_leaf(value: Any, kind: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "half":
        raise Refused(501) if not isinstance(value, dict) else Refused(400, 501)
    good = {
        "float": number,
        "double": number,
        "bool": isinstance(value, bool),
        "string": isinstance(value, str) or (is_base64(value) and decodes(value["b64"])),
    }
    if kind in RANGES:
        low, high = RANGES[kind]
        good[kind] = number and isinstance(value, int) and low <= value < high
    if not good[kind]:
        raise Refused(400)


def decodes(text: str) -> bool:
    """As absl::Base64Unescape: white space anywhere, padding by "=" or ".", which may be left out."""
    digits = re.sub(r"[ \t\n\v\f\r]", "", text)
    whole = re.fullmatch(r"([A-Za-z0-9+/]*)([=.]*)", digits)
    return bool(whole) and len(whole[1]) % 4 != 1 and len(whole[2]) in (0, -len(whole[1]) % 4)
