"""From a version's folder to a servable that is ready for requests: verify, rehearse if asked to, load, warm up."""

import time
from pathlib import Path

import tensorflow as tf

from serving.server import batching_parameters, drift, metrics, operations
from serving.server.access import manifest_key
from serving.server.batching_parameters import BatchingParameters
from serving.server.errors import Code, RequestError
from serving.server.flags import Flags
from serving.server.integrity import verify
from serving.server.limits import ranges_of
from serving.server.rehearsal import rehearse
from serving.server.servable import Servable
from serving.server.session import session_config
from serving.server.warmup import warm_up


class Loader:
    """Makes a servable as the flags say; a function of the folder, for any thread.

    Its thread keeps the normal priority. TensorFlow imports a graph while it holds Python's lock (25 to 60 ms for a
    hundred layers, and that is the one pause that a load causes); at a low priority it would hold it for 200 to 450 ms.
    """

    def __init__(self, flags: Flags, batching: BatchingParameters):
        self._flags, self._batching = flags, batching
        self._options, self._tags = session_config(flags), flags.saved_model_tags.split(",")
        self._key = manifest_key(flags.manifest_key_file)

    def __call__(self, version: Path) -> Servable:
        """Raises RequestError with the code that the status page shows, or whatever else TensorFlow raises."""
        hardened = self._flags.profile == "hardened"
        verify(version, hardened or self._key is not None, self._key)
        if hardened:
            operations.scan(version)
        iterations = max(1, self._flags.num_request_iterations_for_warmup) if self._flags.enable_model_warmup else 0
        if self._flags.load_in_child:
            rehearse(version, self._options.SerializeToString(), self._tags, iterations)
        began = time.perf_counter()
        try:
            servable = Servable(version, self._batching_of(version), self._options, self._tags)
            metrics.loaded(str(version), (time.perf_counter() - began) * 1e6)
            if self._flags.monitor_drift:
                servable.monitor = drift.monitor(version, servable.signatures)
            if hardened:
                servable.ranges = ranges_of(drift.read(version), servable.signatures)
            try:
                if iterations:
                    warm_up(servable, version, iterations)
            except BaseException:
                servable.close()
                raise
        except tf.errors.OpError as error:
            raise RequestError(Code(error.error_code), error.message) from None
        return servable

    def _batching_of(self, version: Path) -> BatchingParameters | None:
        if not self._flags.enable_batching:
            return None
        if not self._flags.enable_per_model_batching_parameters:
            return self._batching
        file = version / batching_parameters.PER_MODEL_FILE
        return batching_parameters.read(file) if file.exists() else None
