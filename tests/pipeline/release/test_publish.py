"""A push makes live what the gate accepted beside what is live, once, whatever happens on the way."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.errors import MISSING, REFUSED, Corrupt, Refused, UserError
from pipeline.release import live, rollout
from pipeline.release.live import Live
from pipeline.release.push import publish
from tests import faults


def run_of(parent: Path, content: str, champion: int | None = None, **decision) -> Path:
    """A finished run whose export was judged."""
    run_dir = parent / "runs" / content / "0001"
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({"preset": "p", "fingerprint": {"code": "c", "versions": {}}}))
    with manifest.committing(run_dir / "checkpoints" / "000000009") as draft:
        draft.facts["step"] = 9
    with manifest.committing(run_dir / "export") as draft:
        (draft.path / "saved_model.pb").write_text(content)
        draft.facts.update(seed=7, best_checkpoint="000000009", records="r1")
    judged(run_dir, champion, **decision)
    return run_dir


def judged(run_dir: Path, champion: int | None, **decision) -> None:
    export = manifest.files_fingerprint(run_dir / "export")
    live_one = run_dir.parents[2] / "exports" / "digits" / str(champion)
    against = {"champion": champion, "champion_export": manifest.files_fingerprint(live_one) if champion else ""}
    made = {"accepted": True, **against, "export": export, "passed": [], "reasons": [], **decision}
    (run_dir / "decision.json").write_text(json.dumps(made))


@pytest.fixture
def records(tmp_path) -> Path:
    with manifest.committing(tmp_path / "records" / "d" / "r1") as draft:
        draft.facts["task"] = "image"
    return tmp_path / "records" / "d" / "r1"


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "exports" / "digits"


def events(root: Path) -> list[str]:
    return [event.event for event in live.events(root)]


def test_each_push_is_stable_and_the_one_before_stays_loaded(tmp_path, records, root):
    assert publish(run_of(tmp_path, "a"), records, root) == root / "1"
    assert live.read(root) == Live(1)
    run_dir = run_of(tmp_path, "b", champion=1)
    publish(run_dir, records, root)
    assert live.read(root) == Live(2, 1)
    assert events(root) == ["push", "push"]
    assert json.loads((run_dir / "pushed.json").read_text()) == {"version": 2, "path": str(root / "2")}


def test_a_version_knows_its_run_its_records_and_the_decision_as_it_stood(tmp_path, records, root):
    run_dir = run_of(tmp_path, "a")
    parents = manifest.read(publish(run_dir, records, root))["parents"]
    assert (parents["run"], parents["records"], parents["records_dir"]) == (str(run_dir), "r1", str(records))
    assert parents["decision"]["accepted"]
    assert parents["sha256"] == {
        "config": manifest.digest(run_dir / "config.json"),
        "checkpoint": manifest.digest(run_dir / "checkpoints" / "000000009" / manifest.NAME),
        "records": manifest.digest(records / manifest.NAME),
    }


def test_the_same_push_again_changes_nothing(tmp_path, records, root):
    run_dir = run_of(tmp_path, "a")
    publish(run_dir, records, root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != live.LOCK}
    judged(run_dir, champion=1)  # the whole flow judges it anew, beside itself
    assert publish(run_dir, records, root) == root / "1"
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != live.LOCK}


def test_below_a_hundred_percent_it_is_a_canary_that_can_be_pushed_again_and_promoted(tmp_path, records, root):
    publish(run_of(tmp_path, "a"), records, root, percent=20)
    assert live.read(root) == Live(1)  # there is nothing beside it to answer the rest
    candidate = run_of(tmp_path, "b", champion=1)
    for _ in range(2):
        publish(candidate, records, root, percent=20)
        assert live.read(root) == Live(1, None, 2, 20)
    rollout.promote(root)
    publish(candidate, records, root, percent=20)
    assert live.read(root) == Live(2, 1)
    assert events(root) == ["push", "push", "promote"]


def test_a_push_while_another_version_is_a_canary_is_refused(tmp_path, records, root):
    publish(run_of(tmp_path, "a"), records, root)
    publish(run_of(tmp_path, "b", champion=1), records, root, percent=20)
    with pytest.raises(Refused, match="version 2 is a canary"):
        publish(run_of(tmp_path, "c", champion=1), records, root)
    assert set(live.versions(root)) == {1, 2}


def test_an_export_that_was_not_judged_or_refused_is_not_pushed(tmp_path, records, root):
    run_dir = run_of(tmp_path, "a", accepted=False)
    with pytest.raises(Refused, match="refused by the gate") as raised:
        publish(run_dir, records, root)
    assert raised.value.code == REFUSED
    (run_dir / "decision.json").unlink()
    with pytest.raises(UserError, match="not judged yet") as raised:
        publish(run_dir, records, root)
    assert raised.value.code == MISSING
    assert not root.exists()


def test_a_decision_about_another_export_is_none_about_this_one(tmp_path, records, root):
    run_dir = run_of(tmp_path, "a")
    manifest.remove(run_dir / "export")
    with manifest.committing(run_dir / "export") as draft:
        (draft.path / "saved_model.pb").write_text("another")
    with pytest.raises(Refused, match="not about the export that is there now"):
        publish(run_dir, records, root)
    assert not root.exists()


def test_a_version_that_went_live_after_the_gate_is_named_and_nothing_is_placed(tmp_path, records, root):
    publish(run_of(tmp_path, "a"), records, root)
    slow = run_of(tmp_path, "slow", champion=1)
    publish(run_of(tmp_path, "b", champion=1), records, root)
    with pytest.raises(Refused, match=r"version 2 went live after the export was judged against version 1: run `mini"):
        publish(slow, records, root)
    first = run_of(tmp_path, "first", champion=None)
    with pytest.raises(Refused, match="judged against no version"):
        publish(first, records, root)
    assert set(live.versions(root)) == {1, 2}
    assert live.read(root) == Live(2, 1)


def test_an_export_that_was_rolled_back_is_not_pushed_again_by_a_command_that_is_repeated(tmp_path, records, root):
    publish(run_of(tmp_path, "a"), records, root)
    run_dir = run_of(tmp_path, "b", champion=1)
    publish(run_dir, records, root)
    rollout.rollback(root, why="errors")
    judged(run_dir, champion=1)
    with pytest.raises(Refused, match=r"it was rolled back .*: errors\); `minibatch canary digits --version 2` tries"):
        publish(run_dir, records, root)
    assert live.read(root) == Live(1)
    rollout.canary(root, 2, 10)
    assert publish(run_dir, records, root) == root / "2"


def test_a_decision_beside_another_models_version_of_the_same_number_is_none_here(tmp_path, records, root):
    publish(run_of(tmp_path, "a"), records, root)
    with pytest.raises(Refused, match="judged against version 1 of another model: run `minibatch gate`"):
        publish(run_of(tmp_path, "b", champion=1, champion_export="that of digits-dev"), records, root)
    assert set(live.versions(root)) == {1}


def test_no_export_that_was_rolled_back_returns_by_repetition_whatever_was_tried_since(tmp_path, records, root):
    publish(run_of(tmp_path, "a"), records, root)
    tried = [run_of(tmp_path, name, champion=1) for name in "xy"]
    for each in tried:
        publish(each, records, root, percent=20)
        rollout.rollback(root, why="errors")
    for each, version in zip(tried, (2, 3), strict=True):
        with pytest.raises(Refused, match=f"canary digits --version {version}` tries"):
            publish(each, records, root, percent=20)
    assert live.read(root) == Live(1)


def test_a_rollback_past_a_canary_takes_both_out(tmp_path, records, root):
    publish(run_of(tmp_path, "a"), records, root)
    publish(run_of(tmp_path, "b", champion=1), records, root)
    canary = run_of(tmp_path, "c", champion=2)
    publish(canary, records, root, percent=20)
    rollout.rollback(root, 1, "complaints")
    judged(canary, champion=1)
    with pytest.raises(Refused, match=r"it was rolled back .*: complaints"):
        publish(canary, records, root)


def test_a_root_from_before_there_was_a_live_file_is_taken_over_as_it_is_served(tmp_path, records, root):
    shutil.copytree(publish(run_of(tmp_path, "a"), records, tmp_path / "x" / "digits"), root / "5")
    publish(run_of(tmp_path, "b", champion=5), records, root, percent=10)
    assert live.read(root) == Live(5, None, 6, 10)
    assert live.events(root)[0].before == Live(5)


def test_an_export_that_was_changed_is_not_pushed(tmp_path, records, root):
    run_dir = run_of(tmp_path, "a")
    (run_dir / "export" / "saved_model.pb").write_text("b")
    with pytest.raises(Corrupt, match="has changed"):
        publish(run_dir, records, root)
    assert live.current(root) is None


@pytest.mark.parametrize(
    ("kind", "percent"), [("first", 100), ("second", 100), ("second", 20), ("second, without LIVE.json", 20)]
)
def test_a_kill_at_any_call_of_the_system_and_the_same_push_again_end_in_the_same_state(tmp_path, kind, percent):
    def prepared(name: str) -> tuple[Path, Path, Path]:
        home = tmp_path / name
        with manifest.committing(home / "records" / "d" / "r1"):
            pass
        root = home / "exports" / "digits"
        if kind != "first":
            publish(run_of(home, "a"), home / "records" / "d" / "r1", root)
        if "without" in kind:
            (root / live.NAME).unlink()
            (root / live.JOURNAL).unlink()
        return run_of(home, "b", champion=None if kind == "first" else 1), home / "records" / "d" / "r1", root

    undisturbed = prepared("undisturbed")
    with faults.at(10**9, faults.killed) as calls:
        publish(*undisturbed, percent)
    expected = live.read(undisturbed[-1])
    for n in range(1, len(calls.names) + 1):
        disturbed = prepared(f"{n}")
        root = disturbed[-1]
        before = live.current(root)
        with pytest.raises(faults.Killed), faults.at(n, faults.killed):
            publish(*disturbed, percent)
        assert live.current(root) in (before, expected), calls.names[n - 1]
        for number in live.current(root).versions if live.current(root) else []:
            manifest.verify(root / str(number))
        publish(*disturbed, percent)
        assert (live.read(root), events(root)) == (expected, events(undisturbed[-1])), calls.names[n - 1]
        manifest.sweep(root, alone=True)
        assert sorted(path.name for path in root.iterdir()) == sorted(path.name for path in undisturbed[-1].iterdir())


def test_a_disk_that_refuses_any_call_shows_only_whole_versions_and_the_push_again_ends_well(tmp_path):
    def prepared(name: str) -> tuple[Path, Path, Path]:
        home = tmp_path / name
        with manifest.committing(home / "records" / "d" / "r1"):
            pass
        return run_of(home, "b"), home / "records" / "d" / "r1", home / "exports" / "digits"

    with faults.at(10**9, faults.killed) as calls:
        publish(*prepared("undisturbed"))
    for n in range(1, len(calls.names) + 1):
        disturbed = prepared(f"{n}")
        with faults.at(n, faults.ERRORS["ENOSPC"]):
            attempt(*disturbed)
        for path in live.versions(disturbed[-1]).values():
            manifest.verify(path)
        publish(*disturbed)
        assert live.read(disturbed[-1]) == Live(1)
        assert events(disturbed[-1]) == ["push"]


def attempt(*arguments) -> None:
    try:
        publish(*arguments)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most calls are survived
    except OSError as error:
        assert error.strerror  # noqa: PT017 - main tells it in one line
