"""TensorProto to numpy and back, against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf
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
@pytest.mark.parametrize("type_name", ["int32", "uint8", "int64", "float", "half"])
def test_a_typed_field_of_any_length_is_read_as_tensorflow_reads_it(type_name, values):
    kind = next(t for t in BY_NUMBER.values() if t.name == type_name)
    proto = tensor_pb2.TensorProto(dtype=kind.number)
    proto.tensor_shape.dim.add().size = 2
    getattr(proto, kind.field).extend(values)
    expected = tf.io.parse_tensor(proto.SerializeToString(), kind.number).numpy()
    np.testing.assert_array_equal(to_numpy(proto), expected)


def test_an_array_without_a_tensor_type_is_refused():
    with pytest.raises(ValueError, match="datetime64"):
        fill(PredictRequest().inputs["x"], np.array(["2020-01-01"], "datetime64[D]"))
    with pytest.raises(ValueError, match="holds str or bytes, not int"):
        fill(PredictRequest().inputs["x"], np.array([1], dtype=object))
