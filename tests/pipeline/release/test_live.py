"""What is live changes in one step, is journaled, and survives a kill at any point and two operators at once."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, CHANGED, MISSING, REFUSED, Corrupt, UserError
from pipeline.release import live, operations, rollout
from pipeline.release.live import Live
from tests import faults

ROOT = Path(__file__).parents[3]


def version(root: Path, number: int) -> Path:
    with manifest.committing(root / str(number)) as draft:
        (draft.path / "saved_model.pb").write_text(f"version {number}")
    return root / str(number)


@pytest.fixture
def root(tmp_path) -> Path:
    """Versions 1 to 4, of which 2 is stable and 1 was before it."""
    made = tmp_path / "exports" / "digits"
    for number in (1, 2, 3, 4):
        version(made, number)
    with live.locked(made):
        live.commit(made, "push", None, Live(1), "first")
        live.commit(made, "push", Live(1), Live(2, 1), "second")
    return made


def story(root: Path) -> list[tuple[str, dict | None, dict]]:
    lines = [json.loads(line) for line in (root / live.JOURNAL).read_text().splitlines()]
    return [(line["event"], line["from"], line["to"]) for line in lines]


def test_the_live_file_is_what_servers_were_told_to_expect(root):
    rollout.canary(root, 4, 20)
    assert json.loads((root / "LIVE.json").read_text()) == {
        "format": 1, "stable": 2, "previous": 1, "canary": 4, "percent": 20,
    }  # fmt: skip


def test_a_root_without_a_live_file_offers_its_newest_committed_version(tmp_path):
    assert live.current(tmp_path / "nothing") is None
    version(tmp_path, 3)
    (tmp_path / "7").mkdir()
    assert live.current(tmp_path) == Live(3)


def test_an_event_says_who_when_from_to_and_why(root):
    rollout.canary(root, 3, 5, "a try")
    *_, last = live.events(root)
    assert (last.event, last.before, last.after, last.why) == ("canary", Live(2, 1), Live(2, 1, 3, 5), "a try")
    assert "@" in last.who
    assert last.when.endswith("+00:00")


def test_a_canary_that_is_promoted_leaves_what_was_stable_loaded(root):
    rollout.canary(root, 3, 10)
    rollout.promote(root)
    assert live.read(root) == Live(3, 2)


def test_a_rollback_takes_the_canary_away_before_it_touches_what_is_stable(root):
    rollout.canary(root, 3, 10)
    rollout.rollback(root)
    assert live.read(root) == Live(2, 1)


def test_a_rollback_without_a_canary_goes_to_the_previous_version(root):
    rollout.rollback(root, why="too slow")
    assert live.read(root) == Live(1)
    assert live.rolled_back(root)[2].why == "too slow"


def test_a_rollback_to_a_named_version_goes_there(root):
    rollout.rollback(root, 4)
    assert live.read(root) == Live(4)


COMMANDS = {
    "canary": lambda root: rollout.canary(root, 4, 20, "try"),
    "promote": lambda root: rollout.promote(root, "good"),
    "rollback of a canary": lambda root: rollout.rollback(root, why="bad"),
    "rollback": lambda root: rollout.rollback(root, why="bad"),
    "rollback to 1": lambda root: rollout.rollback(root, 1),
}


def ready(root: Path, command: str) -> Path:
    if command in ("promote", "rollback of a canary"):
        rollout.canary(root, 3, 50)
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_repeated_changes_nothing_more(root, command):
    ready(root, command)
    COMMANDS[command](root)
    before = (root / live.NAME).read_bytes(), (root / live.JOURNAL).read_bytes()
    COMMANDS[command](root)
    assert ((root / live.NAME).read_bytes(), (root / live.JOURNAL).read_bytes()) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_at_any_call_of_the_system_and_the_same_command_again_end_in_the_same_state(root, tmp_path, command):
    ready(root, command)
    copies = tmp_path / "copies"
    undisturbed = copy(root, copies / "undisturbed")
    with faults.at(10**9, faults.killed) as calls:
        COMMANDS[command](undisturbed)
    assert len(calls.names) > 5
    for n in range(1, len(calls.names) + 1):
        disturbed = copy(root, copies / str(n))
        before = live.read(disturbed)
        with pytest.raises(faults.Killed), faults.at(n, faults.killed):
            COMMANDS[command](disturbed)
        assert live.read(disturbed) in (before, live.read(undisturbed)), calls.names[n - 1]
        COMMANDS[command](disturbed)
        assert live.read(disturbed) == live.read(undisturbed), calls.names[n - 1]
        assert story(disturbed) == story(undisturbed), calls.names[n - 1]


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EROFS"])
def test_a_disk_that_refuses_any_call_is_one_line_and_the_same_command_again_ends_well(root, tmp_path, name):
    undisturbed = copy(root, tmp_path / "undisturbed")
    with faults.at(10**9, faults.killed) as calls:
        COMMANDS["canary"](undisturbed)
    for n in range(1, len(calls.names) + 1):
        disturbed = copy(root, tmp_path / str(n))
        with faults.at(n, faults.ERRORS[name]):
            said = refusal(disturbed)
        assert said is None or said.code == CANNOT_WRITE or "cannot be read" in str(said)
        assert "\n" not in str(said)
        COMMANDS["canary"](disturbed)
        assert live.read(disturbed) == live.read(undisturbed)
        assert story(disturbed) == story(undisturbed), calls.names[n - 1]


def refusal(root: Path) -> UserError | None:
    try:
        COMMANDS["canary"](root)
    except UserError as error:
        return error
    return None


def copy(root: Path, to: Path) -> Path:
    to = to / root.name
    subprocess.run(["mkdir", "-p", to.parent], check=True)
    subprocess.run(["cp", "-r", root, to], check=True)
    return to


@pytest.mark.parametrize("torn", [b'{"event": "push", "wh', b"\0\0\0\0", b'{"event": "push"}\n'])
def test_a_last_line_that_was_torn_is_taken_off_and_the_rest_stays(root, torn):
    before = (root / live.JOURNAL).read_bytes()
    (root / live.JOURNAL).write_bytes(before + torn)
    assert [event.event for event in live.events(root)] == ["push", "push"]
    rollout.canary(root, 3, 1)
    assert (root / live.JOURNAL).read_bytes().startswith(before + b'{"event": "canary"')


def test_a_line_in_the_middle_that_cannot_be_read_is_told_with_its_number(root):
    first, second = (root / live.JOURNAL).read_text().splitlines(keepends=True)
    (root / live.JOURNAL).write_text(first[:30] + "\n" + second)
    with pytest.raises(Corrupt, match="line 1, is not readable"):
        live.events(root)


def test_a_short_write_leaves_the_journal_as_it_was(root, monkeypatch):
    before, write = (root / live.JOURNAL).read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    with pytest.raises(UserError, match="No space left") as raised:
        rollout.canary(root, 3, 1)
    assert raised.value.code == CANNOT_WRITE
    assert (root / live.JOURNAL).read_bytes() == before
    assert live.read(root) == Live(2, 1)


def test_a_live_file_that_is_gone_or_one_event_behind_is_written_from_the_journal(root):
    (root / live.NAME).unlink()
    with live.locked(root):
        assert live.read(root) == Live(2, 1)
    (root / live.NAME).write_text(json.dumps(Live(1).to_json()))
    with live.locked(root):
        assert live.read(root) == Live(2, 1)


def repaired_as_told(root: Path, said: str) -> None:
    """What the error says brings back what the journal says, and adds nothing to it."""
    before = (root / live.JOURNAL).read_bytes()
    remove, canary = re.search("`(rm [^`]+) && minibatch (canary [^`]+)`", said).groups()
    stable = live.events(root)[-1].after.stable
    subprocess.run(remove.split(), check=True)
    operations.main("canary", canary.replace("STABLE", str(stable)).split()[1:])
    assert live.read(root) == live.events(root)[-1].after
    assert (root / live.JOURNAL).read_bytes() == before


def test_a_live_file_that_somebody_edited_is_not_overwritten(root):
    edited = json.dumps(Live(4).to_json())
    (root / live.NAME).write_text(edited)
    with pytest.raises(Corrupt, match="somebody else changed") as raised:
        rollout.rollback(root)
    assert (root / live.NAME).read_text() == edited
    repaired_as_told(root, str(raised.value))


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"format": 2, "stable": 1, "previous": null, "canary": null, "percent": 0}', "[]", '{"format": 1}',
     '{"format": 1, "stable": "1", "previous": null, "canary": null, "percent": 0}',
     '{"format": 1, "stable": 1, "previous": null, "canary": null, "percent": 101}'],
)  # fmt: skip
def test_a_live_file_that_is_none_is_told_with_what_to_do(root, text):
    (root / live.NAME).write_text(text)
    with pytest.raises(Corrupt, match=r"LIVE\.json is not readable .* servers answer with the newest") as raised:
        rollout.rollback(root)
    repaired_as_told(root, str(raised.value))


def test_what_is_not_there_or_damaged_is_not_made_live(root):
    with pytest.raises(UserError) as raised:
        rollout.canary(root, 9, 10)
    assert raised.value.code == MISSING
    (root / "3" / "saved_model.pb").write_text("version x")
    with pytest.raises(Corrupt):
        rollout.canary(root, 3, 10)
    with pytest.raises(UserError):
        rollout.rollback(root, 9)
    assert live.read(root) == Live(2, 1)


def test_a_second_canary_is_refused_and_the_first_may_get_another_share(root):
    rollout.canary(root, 3, 10)
    with pytest.raises(UserError, match="version 3 is a canary already") as raised:
        rollout.canary(root, 4, 10)
    assert raised.value.code == REFUSED
    rollout.canary(root, 3, 50)
    assert live.read(root) == Live(2, 1, 3, 50)


@pytest.mark.parametrize("command", [rollout.promote, rollout.rollback, lambda root: rollout.canary(root, 1, 1)])
def test_a_model_without_versions_has_nothing_to_change(tmp_path, command):
    with pytest.raises(UserError) as raised:
        command(tmp_path / "digits")
    assert raised.value.code == MISSING


def test_a_version_that_came_back_is_not_rolled_back_any_more(root):
    rollout.rollback(root)
    assert live.rolled_back(root).keys() == {2}
    rollout.canary(root, 2, 10)
    assert live.rolled_back(root) == {}
    rollout.rollback(root)
    assert live.rolled_back(root)[2].undone == {2}


def test_two_operators_at_once_leave_a_journal_without_a_gap(root):
    def operator(percents):
        for percent in percents:
            rollout.canary(root, 3, percent)

    threads = [threading.Thread(target=operator, args=(range(start, 41, 2),)) for start in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = story(root)
    assert len(told) == 2 + 40
    assert all(before == to for (_, _, to), (_, before, _) in itertools.pairwise(told))
    assert live.read(root).to_json() == told[-1][2]


HOLD = """
import sys, time
from pathlib import Path
from pipeline.release import live
with live.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_operator_is_waited_for_and_then_named_and_a_dead_one_holds_nothing(root, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE", 0.2)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"being changed by process {holder.pid} ") as raised:
        rollout.rollback(root)
    assert raised.value.code == CHANGED
    holder.kill()
    holder.wait()
    holder.stdout.close()
    rollout.rollback(root)
    assert live.read(root) == Live(1)
