"""TensorProto to numpy and back, against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2

from serving.protocol import PredictRequest
from serving.tensors import BY_NUMBER, fill, to_numpy

ARRAYS = [np.arange(6).reshape(2, 3).astype(t.dtype) for t in BY_NUMBER.values() if t.name != "string"]
ARRAYS += [np.array([[b"a\0", "é".encode()]], dtype=object), np.array(b"x", dtype=object), np.zeros([0, 2], np.float32)]


def name(array):
    return f"{array.dtype}{list(array.shape)}"


@pytest.mark.parametrize("packed", [False, True], ids=["typed", "packed"])
@pytest.mark.parametrize("array", ARRAYS, ids=name)
def test_tensorflow_reads_what_is_written_and_the_reverse(array, packed):
    ours = PredictRequest().inputs["x"]
    fill(ours, array, packed)
    theirs = tensor_pb2.TensorProto.FromString(ours.SerializeToString())
    np.testing.assert_array_equal(tf.make_ndarray(theirs), array)
    ours.ParseFromString(tf.make_tensor_proto(array).SerializeToString())
    back = to_numpy(ours)
    np.testing.assert_array_equal(back, array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize("values", [[], [7], [7, 8], [7, 8, 9]])
@pytest.mark.parametrize("type_name", ["int32", "uint8", "int64", "float", "half", "bfloat16", "complex64"])
def test_a_typed_field_of_any_length_is_read_as_tensorflow_reads_it(type_name, values):
    kind = next(t for t in BY_NUMBER.values() if t.name == type_name)
    proto = tensor_pb2.TensorProto(dtype=kind.number)
    proto.tensor_shape.dim.add().size = 2
    getattr(proto, kind.field).extend(values)
    expected = tf.io.parse_tensor(proto.SerializeToString(), kind.number).numpy()
    np.testing.assert_array_equal(to_numpy(proto), expected)


FIELDS = {
    "float_val": st.floats(width=32),
    "double_val": st.floats(),
    "int_val": st.integers(-(2**31), 2**31 - 1),
    "half_val": st.integers(-(2**31), 2**31 - 1),
    "int64_val": st.integers(-(2**63), 2**63 - 1),
    "uint32_val": st.integers(0, 2**32 - 1),
    "uint64_val": st.integers(0, 2**64 - 1),
    "bool_val": st.booleans(),
    "scomplex_val": st.floats(width=32),
    "dcomplex_val": st.floats(),
    "string_val": st.binary(max_size=3),
}


@st.composite
def any_proto(draw) -> tensor_pb2.TensorProto:
    """A message of a known type in which anything else may be wrong."""
    kind = draw(st.sampled_from(list(BY_NUMBER.values())))
    proto = tensor_pb2.TensorProto(dtype=kind.number)
    proto.tensor_shape.unknown_rank = draw(st.integers(0, 20)) == 0
    # none so large that TensorFlow would wait 10 s for the memory
    for size in draw(st.lists(st.sampled_from([0, 1, 1, 2, 2, 3, -1]), max_size=4)):
        proto.tensor_shape.dim.add().size = size
    field = draw(st.sampled_from([kind.field, kind.field, kind.field, *FIELDS]))
    getattr(proto, field).extend(draw(st.lists(FIELDS[field], max_size=5)))
    if draw(st.booleans()):
        proto.tensor_content = draw(st.binary(max_size=16))
    return proto


@settings(max_examples=150, deadline=None, derandomize=True)
@given(any_proto())
def test_any_message_is_read_or_refused_as_tensorflow_does_it(proto):
    try:
        expected = tf.io.parse_tensor(proto.SerializeToString(), proto.dtype).numpy()
    except tf.errors.InvalidArgumentError:
        with pytest.raises(ValueError):
            to_numpy(proto)
    else:
        np.testing.assert_array_equal(to_numpy(proto), expected)


def test_texts_packed_into_tensor_content_are_read():
    proto = tensor_pb2.TensorProto(dtype=7, tensor_content=b"\x01\xc8\x01" + b"a" + b"b" * 200)
    proto.tensor_shape.dim.add().size = 2
    assert to_numpy(proto).tolist() == [b"a", b"b" * 200]


@pytest.mark.parametrize("type_name", ["uint8", "double", "string"])
def test_a_short_message_does_not_become_a_large_array(type_name):
    kind = next(t for t in BY_NUMBER.values() if t.name == type_name)
    proto = tensor_pb2.TensorProto(dtype=kind.number)
    proto.tensor_shape.dim.add().size = 2**26 + 1
    with pytest.raises(ValueError, match="too many missing values"):
        to_numpy(proto)


def test_an_array_without_a_tensor_type_is_refused():
    with pytest.raises(ValueError, match="datetime64"):
        fill(PredictRequest().inputs["x"], np.array(["2020-01-01"], "datetime64[D]"))
    with pytest.raises(ValueError, match="holds str or bytes, not int"):
        fill(PredictRequest().inputs["x"], np.array([1], dtype=object))
