"""From a version's folder to a servable that is ready for requests: verify, load, warm up."""

import time
from pathlib import Path

import tensorflow as tf

from serving.server import metrics
from serving.server.errors import Code, RequestError
from serving.server.flags import Flags
from serving.server.integrity import verify
from serving.server.servable import Servable
from serving.server.warmup import warm_up


class Loader:
    """Makes a servable as the flags say; a function of the folder, for any thread."""

    def __init__(self, flags: Flags):
        self._flags = flags

    def __call__(self, version: Path) -> Servable:
        """Raises RequestError with the code that the status page shows, or whatever else TensorFlow raises."""
        verify(version, required=self._flags.profile == "hardened")
        began = time.perf_counter()
        try:
            servable = Servable(version)
            metrics.loaded(str(version), (time.perf_counter() - began) * 1e6)
            try:
                if self._flags.enable_model_warmup:
                    warm_up(servable, version, max(1, self._flags.num_request_iterations_for_warmup))
            except BaseException:
                servable.close()
                raise
        except tf.errors.OpError as error:
            raise RequestError(Code(error.error_code), error.message) from None
        return servable
