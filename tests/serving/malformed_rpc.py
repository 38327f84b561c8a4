"""gRPC requests, most with something wrong in them, and the status code that the protocol gives each."""

from math import prod
from typing import Any

from hypothesis import strategies as st

from serving import protocol
from serving.tensors import BY_NUMBER, TensorType
from tests.serving.model_signatures import AVAILABLE, INPUTS, OUTPUTS, Shape, runs

KINDS = {kind.name: kind for kind in BY_NUMBER.values()}
VALUES = {
    "float_val": st.floats(width=32),
    "double_val": st.floats(),
    "int_val": st.integers(-(2**31), 2**31 - 1),
    "half_val": st.integers(-(2**31), 2**31 - 1),
    "int64_val": st.integers(-(2**63), 2**63 - 1),
    "uint32_val": st.integers(0, 2**32 - 1),
    "uint64_val": st.integers(0, 2**64 - 1),
    "bool_val": st.booleans(),
    "string_val": st.binary(max_size=3),
}
STRANGE_TYPES = [0, 8, 11, 14, 18, 20, 21, 101, 999, *BY_NUMBER]
BOMBS = [[2**62], [2**31, 2**31], [2**27], [2**24, 2**24, 2**24], [0, 2**40], [-1], [2, -(2**63)], [1] * 255]


@st.composite
def tensors(draw: st.DrawFn, kind: str, shape: Shape) -> Any:
    """A TensorProto; one in four is not what was asked for."""
    proto = protocol.PredictRequest().inputs["x"]
    strange = draw(st.integers(0, 7))
    proto.dtype = draw(st.sampled_from(STRANGE_TYPES)) if strange == 0 else KINDS[kind].number
    for size in draw(st.sampled_from(BOMBS)) if strange == 1 else shape:
        proto.tensor_shape.dim.add().size = size
    field = KINDS[kind].field if strange != 2 else draw(st.sampled_from(sorted(VALUES)))
    getattr(proto, field).extend(draw(st.lists(VALUES[field], max_size=4)))
    if strange == 3:
        content = draw(st.binary(max_size=16))
        proto.tensor_content = bytes(b & 127 for b in content) if proto.dtype == 7 else content  # lengths of one byte
    elif strange > 5 and kind != "string":
        proto.tensor_content = bytes(KINDS[kind].dtype.itemsize * prod(shape))
    return proto


def shapes_of(signature: str) -> st.SearchStrategy[Shape]:
    sizes = st.integers(0, 3)
    if signature == "pixels":
        return st.one_of(st.tuples(sizes, sizes, sizes, st.just(3)), st.lists(sizes, max_size=5).map(tuple))
    if signature == "matrix":
        return st.one_of(st.tuples(sizes, st.just(2)), st.lists(sizes, max_size=3).map(tuple))
    return st.lists(sizes, max_size=3).map(tuple)


@st.composite
def specs(draw: st.DrawFn, message: Any, model: str, signature: str) -> None:
    """Fills a ModelSpec; one in five names what is not there."""
    strange = draw(st.integers(0, 24))
    message.name = {0: "", 1: "nobody"}.get(strange, model)
    message.signature_name = {2: "no_such", 3: "SERVING_DEFAULT"}.get(
        strange, "" if signature == "serving_default" and draw(st.booleans()) else signature
    )
    if strange in (4, 5):
        message.version.value = draw(st.sampled_from([0, -1, 9, 2**63 - 1]))
    elif strange == 6:
        message.version_label = draw(st.sampled_from(["none", "é", "a b"]))
    elif strange > 15:
        message.version.value = AVAILABLE[model]


@st.composite
def predict_requests(draw: st.DrawFn) -> Any:
    model, signature = draw(st.sampled_from(sorted(INPUTS)))
    request = protocol.PredictRequest()
    if draw(st.integers(0, 29)):
        draw(specs(request.model_spec, model, signature))
    shape = draw(shapes_of(signature))
    for name, kind in INPUTS[model, signature].items():
        other = shape if draw(st.integers(0, 4)) else draw(shapes_of(signature))
        request.inputs[name].CopyFrom(draw(tensors(kind, other)))
    change = draw(st.integers(0, 11))
    if change == 0:
        request.inputs.pop(draw(st.sampled_from(sorted(request.inputs))))
    elif change < 3:
        request.inputs[draw(st.sampled_from(["", "x", "a", "é", "no_such"]))].CopyFrom(draw(tensors("float", shape)))
    if draw(st.integers(0, 4)) == 0:
        names = [*OUTPUTS[model, signature], "no_such"]
        request.output_filter.extend(draw(st.lists(st.sampled_from(names), max_size=3)))
    return request


def expected_of_spec(request: Any) -> str:
    """What a lookup of the model answers, "OK" when it finds one."""
    spec = request.model_spec
    if not request.HasField("model_spec") or not spec.name:
        return "INVALID_ARGUMENT"
    if spec.version_label:  # is looked up first, and no model here has one
        return "INVALID_ARGUMENT"
    there = spec.name in AVAILABLE and (not spec.HasField("version") or spec.version.value == AVAILABLE[spec.name])
    return "OK" if there else "NOT_FOUND"


def expected_of_predict(request: Any) -> set[str]:
    found = expected_of_spec(request)
    if found != "OK":
        return {found}
    model, signature = request.model_spec.name, request.model_spec.signature_name or "serving_default"
    if (model, signature) not in INPUTS:
        return {"FAILED_PRECONDITION"}
    kinds, outputs = INPUTS[model, signature], OUTPUTS[model, signature]
    names = list(request.output_filter)
    shapes = {name: tuple(d.size for d in tensor.tensor_shape.dim) for name, tensor in request.inputs.items()}
    good = (
        request.inputs.keys() == kinds.keys()
        and all(reads(tensor, KINDS[kinds[name]]) for name, tensor in request.inputs.items())
        and len(set(names)) == len(names)
        and set(names) <= set(outputs)
    )
    if not good or runs(model, signature, shapes):
        return {"OK" if good else "INVALID_ARGUMENT"}
    spared = 0 < len(names) < len(outputs)  # TensorFlow may leave out what only the other outputs need
    return {"OK", "INVALID_ARGUMENT"} if spared else {"INVALID_ARGUMENT"}


def reads(tensor: Any, kind: TensorType) -> bool:
    """Whether a TensorProto is one of this type, whole, and no larger than it looks."""
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype != kind.number or min(shape, default=0) < 0 or len(shape) > 64:  # TensorFlow: 254
        return False
    count = prod(shape)
    if not count or not tensor.tensor_content:
        return count - len(getattr(tensor, kind.field)) <= 2**20
    if kind.name == "string":
        sizes, texts = tensor.tensor_content[:count], tensor.tensor_content[count:]
        return len(sizes) == count and sum(sizes) == len(texts)
    if kind.name == "bool" and max(tensor.tensor_content) > 1:
        return False
    return len(tensor.tensor_content) == count * kind.dtype.itemsize


@st.composite
def garbage(draw: st.DrawFn) -> bytes:
    """A request with some of its bytes changed or cut off; what it then says is anything."""
    raw = draw(predict_requests()).SerializeToString()
    at = draw(st.integers(0, len(raw)))
    return raw[:at] + draw(st.binary(max_size=4)) + (raw[at + 1 :] if draw(st.booleans()) else b"")
