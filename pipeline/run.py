"""The whole flow, from a source to a pushed model."""

from pathlib import Path

from pipeline.advice.report import report
from pipeline.config import Config
from pipeline.errors import Refused
from pipeline.preprocess.job import preprocess
from pipeline.release.evaluate import evaluate_export, write
from pipeline.release.export import export
from pipeline.release.gate import gate
from pipeline.release.push import publish
from pipeline.release.validate import validate
from pipeline.sources.source import Source
from pipeline.training.loop import train


def run(config: Config, preset: str, source: Source | None = None) -> Path:
    """source -> records -> run -> export -> evaluation -> decision -> validation -> version; returns its directory.

    The export is made before the evaluation, since what is judged must be what will be served. Each stage finds its own
    finished work and goes on from there, so a command that was stopped is repeated as it is. Raises Refused when the
    gate says no, with the report written, or the server that is booted on the export. `source` takes the place of the
    one that `config.data` names.
    """
    records = preprocess(config, source)
    run_dir = train(config, records, preset)
    exported = export(run_dir, records, config)
    evaluation = evaluate_export(exported, records, config)
    write(evaluation, run_dir / "evaluation.json")
    decision = gate(exported, evaluation, records, config, run_dir)
    if not decision.accepted:
        raise Refused(f"{run_dir}: nothing was pushed. {decision.text} Report: {report(run_dir)}")
    if config.push.validate:
        validate(run_dir, config)
    version = publish(run_dir, records, config.exports_root, config.push.percent, config.push.key_file)
    report(run_dir)
    return version
