"""From a version's folder to a servable that is ready for requests: verify, load, warm up."""

from pathlib import Path

import tensorflow as tf

from serving.server.errors import Code, RequestError
from serving.server.integrity import verify
from serving.server.servable import Servable
from serving.server.warmup import warm_up


def load(version: Path) -> Servable:
    """Raises RequestError with the code that the status page shows, or whatever else TensorFlow raises."""
    verify(version)
    try:
        servable = Servable(version)
        try:
            warm_up(servable, version)
        except BaseException:
            servable.close()
            raise
    except tf.errors.OpError as error:
        raise RequestError(Code(error.error_code), error.message) from None
    return servable
