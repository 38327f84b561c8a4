"""What the server counts, under TF Serving's names, and what a canary is judged by.

Process-wide, as in TF Serving. Times are microseconds. A request costs about 3 us here (benchmarks of the whole server
include it), so outputs are summed many at a time.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from serving.server.exposition import Counter, Gauge, Histogram, exponential, page

_LATENCY = exponential(10, 1.8, 33)
_SIZES = exponential(1, 2, 14)
_SERVING, _OURS = "/tensorflow/serving/", "/minibatch/serving/"
_PENDING_ARRAYS, _PENDING_VALUES = 256, 2**16
_WIDEST = 64  # columns of an output that are counted one by one

_request_count = Counter(f"{_SERVING}request_count", "model_name", "status")
_request_latency = Histogram(f"{_SERVING}request_latency", _LATENCY, "model_name", "API", "entrypoint")
_runtime_latency = Histogram(f"{_SERVING}runtime_latency", _LATENCY, "model_name", "API", "runtime")
_example_counts = Histogram(f"{_SERVING}request_example_counts", exponential(1, 2, 15), "model")
_example_count_total = Counter(f"{_SERVING}request_example_count_total", "model")
_request_log_count = Counter(f"{_SERVING}request_log_count", "model_name", "status_code")
_warmup_latency = Histogram(f"{_SERVING}model_warmup_latency", _LATENCY, "model_path", "status")
_warmup_records = Counter(f"{_SERVING}model_warmup_records_read", "model_path", "status")
_load_attempts = Counter("/tensorflow/cc/saved_model/load_attempt_count", "model_path", "status")
_load_latency = Counter("/tensorflow/cc/saved_model/load_latency", "model_path")

# TF Serving keeps the three sizes as samplers of percentiles, which its page prints as 0: histograms say more.
_queuing = Histogram(f"{_SERVING}batching_session/queuing_latency", exponential(100, 1.2, 52), "thread_pool_name")
_input_size = Histogram(f"{_SERVING}batching_session/input_batch_size", _SIZES)
_processed_size = Histogram(f"{_SERVING}batching_session/processed_batch_size", _SIZES)
_padding_size = Histogram(f"{_SERVING}batching_session/padding_size", _SIZES, "execution_batch_size")
_wrapped_runs = Counter(f"{_SERVING}batching_session/wrapped_run_count")

_requests = Counter(f"{_OURS}requests", "model_name", "version", "status")
_latency = Histogram(f"{_OURS}latency", _LATENCY, "model_name", "version")
_output_count = Counter(f"{_OURS}output_count", "model_name", "version", "output")
_output_sum = Counter(f"{_OURS}output_sum", "model_name", "version", "output")
_output_sum_squares = Counter(f"{_OURS}output_sum_squares", "model_name", "version", "output")
_output_not_finite = Counter(f"{_OURS}output_not_finite", "model_name", "version", "output")
_column_count = Counter(f"{_OURS}output_column_count", "model_name", "version", "output", "column")
_column_sum = Counter(f"{_OURS}output_column_sum", "model_name", "version", "output", "column")
_column_sum_squares = Counter(f"{_OURS}output_column_sum_squares", "model_name", "version", "output", "column")
_load_failures = Counter(f"{_OURS}load_failures", "model_name")
_dropped = Counter(f"{_OURS}dropped", "model_name", "reason")
_drift_score = Gauge(f"{_OURS}drift", "model_name", "version", "feature", "measure")
_drift_examples = Gauge(f"{_OURS}drift_examples", "model_name", "version", "feature")

_ALL = [metric for metric in list(globals().values()) if isinstance(metric, Counter | Gauge | Histogram)]
_PER_VERSION = [metric for metric in _ALL if metric.labels[:2] == ("model_name", "version")]

_known: Callable[[str], bool] | None = None
_outputs: defaultdict[tuple[str, int, str], list[np.ndarray]] = defaultdict(list)
_widths: dict[tuple[str, str, str], int] = {}  # of outputs [rows, width]; 0: not counted by column
_pending = [0, 0]  # arrays and values in `_outputs`
_lock = threading.Lock()


def bound(known: Callable[[str], bool] | None) -> None:
    """From here on a model that `known` denies is counted as "other": callers cannot make series. None: any name."""
    global _known
    _known = known


def _named(model: str) -> str:
    return "other" if _known is not None and model and not _known(model) else model


def answered(model: str, api: str, entrypoint: str, status: str, micros: float) -> None:
    """A request of REST ("" is the model of one that names none) or gRPC was answered, in any way."""
    model = _named(model)
    _request_count.add(1, model, status)
    if status == "OK":
        _request_latency.add(micros, model, api, entrypoint)


def ran(model: str, api: str, micros: float) -> None:
    """TensorFlow ran for a Predict, Classify or Regress, waiting in a batch included."""
    _runtime_latency.add(micros, model, api, "TF1")


def request(model: str, version: int, status: str, micros: float) -> None:
    """A version was asked for an inference. Errors count in latency as well: a canary may be slow at failing."""
    number = str(version)
    _requests.add(1, model, number, status)
    _latency.add(micros, model, number)


def outputs(model: str, version: int, values: Mapping[str, np.ndarray]) -> None:
    """The outputs of one request by name; those that are not float are passed over. The arrays are kept for a while."""
    for name, array in values.items():
        if array.dtype.kind == "f":
            _outputs[model, version, name].append(array)
            _pending[0] += 1
            _pending[1] += array.size
    if _pending[0] >= _PENDING_ARRAYS or _pending[1] >= _PENDING_VALUES:
        _sum_outputs()


def _sum_outputs() -> None:
    with _lock:
        for model, version, name in list(_outputs):
            arrays = _outputs.pop((model, version, name))
            labels = model, str(version), name
            values = np.concatenate(arrays, axis=None, dtype=np.float64)  # flat
            finite = values[np.isfinite(values)]
            _output_count.add(len(finite), *labels)
            _output_sum.add(float(finite.sum()), *labels)
            _output_sum_squares.add(float(finite @ finite), *labels)
            if len(finite) < len(values):
                _output_not_finite.add(len(values) - len(finite), *labels)
            if width := _width(labels, arrays):
                _sum_columns(labels, values.reshape(-1, width))
        _pending[:] = 0, 0


def _width(labels: tuple[str, str, str], arrays: list[np.ndarray]) -> int:
    """Columns of an output that is [rows, 2 to 64] in every request; else 0, and from then on: a column whose number is
    a place in a list that grows means nothing."""
    widths = {array.shape[-1] if array.ndim == 2 else 0 for array in arrays}
    width = widths.pop() if len(widths) == 1 else 0
    if not 1 < width <= _WIDEST or _widths.setdefault(labels, width) != width:
        if _widths.get(labels):
            for metric in (_column_count, _column_sum, _column_sum_squares):
                metric.forget(*labels)
        _widths[labels] = 0
    return _widths[labels]


def _sum_columns(labels: tuple[str, str, str], values: np.ndarray) -> None:
    """Sums of a probability vector are always 1: only by column a collapse onto one class shows."""
    finite = np.isfinite(values)
    values = np.where(finite, values, 0.0)
    sums = finite.sum(axis=0), values.sum(axis=0), (values * values).sum(axis=0)
    for metric, columns in zip((_column_count, _column_sum, _column_sum_squares), sums, strict=True):
        for column, amount in enumerate(columns.tolist()):
            metric.add(amount, *labels, str(column))


def examples(model: str, count: int) -> None:
    """A MultiInference request came with `count` examples; TF Serving counts them nowhere else."""
    _example_counts.add(count, model)
    _example_count_total.add(count, model)


def dropped(model: str, reason: str) -> None:
    """A request that cost no computation: shed for a full queue, or expired while it waited."""
    _dropped.add(1, _named(model), reason)


def loaded(path: str, micros: float) -> None:
    _load_attempts.add(1, path, "success")
    _load_latency.add(int(micros), path)


def load_failed(model: str, path: str) -> None:
    """An attempt failed for whatever reason, the manifest and the warm-up included."""
    _load_attempts.add(1, path, "fail")
    _load_failures.add(1, model)


def warmed_up(path: str, status: str, records: int, micros: float) -> None:
    _warmup_latency.add(micros, path, status)
    _warmup_records.add(records, path, status)


def queued(thread_pool: str, rows: int, micros: float) -> None:
    """A request of `rows` rows waited this long for its batch."""
    _queuing.add(micros, thread_pool)
    _input_size.add(rows)


def batch(rows: int, padding: int) -> None:
    """A merged run of `rows` rows, `padding` of them made up."""
    _processed_size.add(rows)
    _padding_size.add(padding, str(rows))
    _wrapped_runs.add(1)


def drift(model: str, version: int, feature: str, measure: str, score: float, count: int) -> None:
    _drift_score.set(score, model, str(version), feature, measure)
    _drift_examples.set(count, model, str(version), feature)


def forget(model: str, version: int) -> None:
    """Drops the series of a version that was unloaded, so that pushes do not add up."""
    _sum_outputs()
    for metric in _PER_VERSION:
        metric.forget(model, str(version))
    for labels in [labels for labels in list(_widths) if labels[:2] == (model, str(version))]:
        _widths.pop(labels, None)


def value(name: str) -> int:
    """The first series of a counter, by its name with slashes; 0 for none: what TF Serving tells of a reload."""
    counters = {metric.name: metric for metric in _ALL if isinstance(metric, Counter)}
    found = counters.get(name.replace("/", ":"))
    return found.first() if found else 0


def text() -> str:
    """The page that Prometheus reads."""
    _sum_outputs()
    return page(_ALL)
