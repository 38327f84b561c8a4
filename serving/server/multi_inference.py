"""MultiInference: several classify and regress tasks on the same examples, in one run."""

from typing import Any, NamedTuple

import numpy as np
from tensorflow_serving.apis import inference_pb2, model_pb2

from serving.server import classification, metrics, regression
from serving.server.call import Call
from serving.server.errors import Code, RequestError, invalid
from serving.server.examples import serialized
from serving.server.servable import DEFAULT_SIGNATURE, Servable


class _Plan(NamedTuple):
    method: str
    signature: Any
    fed: str
    fetches: tuple[str, ...]


def spec_of(request: inference_pb2.MultiInferenceRequest) -> model_pb2.ModelSpec:
    """Which servable answers: that of the first task."""
    return request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()


def read(servable: Servable, request: inference_pb2.MultiInferenceRequest, checks: bool = False) -> Call:
    """Its answer is a MultiInferenceResponse without model_specs, in the order of the tasks. Raises RequestError."""
    plans: dict[str, _Plan] = {}  # by signature name
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in plans:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        plans[name] = _plan(task.method_name, servable.signatures[name], checks)
    examples = serialized(request.input)
    fetches = tuple(sorted({name for plan in plans.values() for name in plan.fetches}))

    def write(values: list[np.ndarray]) -> inference_pb2.MultiInferenceResponse:
        metrics.examples(request.tasks[0].model_spec.name, len(examples))
        return _write(plans.values(), len(examples), dict(zip(fetches, values, strict=True)))

    return Call({plan.fed: examples for plan in plans.values()}, fetches, write, "")


def _plan(method: str, signature: Any, checks: bool) -> _Plan:
    if method == classification.METHOD:
        return _Plan(method, signature, *classification.prepare(signature, checks))
    if method == regression.METHOD:
        return _Plan(method, signature, *regression.prepare(signature, checks))
    raise RequestError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {method}")


def _write(plans: Any, examples: int, fetched: dict[str, np.ndarray]) -> inference_pb2.MultiInferenceResponse:
    response = inference_pb2.MultiInferenceResponse()
    for plan in plans:
        values = [fetched[name] for name in plan.fetches]
        result = response.results.add()
        if plan.method == classification.METHOD:
            answer = classification.message(*classification.results(plan.signature, examples, values))
            result.classification_result.CopyFrom(answer.result)
        else:
            result.regression_result.CopyFrom(regression.message(regression.results(examples, values[0])).result)
    return response
