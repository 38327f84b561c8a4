"""GetModelStatus and GetModelMetadata: one answer for both protocols."""

from collections.abc import Iterable

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from serving.server.errors import Code, RequestError, invalid
from serving.server.lifecycle import Models
from serving.server.servable import Servable

_SIGNATURES = "signature_def"
_HIDDEN = "The version did not load; the server's log says why."


def status(
    models: Models[Servable], spec: model_pb2.ModelSpec, reveals: bool = True
) -> get_model_status_pb2.GetModelStatusResponse:
    """Every version of the model, or the one that is asked for; a label is ignored, as in TF Serving.

    Unless it `reveals`, why a version did not load stays in the log: the text has paths.
    """
    number = spec.version.value if spec.HasField("version") else None
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, state, error in models.status(spec.name, number):
        response.model_version_status.add(
            version=version,
            state=state.value,
            status={
                "error_code": error.code if error else Code.OK,
                "error_message": (error.message if reveals else _HIDDEN) if error else "",
            },
        )
    return response


def metadata(
    models: Models[Servable], spec: model_pb2.ModelSpec, fields: Iterable[str] = (_SIGNATURES,)
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    fields = list(fields)
    if not fields:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in fields:
        if field != _SIGNATURES:
            raise invalid(f"Metadata field {field} is not supported")
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with models.lease(spec.name, wanted_version(spec)) as (number, servable):
        response.model_spec.name = spec.name
        response.model_spec.version.value = number
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
        response.metadata[_SIGNATURES].Pack(signatures)
    return response


def wanted_version(spec: model_pb2.ModelSpec) -> int | str | None:
    """What a request names: a version, a label, or neither. Raises RequestError for no name."""
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    return None if choice is None else spec.version.value if choice == "version" else spec.version_label


def not_missing(request) -> model_pb2.ModelSpec:  # request: any message with a model_spec
    if not request.HasField("model_spec"):
        raise RequestError(Code.INVALID_ARGUMENT, "Missing ModelSpec")
    return request.model_spec
