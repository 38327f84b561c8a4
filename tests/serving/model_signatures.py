"""What the models of conftest accept: for those who predict the status of a request without asking the server."""

from collections.abc import Mapping

import numpy as np

Shape = tuple[int, ...]
AVAILABLE = {"pair": 2, "texts": 7, "types": 3}
INPUTS = {
    ("pair", "serving_default"): {"a": "float", "b": "int32"},
    ("pair", "half"): {"x": "float"},
    ("pair", "matrix"): {"x": "float"},
    ("texts", "serving_default"): {"text": "string"},
    ("types", "serving_default"): {"f64": "double", "i64": "int64", "flag": "bool", "u64": "uint64"},
    ("types", "pixels"): {"image": "uint8"},
    ("types", "halves"): {"x": "half"},
}
OUTPUTS = {
    ("pair", "serving_default"): ("b", "total"),
    ("pair", "half"): ("y",),
    ("pair", "matrix"): ("size", "y"),
    ("texts", "serving_default"): ("index", "same", "same_bytes"),
    ("types", "serving_default"): ("f64", "flag", "i64", "u64"),
    ("types", "pixels"): ("first", "mean"),
    ("types", "halves"): ("x",),
}


def runs(model: str, signature: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether the graph computes inputs of these shapes; the signature's own shapes do not matter."""
    if (model, signature) == ("pair", "serving_default"):
        try:
            np.broadcast_shapes(shapes["a"], shapes["b"])
        except ValueError:
            return False
    if (model, signature) == ("pair", "matrix"):
        return len(shapes["x"]) == 2 and shapes["x"][1] == 2
    if (model, signature) == ("types", "pixels"):
        shape = shapes["image"]
        return len(shape) >= 4 and shape[1] > 0 and shape[2] > 0
    return True


def has_rows(model: str, signature: str) -> bool:
    """Whether every output has the first dimension of the inputs, as the row form of JSON needs it."""
    return (model, signature) != ("pair", "matrix")  # its `size` is a scalar
