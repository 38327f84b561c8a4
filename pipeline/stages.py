"""One function a command: finds its stage's input directories, calls the stage, prints what a script wants to read.

Imports stay inside: a host has only what its stages need.
"""

import json
from pathlib import Path

from pipeline import runs
from pipeline.advice.proofs import Distribution, Resumption
from pipeline.config import Config
from pipeline.errors import Refused, UserError


def run(preset: str, config: Config) -> None:
    from pipeline.run import run

    print(run(config, preset))


def preprocess(preset: str, config: Config) -> None:
    from pipeline.preprocess.job import preprocess

    print(preprocess(config))


def explain(preset: str, config: Config) -> None:
    from pipeline.preprocess.job import explain

    print(explain(config))


def train(preset: str, config: Config) -> None:
    from pipeline import records
    from pipeline.training.loop import train

    run_dir = train(config, records.find(config), preset)
    print(run_dir)
    print(json.dumps(runs.result(run_dir)))


def export(preset: str, config: Config) -> None:
    from pipeline.release.export import export

    run_dir, records = _trained(config)
    print(export(run_dir, records, config))


def evaluate(preset: str, config: Config) -> None:
    from pipeline.release.evaluate import evaluate_export, write

    run_dir, records = _trained(config)
    evaluation = evaluate_export(runs.exported(run_dir), records, config)
    write(evaluation, run_dir / "evaluation.json")
    print(json.dumps({"metrics": evaluation.metrics, "intervals": evaluation.intervals}))
    if evaluation.problems:
        raise UserError(f"{run_dir}: the export cannot be served: {' '.join(evaluation.problems)}")


def gate(preset: str, config: Config) -> None:
    from pipeline.release.evaluate import evaluate_export, write
    from pipeline.release.gate import gate

    run_dir, records = _trained(config)
    evaluation = evaluate_export(runs.exported(run_dir), records, config)
    write(evaluation, run_dir / "evaluation.json")
    decision = gate(runs.exported(run_dir), evaluation, records, config, run_dir)
    if not decision.accepted:
        raise Refused(f"{run_dir}: {decision.text}")
    print(f"{run_dir}: accepted")


def validate(preset: str, config: Config) -> None:
    from pipeline.release.validate import validate

    run_dir, _ = _trained(config)
    print(json.dumps(validate(run_dir, config, again=True)))


def push(preset: str, config: Config) -> None:
    from pipeline.release.push import accepted, publish
    from pipeline.release.validate import validate

    run_dir, records = _trained(config)
    accepted(run_dir)
    if config.push.validate:
        validate(run_dir, config)
    print(publish(run_dir, records, config.exports_root, config.push.percent, config.push.key_file))


def report(preset: str, config: Config) -> None:
    from pipeline.advice.report import report

    print(report(runs.existing_run(config)))


def verify_resume(preset: str, config: Resumption) -> None:
    from pipeline.advice.resumption import verify

    verify(config, preset)


def verify_distribution(preset: str, config: Distribution) -> None:
    from pipeline.advice.distribution import verify

    verify(config, preset)


def _trained(config: Config) -> tuple[Path, Path]:
    """The newest run of this name and the records it was trained on."""
    run_dir = runs.existing_run(config)
    runs.same_settings(config, run_dir)
    return run_dir, runs.records_of(runs.read(run_dir / "config.json"), config.run.root)
