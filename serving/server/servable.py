"""One loaded SavedModel: its signatures, and the run of its tensors.

Loaded into a graph and session of its own, as TF Serving does: the loaded tf.function would refuse ranks that a session
takes, and would know of no time-out.
"""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.client import pywrap_tf_session  # Session.run checks shapes, which TF Serving does not

from serving.server.batching_parameters import BatchingParameters
from serving.server.drift import Monitor
from serving.server.errors import Code, RequestError
from serving.server.limits import Range
from serving.server.pace import Pace

DEFAULT_SIGNATURE = "serving_default"
_LOOP = re.compile("(Stateless)?While|Enter|NextIteration|.*Dataset.*|.*Queue.*|.*PyFunc.*")
_IN_THIS_THREAD = pywrap_tf_session.TF_NewBufferFromString(
    tf.compat.v1.RunOptions(inter_op_thread_pool=-1).SerializeToString()
)

Feeds = Mapping[str, np.ndarray]  # by tensor name


class Servable:
    """Raises what TensorFlow raises when `path` holds no SavedModel that it can load.

    `batching` is how its calls are to be merged; None: each runs by itself.
    """

    def __init__(
        self,
        path: Path,
        batching: BatchingParameters | None = None,
        options: tf.compat.v1.ConfigProto | None = None,
        tags: Sequence[str] = (tf.saved_model.SERVING,),
    ):
        graph = tf.Graph()
        with graph.as_default():
            self._session = tf.compat.v1.Session(graph=graph, config=options)
            loaded = tf.compat.v1.saved_model.load(self._session, list(tags), str(path))
        self._session._extend_graph()
        graph.finalize()
        self._tensors = _Tensors(graph)
        self.signatures = dict(loaded.signature_def)
        self._aliases = {
            info.name: f"{name}/{alias}"
            for name, signature in self.signatures.items()
            for alias, info in signature.outputs.items()
        }
        self.layouts: dict[str, Any] = {}  # of the signatures, as `signatures` reads them
        self.batching = batching
        self.monitor: Monitor | None = None
        self.ranges: Mapping[str, Range] = {}
        self._paces: dict[tuple[str, ...], Pace] = {}
        self._loops = _has_loops(graph)

    def is_short(self, fetches: tuple[str, ...]) -> bool:
        """Whether `run_here` is as good as `run`."""
        return not self._loops and fetches in self._paces and self._paces[fetches].short

    def fits(self, fetches: tuple[str, ...], seconds: float) -> bool:
        """Whether a run begun now may end in time, as far as earlier ones tell; True where they tell nothing."""
        return fetches not in self._paces or self._paces[fetches].fits(seconds * 1e6)

    def run(self, feeds: Feeds, fetches: tuple[str, ...], timeout_ms: int | None = None) -> list[np.ndarray]:
        """The values of the tensors `fetches`. Raises RequestError with TensorFlow's code and message."""
        options = None
        if timeout_ms is not None:
            serialized = tf.compat.v1.RunOptions(timeout_in_ms=max(1, timeout_ms)).SerializeToString()
            options = pywrap_tf_session.TF_NewBufferFromString(serialized)
        pace = self._paces.get(fetches) or self._paces.setdefault(fetches, Pace())
        try:
            with pace.in_thread():
                return self._run(feeds, fetches, options)
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)

    def run_here(self, feeds: Feeds, fetches: tuple[str, ...]) -> list[np.ndarray]:
        """The same in the calling thread, without a time-out: for what `is_short`, on the event loop."""
        began = time.thread_time()
        try:
            return self._run(feeds, fetches, _IN_THIS_THREAD)
        finally:
            self._paces[fetches].on_loop((time.thread_time() - began) * 1e6)

    def _run(self, feeds: Feeds, fetches: tuple[str, ...], options: Any) -> list[np.ndarray]:
        tensors = self._tensors
        fed = {tensors[name]: array for name, array in feeds.items()}
        try:
            values = self._session._call_tf_sessionrun(options, fed, [tensors[name] for name in fetches], [], None)
        except tf.errors.OpError as error:
            raise RequestError(Code(error.error_code), error.message, private=True) from None
        except UnicodeDecodeError as error:  # of a message that quotes the request, which TensorFlow cannot hand over
            said = error.object.decode("utf-8", "replace")
            raise RequestError(Code.INVALID_ARGUMENT, said, private=True) from None
        return [_as_array(value) for value in values]

    def named(self, fetches: tuple[str, ...], values: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The values of `fetches` as "signature/output": two signatures may use one name for different things."""
        return dict(zip(map(self._aliases.get, fetches, fetches), values, strict=True))

    def close(self) -> None:
        if self.monitor:
            self.monitor.close()
        self._session.close()


class _Tensors(dict):
    """What the session takes for a tensor, by its name."""

    def __init__(self, graph: tf.Graph):
        super().__init__()
        self._graph = graph

    def __missing__(self, name: str) -> Any:
        self[name] = tensor = self._graph.get_tensor_by_name(name)._as_tf_output()
        return tensor


def _as_array(value) -> np.ndarray:
    if isinstance(value, bytes | str):  # a string scalar; np.asarray would cut it at a final NUL
        array = np.empty((), dtype=object)
        array[()] = value
        return array
    return np.asarray(value)


def _has_loops(graph: tf.Graph) -> bool:
    """Whether a run may take much longer than another with inputs of the same size, or wait for something."""
    definition = graph.as_graph_def()
    bodies = [definition.node, *(function.node_def for function in definition.library.function)]
    return any(_LOOP.fullmatch(node.op) for nodes in bodies for node in nodes)
