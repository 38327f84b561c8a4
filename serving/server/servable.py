"""One loaded SavedModel: its signatures, and the run of one of them.

Loaded into a graph and session of its own, as TF Serving does: the loaded tf.function would refuse ranks that a session
takes, and would know of no time-out.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.client import pywrap_tf_session  # Session.run checks shapes, which TF Serving does not

from serving.server.errors import Code, RequestError, invalid
from serving.tensors import to_numpy

DEFAULT_SIGNATURE = "serving_default"


class Servable:
    """Raises what TensorFlow raises when `path` holds no SavedModel that it can load."""

    def __init__(self, path: Path):
        options = tf.compat.v1.ConfigProto()
        options.gpu_options.allow_growth = True  # several models, and perhaps a training run, share one GPU
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._session = tf.compat.v1.Session(graph=self._graph, config=options)
            loaded = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], str(path))
        self._session._extend_graph()
        self._graph.finalize()
        self.signatures = dict(loaded.signature_def)

    def run(
        self,
        signature,  # a SignatureDef of self.signatures
        inputs: Mapping[str, np.ndarray],
        output_names: Iterable[str],
        timeout_ms: int | None = None,
    ) -> dict[str, np.ndarray]:
        """The outputs by alias. Raises RequestError with TensorFlow's code and message."""
        names = list(output_names)
        feeds = {self._tensor(signature.inputs[alias].name): array for alias, array in _complete(signature, inputs)}
        fetches = [self._tensor(signature.outputs[alias].name) for alias in names]
        options = None
        if timeout_ms is not None:
            serialized = tf.compat.v1.RunOptions(timeout_in_ms=max(1, timeout_ms)).SerializeToString()
            options = pywrap_tf_session.TF_NewBufferFromString(serialized)
        try:
            values = self._session._call_tf_sessionrun(options, feeds, fetches, [], None)
        except tf.errors.OpError as error:
            raise RequestError(Code(error.error_code), error.message) from None
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)
        return {alias: _as_array(value) for alias, value in zip(names, values, strict=True)}

    def close(self) -> None:
        self._session.close()

    def _tensor(self, name: str):
        return self._graph.get_tensor_by_name(name)._as_tf_output()


def _complete(signature, inputs: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """The inputs in the order of their aliases, defaults of the signature filled in. Raises RequestError."""
    wanted = sorted(signature.inputs)
    defaults = signature.defaults
    required = [alias for alias in wanted if alias not in defaults]
    if len(inputs) > len(wanted) or len(inputs) < len(required):
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(wanted)} "
            f"len({_set(inputs)}) != len({_set(wanted)}). Sent extra: {_set(inputs.keys() - set(wanted))}. "
            f"Missing but required: {_set(set(required) - inputs.keys())}."
        )
    complete = []
    for alias in wanted:
        if alias in inputs:
            complete.append((alias, inputs[alias]))
        elif alias in defaults:
            complete.append((alias, to_numpy(defaults[alias])))
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and "
                f"no default value provided. Inputs expected to be in the set {_set(wanted)}."
            )
    unknown = inputs.keys() - set(wanted)
    if unknown:  # only with defaults can the count be right and a name too many
        raise invalid(f"Signature has no input {min(unknown)}. Inputs expected to be in the set {_set(wanted)}.")
    return complete


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _as_array(value) -> np.ndarray:
    if isinstance(value, bytes | str):  # a string scalar; np.asarray would cut it at a final NUL
        array = np.empty((), dtype=object)
        array[()] = value
        return array
    return np.asarray(value)
