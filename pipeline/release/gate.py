"""Decides whether a candidate may go live: against absolute thresholds, and against the model that is live now.

In this order; each refusal names metric, slice, old and new value and the threshold:

1. A candidate that cannot be served (`Evaluation.problems`) is refused for that, and nothing else is asked.
2. Fewer rows than `min_examples` are no evidence. One answer for every row, or classes that answer for each other in a
   circle (labels shifted), is refused by name, whatever the thresholds are.
3. `at_least` and `at_most` hold on all rows, or on a slice: `accuracy[label=cat]`. What was not measured, an empty
   slice and a slice of fewer than `min_slice_examples` rows are no pass: refused.
4. `tolerance` on all rows, `slice_tolerance` on each slice that has `min_slice_examples` rows for both models (users,
   for ranking metrics). Smaller ones are told as not judged; if none at all is large enough that is a refusal.
   A batch may take `max_latency_ratio` times as long as the live model's.
5. No model is live: rules 1 to 3 decide. A live model that cannot be read or asked: refused, since nothing would be
   compared; the message says how to go on.
6. A live model that was trained on other records may have seen the test rows: a note says so, since the comparison then
   favours it, and how many rows they are where its records are still there.

The measured values decide, not the ends of their 95% intervals: an interval that could excuse a candidate would let
everything pass on a small test set, and one that had to clear the bar would refuse most equal models. The interval is
shown beside the value, and where the threshold lies inside it the text says so: more test rows would tell, or another
tolerance is meant.
"""

import contextlib
import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.config import Config, Gate, to_json
from pipeline.errors import UserError, redacted
from pipeline.release.answers import side_by_side
from pipeline.release.evaluate import Evaluation, evaluate, load_export, load_rows
from pipeline.release.exposure import exposure
from pipeline.release.live import champion as live_version
from pipeline.release.live import current, versions
from pipeline.release.metrics import LOWER_IS_BETTER

log = logging.getLogger(__name__)

ALL = "all"
EPSILON = 1e-9  # 0.90 - 0.01 is not exactly 0.89


@dataclass(frozen=True)
class Reason:
    """One check. `old` is the live model's value, `new` the candidate's, `threshold` the worst value allowed."""

    metric: str
    slice: str
    old: float | None
    new: float | None
    threshold: float | None
    text: str


@dataclass(frozen=True)
class Decision:
    accepted: bool
    reasons: tuple[Reason, ...]
    """Why not; empty when accepted."""
    passed: tuple[Reason, ...] = ()
    """The checks that held."""
    not_judged: tuple[str, ...] = ()
    """Slices that were too small to compare, a line each."""
    champion: int | None = None
    """Version of the live model it was compared with."""
    champion_export: str = ""
    """Fingerprint of that version's files: another model may have the same number."""
    notes: tuple[str, ...] = ()
    """What a reader of the comparison should know, a line each."""
    export: str = ""
    """Fingerprint of the files that were judged."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The sections `gate` and `run` of the configuration that it was judged by."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def text(self) -> str:
        """All refusals in one line."""
        return " ".join(reason.text for reason in self.reasons)


Check = tuple[bool, Reason]


def judge(
    candidate: Evaluation, champion: Evaluation | None, gate: Gate, champion_problem: str | None = None
) -> Decision:
    """The decision by the rules above. `champion_problem` says why a model that is live cannot be compared."""
    if candidate.problems:
        found = (_named("problem", f"The candidate cannot be served: {p}.") for p in candidate.problems)
        return Decision(False, tuple(found))
    checks = [*_evidence(candidate, gate), *_absolute(candidate, champion, gate)]
    small: list[str] = []
    if champion_problem:
        checks.append((False, _named("champion", champion_problem)))
    elif champion:
        compared, small = _slices(candidate, champion, gate)
        checks += [*_overall(candidate, champion, gate), *compared, *_latency(candidate, champion, gate)]
    refused = tuple(reason for held, reason in checks if not held)
    return Decision(not refused, refused, tuple(reason for held, reason in checks if held), tuple(small))


def gate(export_dir: Path, evaluation: Evaluation, records_dir: Path, config: Config, run_dir: Path) -> Decision:
    """Judges the export, whose `evaluation` on the test rows is given, against the stable version under
    `config.exports_root`, which is evaluated on the same rows here; writes decision.json into `run_dir`.

    The latencies that are compared are measured here, both models in turns. Raises UserError when the rows or the
    candidate cannot be read; a refusal is returned, not raised.
    """
    standing, version = current(config.exports_root), live_version(config.exports_root)
    champion: Evaluation | None = None
    problem = ""
    if version:
        asked = load_rows(records_dir, config)
        try:
            served = load_export(version)
            champion = evaluate(served.signatures, **asked)
            problem = "; ".join(champion.problems)
        except UserError as error:
            problem = str(error)
        if champion and not problem and not evaluation.problems:
            own = load_export(export_dir)
            new, old = side_by_side([own.signatures, served.signatures], asked["task"], asked["rows"])
            evaluation = dataclasses.replace(evaluation, seconds=new)
            champion = dataclasses.replace(champion, seconds=old)
    elif versions(config.exports_root):
        problem = "none of the versions in it was committed by minibatch"
    if problem:
        problem = (
            f"champion: the live model in {version or config.exports_root} cannot be compared with "
            f"({problem.rstrip('.')}). Move that folder away to be judged without it, or give the candidate another "
            "name with --run.model, and repeat the command."
        )
    ours, theirs = manifest.files_fingerprint(export_dir), ""
    notes: list[str] = []
    if version:
        with contextlib.suppress(UserError):  # not committed by us: refused already
            theirs = manifest.files_fingerprint(version)
        notes = [exposure(version, records_dir, config)]
        if ours == theirs:
            notes.append(f"{version}, which is live, is this very export: it was compared with itself.")
    decision = dataclasses.replace(
        judge(evaluation, champion, config.gate, problem),
        champion=standing.stable if standing else None,
        champion_export=theirs,
        notes=tuple(filter(None, notes)),
        export=ours,
        settings={name: redacted(to_json(getattr(config, name))) for name in ("gate", "run")},
    )
    for note in decision.notes:
        log.warning("%s", note)
    manifest.write_file(Path(run_dir) / "decision.json", json.dumps(decision.to_json(), indent=1))
    return decision


def _evidence(candidate: Evaluation, gate: Gate) -> list[Check]:
    rows, confusion = candidate.examples, candidate.confusion
    text = f"examples, slice all: live none, candidate {rows} test rows, lowest allowed {gate.min_examples}."
    checks: list[Check] = [(rows >= gate.min_examples, Reason("examples", ALL, None, rows, gate.min_examples, text))]
    answered = {answer for row in confusion.values() for answer in row}
    if len(answered) == 1 and len(confusion) > 1:
        text = f"prediction collapse: {answered.pop()!r} for all {rows} rows, which hold {len(confusion)} classes."
        checks.append((False, _named("prediction collapse", text)))
    if shift := _shifted(confusion):
        pairs = [f"{true!r} is answered {answer!r}" for true, answer in shift.items()]
        text = f"labels shifted: {', '.join(pairs[:3])}{', ...' if len(pairs) > 3 else ''}."
        checks.append((False, _named("labels shifted", text)))
    return checks


def _shifted(confusion: dict[str, dict[str, int]]) -> dict[str, str]:
    """True class -> usual answer, if that permutes all classes, moves each, and is right 0.2 more often; else {}."""
    usual = {true: max(row, key=row.__getitem__) for true, row in confusion.items()}
    if set(usual) != set(usual.values()) or any(true == answer for true, answer in usual.items()):
        return {}
    rows = sum(sum(row.values()) for row in confusion.values())
    gained = sum(row[usual[true]] - row.get(true, 0) for true, row in confusion.items())
    return usual if gained > 0.2 * rows else {}


def _absolute(candidate: Evaluation, champion: Evaluation | None, gate: Gate) -> list[Check]:
    checks = []
    for bounds, higher in ((gate.at_least, True), (gate.at_most, False)):
        for key, bound in bounds.items():
            metric, _, part = key.removesuffix("]").partition("[")
            size = _size(candidate, metric, part or ALL)
            few = f"not measured on {gate.min_slice_examples} rows" if part and size < gate.min_slice_examples else ""
            checks.append(_check(metric, part or ALL, champion, candidate, bound, higher, few))
    return checks


def _overall(candidate: Evaluation, champion: Evaluation, gate: Gate) -> list[Check]:
    return [_against(metric, ALL, champion, candidate, tolerance) for metric, tolerance in gate.tolerance.items()]


def _slices(candidate: Evaluation, champion: Evaluation, gate: Gate) -> tuple[list[Check], list[str]]:
    checks: list[Check] = []
    small: list[str] = []
    for metric, tolerance in gate.slice_tolerance.items():
        judged = len(checks)
        for part in champion.slices:
            size = min(_size(evaluation, metric, part) for evaluation in (candidate, champion))
            if size < gate.min_slice_examples:
                small.append(f"{metric}, slice {part}: not judged, {size} rows of at least {gate.min_slice_examples}.")
            elif _value(champion, metric, part) is not None:  # else it has no meaning here, as AUC of one class
                checks.append(_against(metric, part, champion, candidate, tolerance))
        if len(checks) == judged:
            text = f"{metric}: not measured on any slice of {gate.min_slice_examples} rows, but in slice_tolerance."
            checks.append((False, _named(metric, text)))
    return checks, small


def _latency(candidate: Evaluation, champion: Evaluation, gate: Gate) -> list[Check]:
    checks = []
    for signature, old in champion.seconds.items():
        name, new, bound = f"latency of {signature}", candidate.seconds.get(signature), gate.max_latency_ratio * old
        shown = "not measured" if new is None else f"{new * 1e3:.3g} ms"
        text = (
            f"{name}, slice all: live {old * 1e3:.3g} ms a batch, candidate {shown}, "
            f"highest allowed {bound * 1e3:.3g} ms ({gate.max_latency_ratio:g} times)."
        )
        checks.append((new is not None and new <= bound, Reason(name, ALL, old, new, bound, text)))
    return checks


def _against(metric: str, part: str, champion: Evaluation, candidate: Evaluation, tolerance: float) -> Check:
    """The candidate may be worse than the live model by `tolerance`."""
    old, higher = _value(champion, metric, part), metric not in LOWER_IS_BETTER
    bound = None if old is None else old - tolerance if higher else old + tolerance
    return _check(metric, part, champion, candidate, bound, higher)


def _check(
    metric: str,
    part: str,
    champion: Evaluation | None,
    candidate: Evaluation,
    bound: float | None,
    higher: bool,
    missing: str = "",
) -> Check:
    """Is the candidate's value on the right side of `bound`, and the line that says so; `missing`: why it has none."""
    new, old = _value(candidate, metric, part), _value(champion, metric, part) if champion else None
    if missing or new is None or bound is None:
        held, shown = False, missing or "not measured"
    else:
        held = new >= bound - EPSILON if higher else new <= bound + EPSILON
        shown = f"{new:.4f}{_interval(candidate, metric, bound) if part == ALL else ''}"
    text = (
        f"{metric}, slice {part} ({_size(candidate, metric, part)} {'users' if '@' in metric else 'rows'}): "
        f"live {_figure(old)}, candidate {shown}, {'lowest' if higher else 'highest'} allowed {_figure(bound)}."
    )
    return held, Reason(metric, part, old, new, bound, text)


def _interval(evaluation: Evaluation, metric: str, bound: float) -> str:
    if metric not in evaluation.intervals:
        return ""
    low, high = evaluation.intervals[metric]
    return f" (95% interval {low:.4f} to {high:.4f}{', threshold inside' if low <= bound <= high else ''})"


def _named(metric: str, text: str) -> Reason:
    return Reason(metric, ALL, None, None, None, text)


def _value(evaluation: Evaluation, metric: str, part: str) -> float | None:
    return (evaluation.metrics if part == ALL else evaluation.slices.get(part, {})).get(metric)


def _size(evaluation: Evaluation, metric: str, part: str) -> int:
    """Rows, or for a ranking metric (ndcg@10) the users that it is a mean of."""
    if part == ALL:
        return evaluation.users if "@" in metric else evaluation.examples
    return int(evaluation.slices.get(part, {}).get("users" if "@" in metric else "examples", 0))


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
