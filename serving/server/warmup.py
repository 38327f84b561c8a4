"""The requests of assets.extra/tf_serving_warmup_requests, run before a version is offered.

A record that fails, or a file that is no TFRecord, fails the load, as in TF Serving: better than a client's request.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.server import classification, metrics, multi_inference, predict, regression
from serving.server.call import Call
from serving.server.errors import Code, RequestError, invalid
from serving.server.merging import run_alone
from serving.server.servable import Servable

PATH = Path("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000


def warm_up(servable: Servable, version: Path, iterations: int = 1) -> int:
    """Runs each record `iterations` times and returns how many there are. Raises RequestError or DataLossError."""
    path = version / PATH
    if not path.exists():
        return 0
    began, done, status = time.perf_counter(), 0, "UNKNOWN"
    try:
        for record in _records(path):
            done += 1
            try:
                logged = prediction_log_pb2.PredictionLog.FromString(record)
            except DecodeError:
                raise invalid(f"Failed to parse warmup record {done} from {path}") from None
            if done > MAX_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
            for _ in range(iterations):
                _replay(servable, logged)
        status = "OK"
    except RequestError as error:
        status = error.code.name
        raise
    finally:
        metrics.warmed_up(str(version), status, done, (time.perf_counter() - began) * 1e6)
    return done


def _records(path: Path) -> Iterator[bytes]:
    try:
        yield from tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    except tf.errors.DataLossError as error:
        message = f"{error.message}. Please verify your warmup data is in TFRecord format."
        raise RequestError(Code.DATA_LOSS, message) from None


def _replay(servable: Servable, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in _READERS:
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise RequestError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
    call = _READERS[kind](servable, getattr(log, kind).request)
    call.write(run_alone(servable, call))


_READERS: dict[str, Callable[[Servable, Any], Call]] = {
    "predict_log": predict.read,
    "classify_log": classification.read,
    "regress_log": regression.read,
    "multi_inference_log": multi_inference.read,
}
