"""The requests of assets.extra/tf_serving_warmup_requests, run before a version is offered.

A record that fails, or a file that is no TFRecord, fails the load, as in TF Serving: better than a client's request.
"""

import logging
from collections import Counter
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.server import predict
from serving.server.errors import invalid
from serving.server.servable import Servable

PATH = Path("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000

log = logging.getLogger("serving")


def warm_up(servable: Servable, version: Path) -> int:
    """Runs the records and returns how many. Raises RequestError or TensorFlow's DataLossError."""
    path = version / PATH
    if not path.exists():
        return 0
    done = 0
    skipped: Counter[str] = Counter()
    for i, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
        if i >= MAX_RECORDS:
            raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
        entry = prediction_log_pb2.PredictionLog.FromString(record)
        if entry.HasField("predict_log"):
            call = predict.read(servable, entry.predict_log.request)
            call.write(servable.run(call.feeds, call.fetches))
            done += 1
        else:
            skipped[entry.WhichOneof("log_type") or "empty"] += 1
    for kind, count in skipped.items():
        log.warning("%s: %d warm-up records of kind %s passed over", version, count, kind)
    return done
