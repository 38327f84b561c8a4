"""The tf.Examples of a classify or regress request in JSON: {"signature_name", "context", "examples"}.

The kind of a feature is what its JSON says: 1.0 is a float, 1 and true are integers, a text or {"b64"} is bytes.
"""

from typing import Any, TypeVar

from tensorflow_serving.apis import classification_pb2, regression_pb2

from serving.server.errors import invalid
from serving.server.json_request import misformed, parsed
from serving.server.json_tensors import decoded, is_base64, type_name

Request = TypeVar("Request", classification_pb2.ClassificationRequest, regression_pb2.RegressionRequest)

_LISTS = {"float": "float_list", "int64": "int64_list", "bytes": "bytes_list"}
_MAX_INTEGER = 2**63 - 1


def fill(request: Request, body: bytes) -> Request:
    """Puts the signature's name and the examples of `body` into an empty request. Raises RequestError."""
    document = parsed(body)
    request.model_spec.signature_name = document.get("signature_name", "").encode("utf-8", "replace").decode()
    plain, with_context = request.input.example_list, request.input.example_list_with_context
    added = plain.examples
    if "context" in document:
        _fill_example(with_context.context, document["context"])
        added = with_context.examples
    if "examples" not in document:
        raise misformed(document, "When method is classify, key 'examples' is expected and was not found")
    if not isinstance(document["examples"], list):
        raise misformed(document, "Expecting 'examples' value to be an list/array")
    if not document["examples"]:
        raise misformed(document, "'examples' value is an empty array")
    for example in document["examples"]:
        _fill_example(added.add(), example)
    return request


def _fill_example(message: Any, example: Any) -> None:
    if not isinstance(example, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(example)}")
    features = message.features.feature
    for name, value in example.items():
        kind, values = _feature(name, value if isinstance(value, list) else [value])
        try:
            feature = features[name.partition("\0")[0]]  # a C string there
        except UnicodeEncodeError:
            continue  # bytes that are no UTF-8: no graph has a feature of that name
        feature.Clear()
        if kind:
            getattr(feature, _LISTS[kind]).value.extend(values)


def _feature(name: str, values: list[Any]) -> tuple[str, list[Any]]:
    """The kind, "" when there is no value, and the values as the list of that kind takes them."""
    kind = ""
    read = []
    for value in values:
        found = _kind(name, value)
        if kind not in ("", found):
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {kind}")
        kind = found
        read.append(_read(name, value) if found != "float" else value)
    return kind, read


def _kind(name: str, value: Any) -> str:
    if isinstance(value, int):
        return "int64"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str) or (isinstance(value, dict) and is_base64(value)):
        return "bytes"
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")


def _read(name: str, value: Any) -> Any:
    if isinstance(value, int):
        if value > _MAX_INTEGER:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return int(value)  # of true, 1
    try:
        return decoded(value)
    except ValueError:
        raise invalid("Unable to base64 decode") from None
