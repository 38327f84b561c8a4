"""One loaded SavedModel: its signatures, and the run of its tensors.

Loaded into a graph and session of its own, as TF Serving does: the loaded tf.function would refuse ranks that a session
takes, and would know of no time-out.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.client import pywrap_tf_session  # Session.run checks shapes, which TF Serving does not

from serving.server.errors import Code, RequestError

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
        self, feeds: Mapping[str, np.ndarray], fetches: Iterable[str], timeout_ms: int | None = None
    ) -> list[np.ndarray]:
        """The values of the tensors `fetches`. Raises RequestError with TensorFlow's code and message."""
        options = None
        if timeout_ms is not None:
            serialized = tf.compat.v1.RunOptions(timeout_in_ms=max(1, timeout_ms)).SerializeToString()
            options = pywrap_tf_session.TF_NewBufferFromString(serialized)
        fed = {self._tensor(name): array for name, array in feeds.items()}
        try:
            values = self._session._call_tf_sessionrun(options, fed, [self._tensor(name) for name in fetches], [], None)
        except tf.errors.OpError as error:
            raise RequestError(Code(error.error_code), error.message) from None
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)
        return [_as_array(value) for value in values]

    def close(self) -> None:
        self._session.close()

    def _tensor(self, name: str):
        return self._graph.get_tensor_by_name(name)._as_tf_output()


def _as_array(value) -> np.ndarray:
    if isinstance(value, bytes | str):  # a string scalar; np.asarray would cut it at a final NUL
        array = np.empty((), dtype=object)
        array[()] = value
        return array
    return np.asarray(value)
