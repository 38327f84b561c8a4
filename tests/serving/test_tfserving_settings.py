"""The settings for the real TF Serving image, as far as its protos are installed."""

import re
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.server.config import read_config_file

SETTINGS = Path(__file__).parents[2] / "serving" / "tfserving"


def test_the_models_are_the_three_samples_under_models():
    parsed = text_format.Parse((SETTINGS / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    found = {m.name: (m.base_path, m.model_platform) for m in parsed.model_config_list.config}
    assert found == {name: (f"/models/{name}", "tensorflow") for name in ("digits", "reviews", "ratings")}


def test_the_embedded_server_reads_the_same_file():
    configs = read_config_file(SETTINGS / "models.config")
    assert [(c.name, c.policy.latest) for c in configs] == [("digits", 1), ("reviews", 1), ("ratings", 1)]


def test_the_last_allowed_batch_size_is_the_largest_batch():
    text = (SETTINGS / "batching_parameters.txt").read_text()
    sizes = [int(size) for size in re.findall(r"^allowed_batch_sizes: (\d+)", text, re.MULTILINE)]
    assert sizes == sorted(sizes)
    assert re.search(r"^max_batch_size { value: (\d+) }", text, re.MULTILINE).group(1) == str(sizes[-1])


def test_metrics_are_on_under_tf_servings_own_path():
    text = (SETTINGS / "monitoring.config").read_text()
    assert re.search(r"enable: true\s+path: \"/monitoring/prometheus/metrics\"", text)
