"""A push is whole or not there, never overwrites, and knows what is there already."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, MISSING, Corrupt, UserError
from pipeline.release.live import champion, versions
from pipeline.release.push import _key, push


def export(parent, content: str):
    with manifest.committing(parent / f"export-{content}") as draft:
        (draft.path / "variables").mkdir()
        (draft.path / "saved_model.pb").write_text(content)
        (draft.path / "variables" / "data").write_text(content * 1000)
        draft.facts.update(task="image", seed=7)
    return parent / f"export-{content}"


def names(root) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def test_the_first_push_is_version_1_and_the_next_is_one_more_than_the_highest(tmp_path):
    root = tmp_path / "exports" / "digits"
    assert push(export(tmp_path, "a"), root, {}) == root / "1"
    (root / "12").mkdir()
    assert push(export(tmp_path, "b"), root, {}) == root / "13"


@pytest.mark.parametrize("text", [None, "\n"])
def test_a_key_that_is_not_there_is_told_with_the_option_as_it_is_spelled(tmp_path, text):
    if text is not None:
        (tmp_path / "key").write_text(text)
    with pytest.raises(UserError, match=f"--push.key-file {tmp_path / 'key'}") as raised:
        _key(tmp_path / "key")
    assert raised.value.code == MISSING


def test_names_that_are_no_whole_numbers_do_not_count(tmp_path):
    root = tmp_path / "exports"
    for name in ("latest", "99.bak", "-5", "1e3", ".tmp-elsewhere-1-ab", "²"):
        (root / name).mkdir(parents=True)
    assert push(export(tmp_path, "a"), root, {}) == root / "1"


def test_a_version_holds_the_export_s_files_and_facts_and_where_it_comes_from(tmp_path):
    version = push(export(tmp_path, "a"), tmp_path / "exports", {"run": "runs/digits/1", "decision": "accepted"})
    described = manifest.verify(version)
    assert (version / "variables" / "data").read_text() == "a" * 1000
    assert described["files"] == manifest.read(tmp_path / "export-a")["files"]
    assert (described["task"], described["seed"]) == ("image", 7)
    assert described["parents"] == {"run": "runs/digits/1", "decision": "accepted"}


def test_pushing_what_is_the_newest_version_already_adds_none(tmp_path):
    root = tmp_path / "exports"
    first, second = export(tmp_path, "a"), export(tmp_path, "b")
    push(first, root, {})
    assert push(first, root, {"run": "again"}) == root / "1"
    push(second, root, {})
    assert push(first, root, {}) == root / "3"  # going back to an older model is a new version
    assert names(root) == ["1", "2", "3"]


def test_a_newest_version_that_was_damaged_is_not_taken_for_the_export(tmp_path):
    root = tmp_path / "exports"
    made = export(tmp_path, "a")
    (push(made, root, {}) / "saved_model.pb").write_text("x")
    assert push(made, root, {}) == root / "2"
    assert (root / "1" / "saved_model.pb").read_text() == "x"


def test_an_export_that_is_not_what_its_manifest_says_is_not_pushed(tmp_path):
    made = export(tmp_path, "a")
    (made / "variables" / "data").write_text("a" * 999 + "b")
    with pytest.raises(Corrupt, match="data has changed"):
        push(made, tmp_path / "exports", {})
    assert names(tmp_path / "exports") == []


def test_pushes_at_the_same_time_all_succeed_with_numbers_of_their_own(tmp_path):
    root, pushed = tmp_path / "exports", []
    made = [export(tmp_path, letter) for letter in "abcdef"]
    together = threading.Barrier(len(made))

    def one(directory):
        together.wait()
        pushed.append(push(directory, root, {}))

    threads = [threading.Thread(target=one, args=(directory,)) for directory in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(path.name) for path in pushed) == [1, 2, 3, 4, 5, 6]
    assert names(root) == ["1", "2", "3", "4", "5", "6"]
    assert {manifest.verify(path)["files"]["saved_model.pb"]["sha256"] for path in pushed} == {
        manifest.digest(directory / "saved_model.pb") for directory in made
    }


def test_a_number_taken_between_the_look_and_the_rename_is_not_overwritten(tmp_path, monkeypatch):
    root, rename = tmp_path / "exports", os.rename
    first, second = export(tmp_path, "a"), export(tmp_path, "b")

    def raced(source, destination):
        monkeypatch.setattr(os, "rename", rename)
        assert push(first, root, {}) == root / "1"
        rename(source, destination)

    monkeypatch.setattr(os, "rename", raced)
    assert push(second, root, {}) == root / "2"
    assert (root / "1" / "saved_model.pb").read_text() == "a"
    assert names(root) == ["1", "2"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.release.push import push
os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
push(Path(sys.argv[1]), Path(sys.argv[2]), {})
"""


def test_a_push_killed_before_its_rename_leaves_nothing_visible_and_the_next_one_tidies_up(tmp_path):
    root, made = tmp_path / "exports", export(tmp_path, "a")
    push(export(tmp_path, "b"), root, {})
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(made), str(root)], cwd=Path(__file__).parents[3], timeout=60
    )
    assert child.returncode == -signal.SIGKILL
    left = [name for name in names(root) if name != "1"]
    assert len(left) == 1
    assert left[0].startswith(".tmp-")
    assert set(versions(root)) == {1}
    assert champion(root) == root / "1"
    assert push(made, root, {}) == root / "2"
    assert names(root) == ["1", "2"]


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    root, made = tmp_path / "exports", export(tmp_path, "b")
    push(export(tmp_path, "a"), root, {})

    def full(source, destination):
        destination.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match="No space left") as told:
        push(made, root, {})
    assert told.value.code == CANNOT_WRITE
    assert "\n" not in str(told.value)
    assert names(root) == ["1"]
