"""One self-contained HTML page a run: what came out, how it got there, and the command that repeats it.

Everything is read from files in the run's directory; each may be absent, and its section then says so:

    config.json      {"preset", "config": settings, "records": path, "fingerprint": {…}}
    plan.json        see training/plan.py
    metrics.jsonl    see training/journal.py
    training.json    {"best_step", "best_epoch", "epochs", "seconds", "steps", "examples_per_second", "stopped"}
    evaluation.json  release.evaluate.Evaluation
    decision.json    release.gate.Decision
    pushed.json      {"version", "path"}
    <records>/MANIFEST.json
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import manifest, runs
from pipeline.advice import findings
from pipeline.advice.text import duration, flatten, number
from pipeline.errors import MISSING, USAGE, Corrupt, UserError
from pipeline.training import diagnosis, journal

Json = Mapping[str, Any]
NAME = "report.html"
TEMPLATE = "report.html.jinja"
TRAINING = ("best_step", "best_epoch", "epochs", "seconds", "steps", "examples_per_second", "stopped")
SECTIONS = ("model", "data", "optimizer", "train", "gate", "run")


def report(run_dir: Path) -> Path:
    """Writes `run_dir`/report.html and returns its path; equal inputs give equal bytes.

    Raises UserError without the report extra or without a run, and Corrupt for a file that is not JSON.
    """
    try:
        import jinja2

        from pipeline.advice.curves import curves
    except ImportError as error:
        raise UserError(
            f"A report needs {error.name}: pip install '.[report]' in the project's folder.", USAGE
        ) from None
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not there: a report is made of a run, runs/<name>/<number>.", MISSING)
    described, plan, training, evaluation, decision, pushed = (
        _json(run_dir / f"{name}.json") for name in ("config", "plan", "training", "evaluation", "decision", "pushed")
    )
    resolved = run_dir.resolve()
    records: Json = {}
    if described.get("records"):
        records = _json(runs.records_of(described, resolved.parents[2]) / manifest.NAME)
    # Gate and names are those of the decision: they may change while the run, which does not depend on them, stays.
    config, lines = {**described.get("config", {}), **decision.get("settings", {})}, journal.read(run_dir)
    described = {**described, "config": config}
    gate, task = config.get("gate", {}), config.get("task")
    key = findings.key_metric(gate, evaluation, task)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, duration=duration)
    page = environment.get_template(TEMPLATE).render(
        name=f"{config.get('run', {}).get('name') or resolved.parent.name} {resolved.name}",
        preset=described.get("preset"),
        task=task,
        verdict=findings.verdict(decision, pushed),
        decision={"reasons": [], "passed": [], "not_judged": [], "notes": [], **decision},
        plan=plan,
        training=training and {**dict.fromkeys(TRAINING), **training},
        evaluation={"examples": None, "users": 0, "seconds": {}, "problems": [], **evaluation},
        metrics=findings.metrics(gate, evaluation, decision, key),
        warnings=diagnosis.diagnose(lines),
        curves=curves(lines, key, training.get("best_step")),
        slices=findings.slices(evaluation, key, gate.get("min_slice_examples", 0)),
        key=key,
        confusion=findings.confusion(evaluation.get("confusion", {})),
        settings=[(name, flatten(config[name])) for name in SECTIONS if config.get(name)],
        rows=_rows(records),
        facts=flatten({name: value for name, value in records.items() if name not in ("files", "counts")}),
        lineage=_lineage(described, decision, pushed),
        command=command(described, plan.get("chosen", {})),
    )
    manifest.write_file(run_dir / NAME, page)
    return run_dir / NAME


def command(described: Json, plan: Json | None = None) -> str | None:
    """The shell command that makes the run again, with every setting spelled out, so that it means the same when a
    preset has changed. With the plan that the run measured, given, it is the same run bit for bit.
    """
    if not described.get("preset"):
        return None
    config = described.get("config", {})
    if plan:
        kept = {name: plan[name] for name in ("jit", "precision", "inputs", "steps_per_call")}
        config = {**config, "train": {**config.get("train", {}), **kept, "plan": "given"}}
    return shlex.join(["minibatch", "run", described["preset"], "--fresh", *words(config)])


def words(config: Json) -> list[str]:
    """The options that spell out every setting of a config (as config.to_json gives it) but where things lie."""
    return [
        word
        for section in SECTIONS
        for name, value in config.get(section, {}).items()
        if name not in ("task", "root", "cache", "fresh")  # the preset's, and matters of the machine
        for word in _option(section, name.replace("_", "-"), value)
    ]


def _option(section: str, name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{section}.{name}" if value else f"--{section}.no-{name}"]
    if isinstance(value, dict):
        return [f"--{section}.{name}", *(str(word) for pair in value.items() for word in pair)]
    if name == "runner-options":  # flags themselves, so in one word behind an equals sign
        return [f"--{section}.{name}={shlex.join(value)}"] if value else []
    if isinstance(value, list):
        return [f"--{section}.{name}", *map(str, value)] if value else []
    return [f"--{section}.{name}", str(value)] if value != "" else []


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise Corrupt(f"{path} is not readable ({error}): repeat the stage that wrote it.") from None


def _rows(records: Json) -> list[tuple[str, int]]:
    """(what, rows) of a records directory, as its manifest counts them."""
    words = {"in": "rows in", "good": "good", "dead": "dead letters", "train": "train", "val": "val", "test": "test"}
    counts = records.get("counts", {})
    return [(words[kind], counts[kind]) for kind in words if kind in counts]


def _lineage(described: Json, decision: Json, pushed: Json) -> list[tuple[str, str]]:
    if not described:
        return []
    elsewhere = ("preset", "config", "fingerprint")
    rest = {name: value for name, value in described.items() if name not in elsewhere}
    prints, live = dict(described.get("fingerprint", {})), decision.get("champion")
    versions = prints.pop("versions", {})
    return flatten(
        {
            **rest,
            **{f"{name} fingerprint": value for name, value in prints.items()},
            **versions,
            "seed": described.get("config", {}).get("train", {}).get("seed"),
            "export": pushed.get("path") or "not pushed",
            "live model before": "none" if live is None else f"version {live}",
        }
    )
