"""Run directory -> SavedModel whose signatures take raw inputs, with everything it needs inside."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models.analysis import load
from models.spec import spec_of
from pipeline import checkpoints, manifest, records, runs
from pipeline.config import Config
from pipeline.release import statistics

WARMUP_ROWS = (1, 8)  # batch sizes a server has seen before its first client comes


def export(run_dir: Path, records_dir: Path, config: Config) -> Path:
    """Commits `run_dir/export` from the best checkpoint; returns it, verified, when it is there already."""
    destination = Path(run_dir) / "export"
    manifest.sweep(run_dir)
    if manifest.is_committed(destination):
        manifest.verify(destination)
        return destination
    analysis = load(records_dir, config.task)
    serving = spec_of(config.task).serve(checkpoints.best_model(run_dir, config, analysis), config.model, analysis)
    with manifest.committing(destination) as draft:
        tf.saved_model.save(serving, str(draft.path), signatures=dict(serving.functions))
        rows = records.load(records_dir, "val", config.task)
        _write_warmup(draft.path, serving.functions, rows, config)
        statistics.write(draft.path / "assets.extra" / "statistics.json", rows, analysis, config.model)
        draft.facts.update(
            model=config.run.model,
            task=config.task,
            seed=config.train.seed,
            run=str(run_dir),
            records=Path(records_dir).name,
            best_checkpoint=runs.finished(run_dir)["best_checkpoint"],
            signatures=sorted(serving.functions),
        )
    return destination


def _write_warmup(directory: Path, signatures: dict, rows: dict[str, np.ndarray], config: Config) -> None:
    """assets.extra/tf_serving_warmup_requests: PredictionLogs that a server replays before it serves.

    The answers stand beside the requests, from the model in memory. A server passes over them; `release.validate`
    compares what is served with them.
    """
    from tensorflow_serving.apis import prediction_log_pb2  # stubs only, but slow to import

    extra = directory / "assets.extra"
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for name, function in signatures.items():
            for size in WARMUP_ROWS:
                log = prediction_log_pb2.PredictionLog()
                request, response = log.predict_log.request, log.predict_log.response
                request.model_spec.name, request.model_spec.signature_name = config.run.model, name
                inputs = {
                    spec.name: tf.constant(_example_values(spec.name, rows, size, config), spec.dtype)
                    for spec in function.input_signature
                }
                for feature, value in inputs.items():
                    request.inputs[feature].CopyFrom(tf.make_tensor_proto(value.numpy(), value.dtype))
                for output, value in function(**inputs).items():
                    response.outputs[output].CopyFrom(tf.make_tensor_proto(value.numpy(), value.dtype))
                writer.write(log.SerializeToString())


def _example_values(name: str, rows: dict[str, np.ndarray], size: int, config: Config):
    """`size` values [size, ...] for the signature input `name`, from real rows."""
    model: Any = config.model
    picked = {feature: np.resize(values, size) for feature, values in rows.items()}
    if name == "inputs":
        return [records.encode({f: v[i] for f, v in picked.items()}, config.task) for i in range(size)]
    if name == "image":
        return np.zeros((size, model.height, model.width, model.channels), np.uint8)
    return picked[name]
