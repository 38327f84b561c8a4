"""The one input tensor of classify and regress: serialized tf.Examples."""

import numpy as np
from tensorflow_serving.apis import input_pb2

from serving.server.errors import invalid
from serving.tensors import object_array


def serialized(given: input_pb2.Input) -> np.ndarray:  # [n] of bytes
    """A context comes before each example, so that a feature of the example wins. Raises RequestError when empty."""
    context = b""
    if given.WhichOneof("kind") == "example_list_with_context":
        context = given.example_list_with_context.context.SerializeToString()
        examples = given.example_list_with_context.examples
    else:
        examples = given.example_list.examples
    if not examples:
        raise invalid("Input is empty.")
    return object_array([context + example.SerializeToString() for example in examples])
