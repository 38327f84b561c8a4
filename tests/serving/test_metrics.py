"""The numbers a server keeps, and the page that Prometheus reads."""

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.server import exposition, metrics


@pytest.fixture(autouse=True)
def counts_from_zero():
    """The numbers are those of the process, as TF Serving's are."""
    for metric in metrics._ALL:
        metric.forget()
    metrics._outputs.clear()
    metrics._widths.clear()
    yield
    metrics.bound(None)


def sample(name: str, **labels: str) -> float | None:
    """What a Prometheus server would store of the page."""
    for family in text_string_to_metric_families(metrics.text()):
        for found in family.samples:
            if found.name in (name, f"{name}_total") and found.labels == labels:  # the parser adds it to a counter
                return found.value
    return None


def test_a_counter_is_a_type_line_and_a_line_for_each_set_of_labels():
    metrics.answered("half", "predict", "REST", "OK", 20)
    metrics.answered("half", "predict", "REST", "NOT_FOUND", 20)
    metrics.answered("half", "Predict", "GRPC", "OK", 20)
    lines = [line for line in metrics.text().splitlines() if "request_count" in line]
    assert lines == [
        "# TYPE :tensorflow:serving:request_count counter",
        ':tensorflow:serving:request_count{model_name="half",status="OK"} 2',
        ':tensorflow:serving:request_count{model_name="half",status="NOT_FOUND"} 1',
    ]


def test_a_metric_without_labels_has_braces_and_one_without_values_its_type():
    metrics.batch(rows=4, padding=1)
    text = metrics.text()
    assert "\n:tensorflow:serving:batching_session:wrapped_run_count{} 1\n" in text
    assert "\n# TYPE :tensorflow:serving:model_warmup_latency histogram\n# TYPE" in text
    assert "# HELP" not in text
    assert "_created" not in text


def test_latency_has_tf_servings_33_buckets_and_counts_a_value_on_a_limit_above_it():
    metrics.answered("half", "predict", "REST", "OK", 18)
    metrics.answered("half", "predict", "REST", "OK", 5e9)
    start = ':tensorflow:serving:request_latency_bucket{model_name="half",API="predict",entrypoint="REST",le="'
    buckets = [line[len(start) :] for line in metrics.text().splitlines() if line.startswith(start)]
    assert len(buckets) == 34
    assert buckets[:6] == ['10"} 0', '18"} 0', '32.4"} 1', '58.32"} 1', '104.976"} 1', '188.957"} 1']
    assert buckets[-2:] == ['1.47476e+09"} 1', '+Inf"} 2']


def test_failures_count_in_requests_and_not_in_latency():
    metrics.answered("half", "predict", "REST", "INVALID_ARGUMENT", 20)
    assert sample(":tensorflow:serving:request_count", model_name="half", status="INVALID_ARGUMENT") == 1
    assert "request_latency_count" not in metrics.text()


def test_sums_keep_all_their_digits():
    for _ in range(3):
        metrics.ran("half", "Predict", 123_456_789.25)
    labels = {"model_name": "half", "API": "Predict", "runtime": "TF1"}
    assert sample(":tensorflow:serving:runtime_latency_sum", **labels) == 370_370_367.75


def test_label_values_are_escaped_so_that_no_name_can_forge_a_line():
    name = 'a"} 1\n:forged{} 1\\'
    metrics.answered(name, "predict", "REST", "NOT_FOUND", 20)
    assert sample(":tensorflow:serving:request_count", model_name=name, status="NOT_FOUND") == 1
    assert "\n:forged" not in metrics.text()


def test_unknown_names_are_one_series_only_where_labels_are_bound():
    for name in ("made", "up"):
        metrics.answered(name, "predict", "REST", "NOT_FOUND", 20)
    assert sample(":tensorflow:serving:request_count", model_name="made", status="NOT_FOUND") == 1
    metrics.bound({"half"}.__contains__)
    for name in ("half", "", *(f"name{i}" for i in range(500))):
        metrics.answered(name, "predict", "REST", "NOT_FOUND", 20)
    for name, count in [("half", 1), ("", 1), ("other", 500)]:
        assert sample(":tensorflow:serving:request_count", model_name=name, status="NOT_FOUND") == count
    for i in range(500):
        metrics.dropped(f"dropped{i}", "shed")
    assert "dropped7" not in metrics.text()


def test_outputs_add_up_over_all_requests_without_those_that_are_not_finite():
    rng = np.random.default_rng(7)
    arrays = [rng.normal(size=(rng.integers(0, 9), 3)).astype(np.float32) for _ in range(600)]
    for array in arrays:
        metrics.outputs("half", 3, {"serving_default/y": array, "serving_default/n": np.int32([1])})
    metrics.outputs("half", 3, {"serving_default/y": np.float32([np.nan, np.inf, 1])})
    labels = {"model_name": "half", "version": "3", "output": "serving_default/y"}
    values = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
    assert sample(":minibatch:serving:output_count", **labels) == len(values) + 1
    assert sample(":minibatch:serving:output_sum", **labels) == pytest.approx(values.sum() + 1)
    assert sample(":minibatch:serving:output_sum_squares", **labels) == pytest.approx((values**2).sum() + 1)
    assert sample(":minibatch:serving:output_not_finite", **labels) == 2
    assert "serving_default/n" not in metrics.text()


def columns(output: str) -> dict[str, tuple[float, ...]]:
    """Column -> count, sum, sum of squares."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(metrics.text()):
        for each in family.samples:
            if "output_column_" in each.name and each.labels["output"] == output:
                found.setdefault(each.labels["column"], {})[each.name.removesuffix("_total")] = each.value
    return {column: tuple(value for _, value in sorted(values.items())) for column, values in found.items()}


def test_a_narrow_output_is_summed_by_column_too_without_what_is_not_finite():
    rng = np.random.default_rng(7)
    arrays = [rng.normal(size=(rng.integers(0, 9), 3)).astype(np.float32) for _ in range(600)]
    for array in arrays:
        metrics.outputs("half", 3, {"y": array})
    metrics.outputs("half", 3, {"y": np.float32([[np.nan, 1, -np.inf]])})
    values = np.concatenate(arrays).astype(np.float64)
    found = columns("y")
    assert set(found) == {"0", "1", "2"}
    for i, more in enumerate([0, 1, 0]):
        sums = (values[:, i].sum() + more, (values[:, i] ** 2).sum() + more)
        assert found[str(i)] == pytest.approx((len(values) + more, *sums))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, metrics._WIDEST + 1), (2, 2, 3), ()])
def test_other_outputs_make_no_series_by_column(shape):
    metrics.outputs("half", 3, {"y": np.zeros(shape, np.float32)})
    assert columns("y") == {}
    assert f'output="y"}} {np.prod(shape, dtype=int)}\n' in metrics.text()


@pytest.mark.parametrize("looks", [False, True])
def test_an_output_whose_width_changes_has_no_columns_from_then_on(looks):
    for width in (3, 4, 3):
        metrics.outputs("half", 3, {"y": np.ones((2, width), np.float32)})
        metrics.outputs("half", 3, {"z": np.ones((2, 3), np.float32)})
        if looks:
            metrics.text()
    assert columns("y") == {}
    assert len(columns("z")) == 3


def test_a_version_that_comes_back_with_another_width_has_its_columns():
    metrics.outputs("half", 3, {"y": np.ones((2, 3), np.float32)})
    metrics.forget("half", 3)
    assert columns("y") == {}
    metrics.outputs("half", 3, {"y": np.ones((2, 4), np.float32)})
    assert len(columns("y")) == 4


def test_outputs_that_wait_to_be_summed_are_bounded():
    for _ in range(metrics._PENDING_ARRAYS * 3):
        metrics.outputs("half", 3, {"y": np.float32([1])})
    for _ in range(3):
        metrics.outputs("half", 3, {"y": np.zeros(metrics._PENDING_VALUES, np.float32)})
    assert metrics._outputs == {}


def test_a_version_that_was_unloaded_leaves_no_series_and_the_model_keeps_its_own():
    for version in (1, 2):
        metrics.request("half", version, "OK", 20)
        metrics.outputs("half", version, {"y": np.float32([1])})
    metrics.answered("half", "predict", "REST", "OK", 20)
    metrics.forget("half", 1)
    assert 'version="1"' not in metrics.text()
    assert sample(":minibatch:serving:requests", model_name="half", version="2", status="OK") == 1
    assert sample(":tensorflow:serving:request_count", model_name="half", status="OK") == 1


def test_rest_counts_every_request_and_times_those_that_succeed(rest):
    half = b'{"signature_name": "half", "instances": [1, 3]}'
    for method, path, body in [
        ("POST", "/v1/models/pair:predict", half),
        ("POST", "/v1/models/pair:predict", b"{"),
        ("GET", "/v1/models/pair", b""),
        ("GET", "/v1/models/pair/metadata", b""),
        ("GET", "/v1/models/nobody", b""),
        ("GET", "/v1/models", b""),
        ("PUT", "/v1/models/pair", b""),
        ("OPTIONS", "/v1/models/pair", b""),
        ("GET", "/elsewhere", b""),
    ]:
        rest.call(method, path, body)
    counts = [line for line in metrics.text().splitlines() if line.startswith(":tensorflow:serving:request_count{")]
    assert sorted(counts) == [
        ':tensorflow:serving:request_count{model_name="",status="FAILED_PRECONDITION"} 1',
        ':tensorflow:serving:request_count{model_name="",status="INVALID_ARGUMENT"} 2',
        ':tensorflow:serving:request_count{model_name="nobody",status="NOT_FOUND"} 1',
        ':tensorflow:serving:request_count{model_name="pair",status="INVALID_ARGUMENT"} 1',
        ':tensorflow:serving:request_count{model_name="pair",status="OK"} 3',
    ]
    timed = {"model_name": "pair", "entrypoint": "REST"}
    assert sample(":tensorflow:serving:request_latency_count", API="predict", **timed) == 1
    assert sample(":tensorflow:serving:request_latency_count", API="", **timed) == 2


def test_what_a_version_answered_is_counted_for_that_version(rest):
    rest.post("/v1/models/pair:predict", '{"signature_name": "half", "instances": [1, 3]}')
    rest.post("/v1/models/pair:predict", '{"signature_name": "half", "instances": ["a"]}')
    rest.post("/v1/models/pair/versions/9:predict", '{"signature_name": "half", "instances": [1]}')
    rest.post("/v1/models/examples:classify", '{"examples": [{"x": 1.0}]}')
    version = {"model_name": "pair", "version": "2"}
    assert sample(":minibatch:serving:requests", status="OK", **version) == 1
    assert sample(":minibatch:serving:requests", status="INVALID_ARGUMENT", **version) == 1
    assert sample(":minibatch:serving:latency_count", **version) == 2
    assert sample(":minibatch:serving:output_count", output="half/y", **version) == 2
    assert sample(":minibatch:serving:output_sum", output="half/y", **version) == 6
    assert sample(":minibatch:serving:output_sum_squares", output="half/y", **version) == 2.5**2 + 3.5**2
    for model, api in [("pair", "Predict"), ("examples", "Classify")]:
        assert sample(":tensorflow:serving:runtime_latency_count", model_name=model, API=api, runtime="TF1") == 1


def test_buckets_grow_by_their_factor():
    assert exposition.exponential(1, 2, 4) == (1, 2, 4, 8)
