"""The whole flow, from a source to a pushed model."""

import json
from pathlib import Path

from pipeline import manifest
from pipeline.advice.report import report
from pipeline.config import Config
from pipeline.errors import Refused
from pipeline.preprocess.job import preprocess
from pipeline.release.evaluate import evaluate_export, write
from pipeline.release.export import export
from pipeline.release.gate import gate
from pipeline.release.push import push
from pipeline.sources.source import Source
from pipeline.training.loop import train


def run(config: Config, preset: str, source: Source | None = None) -> Path:
    """source -> records -> run -> export -> evaluation -> decision -> pushed version; returns the version's directory.

    The export is made before the evaluation, since what is judged must be what will be served. Each stage finds its own
    finished work and goes on from there, so a command that was stopped is repeated as it is. Raises Refused when the
    gate says no; the report is written either way. `source` takes the place of the one that `config.data` names.
    """
    records = preprocess(config, source)
    run_dir = train(config, records, preset)
    exported = export(run_dir, records, config)
    evaluation = evaluate_export(exported, records, config)
    write(evaluation, run_dir / "evaluation.json")
    decision = gate(exported, evaluation, records, config, run_dir)
    if not decision.accepted:
        raise Refused(f"{run_dir}: nothing was pushed. {decision.text} Report: {report(run_dir)}")
    version = push(exported, config.exports_root, {"run": str(run_dir), "records": records.name})
    manifest.write_file(run_dir / "pushed.json", json.dumps({"version": int(version.name), "path": str(version)}))
    report(run_dir)
    return version
