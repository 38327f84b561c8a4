"""Claims about the commit protocol: whole or not there, and a reader notices what changed later."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, DATA, MISSING, Corrupt, UserError

ROOT = Path(__file__).resolve().parents[2]


def commit(destination: Path, exist_ok: bool = False, text: str = "one\ntwo\n") -> Path:
    with manifest.committing(destination, exist_ok) as draft:
        (draft.path / "rows.txt").write_text(text)
        (draft.path / "deep" / "er").mkdir(parents=True)
        (draft.path / "deep" / "er" / "blob").write_bytes(bytes(range(256)))
        draft.rows["rows.txt"] = 2
        draft.facts.update(seed=7, counts={10: 1, 9: 2}, shape=(2, 3))
    return destination


def interrupted(destination: Path, error: BaseException) -> None:
    with manifest.committing(destination) as draft:
        (draft.path / "half").write_text("half")
        raise error


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def fails(error: BaseException):
    def function(*_, **__):
        raise error

    return function


def python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_a_committed_directory_holds_its_files_their_checksums_and_the_facts(tmp_path):
    described = manifest.verify(commit(tmp_path / "made"))
    assert names(tmp_path) == ["made"]
    assert described["files"] == {
        "deep/er/blob": {"bytes": 256, "sha256": "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"},
        "rows.txt": {
            "bytes": 8,
            "rows": 2,
            "sha256": "c3f9c8c283a2b1f2f1896f27a01cbe3cddc0c9d93f752e4639035a0f5b36f6e8",
        },
    }
    assert {key: described[key] for key in ("seed", "counts", "shape")} == {
        "seed": 7, "counts": {"10": 1, "9": 2}, "shape": [2, 3],
    }  # fmt: skip


def test_two_commits_of_the_same_content_are_equal_byte_for_byte(tmp_path):
    one, two = commit(tmp_path / "one"), commit(tmp_path / "two")
    assert (one / manifest.NAME).read_bytes() == (two / manifest.NAME).read_bytes()


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_inside_the_block_leaves_nothing_and_passes_through(tmp_path, error):
    with pytest.raises(type(error)):
        interrupted(tmp_path / "made", error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", ["_describe", "_write_synced", "_sync", "digest", "_rename"])
@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), OSError(errno.EMFILE, "files")])
def test_an_exception_in_any_step_of_the_commit_leaves_nothing(tmp_path, monkeypatch, step, error):
    monkeypatch.setattr(manifest, step, fails(error))
    with pytest.raises(type(error)):
        commit(tmp_path / "made")
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import manifest
step, destination = sys.argv[1], Path(sys.argv[2])
if step != "block":
    setattr(manifest, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
with manifest.committing(destination) as draft:
    (draft.path / "rows.txt").write_text("one")
    if step == "block":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("step", ["block", "_describe", "_write_synced", "_rename"])
def test_a_kill_at_any_step_shows_nothing_and_the_next_process_tidies_up(tmp_path, step):
    assert python(KILLED, step, tmp_path / "made").returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".tmp-")
    assert manifest.sweep(tmp_path) == [tmp_path / left]
    assert names(tmp_path) == []
    manifest.verify(commit(tmp_path / "made"))


def test_every_file_and_folder_is_on_the_disk_before_the_rename_and_the_parent_after_it(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(manifest.os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")))
    rename = os.rename
    monkeypatch.setattr(manifest.os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    made = commit(tmp_path / "made")
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    written = {"/".join(Path(path).relative_to(tmp_path).parts[1:]) for path in before}
    assert written == {"", *(str(path.relative_to(made)) for path in made.rglob("*"))}
    assert after == [str(tmp_path)]


def test_committing_never_overwrites(tmp_path):
    commit(tmp_path / "made", text="first")
    with pytest.raises(UserError, match="exists already; it is never overwritten") as raised:
        commit(tmp_path / "made", text="second")
    assert raised.value.code == CANNOT_WRITE
    assert (tmp_path / "made" / "rows.txt").read_text() == "first"
    assert names(tmp_path) == ["made"]


def test_exist_ok_keeps_the_first(tmp_path):
    commit(tmp_path / "made", text="first")
    commit(tmp_path / "made", exist_ok=True, text="second")
    assert (tmp_path / "made" / "rows.txt").read_text() == "first"
    assert names(tmp_path) == ["made"]


def test_exist_ok_does_not_pass_over_a_folder_that_nobody_committed(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        commit(tmp_path / "made", exist_ok=True)
    assert names(tmp_path / "made") == ["notes.txt"]


@pytest.mark.parametrize("exist_ok", [False, True])
def test_a_file_in_the_place_of_the_destination_is_not_overwritten(tmp_path, exist_ok):
    (tmp_path / "made").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        commit(tmp_path / "made", exist_ok)
    assert (tmp_path / "made").read_text() == "mine"


def flip(path: Path, place: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["rows.txt", "deep/er/blob"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "has changed since it was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
        (lambda path: path.write_bytes(b""), "has 0 bytes instead of"),
        (Path.unlink, "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "is missing"),
    ],
)
def test_verify_names_the_file_that_was_changed_cut_or_removed(tmp_path, name, harm, said):
    made = commit(tmp_path / "made")
    harm(made / name)
    with pytest.raises(Corrupt, match=said) as raised:
        manifest.verify(made)
    assert str(made / name) in str(raised.value)
    assert raised.value.code == DATA


@pytest.mark.parametrize("name", ["extra.txt", "deep/.hidden", "deep/er/blob.bak"])
def test_verify_names_a_stray_file(tmp_path, name):
    made = commit(tmp_path / "made")
    (made / name).write_text("stray")
    with pytest.raises(Corrupt, match="does not stand in") as raised:
        manifest.verify(made)
    assert str(made / name) in str(raised.value)


def test_verify_names_a_file_that_the_disk_cannot_read(tmp_path, monkeypatch):
    made = commit(tmp_path / "made")
    monkeypatch.setattr(manifest, "digest", fails(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(Corrupt, match=r"blob cannot be read \(Input/output error\)"):
        manifest.verify(made)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe\xff", b"[]", b"null", b"{}", b'{"files": []}', b'{"files": {"rows.txt": {"bytes": 8}}}'],
)
def test_a_broken_manifest_is_told_by_its_path(tmp_path, text):
    made = commit(tmp_path / "made")
    (made / manifest.NAME).write_bytes(text)
    for look in (manifest.read, manifest.verify):
        with pytest.raises(Corrupt) as raised:
            look(made)
        assert str(made / manifest.NAME) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_any_flipped_byte_of_the_manifest_itself_is_noticed(tmp_path):
    made = commit(tmp_path / "made")
    path = made / manifest.NAME
    whole = path.read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        flip(path, place)
        try:
            manifest.verify(made)
            unnoticed.append(path.read_text())
        except UserError:
            pass
        path.write_bytes(whole)
    assert all(manifest.SEAL not in text for text in unnoticed)  # only the name of the checksum itself may rot


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None])
def test_a_place_without_a_manifest_is_missing_not_corrupt(tmp_path, make):
    make(tmp_path / "made")
    with pytest.raises(UserError, match="was not committed by minibatch") as raised:
        manifest.verify(tmp_path / "made")
    assert raised.value.code == MISSING
    assert not manifest.is_committed(tmp_path / "made")


def test_sweep_removes_only_what_dead_processes_of_this_host_left(tmp_path):
    host, dead = socket.gethostname(), dead_process()
    stay = [f".tmp-{host}-{os.getpid()}-0a", ".tmp-elsewhere-1-0a", ".tmp-x", "made", f".tmp-{host}-1-0a"]
    stay.append(f".tmp-{host}-{dead}-1-0a")  # of a host whose name only begins like this one's
    go = [f".tmp-{host}-{dead}-0a", f".tmp-{host}-{10**30}-0a"]
    for name in (*stay, *go):
        (tmp_path / name / "state").mkdir(parents=True)
    assert sorted(path.name for path in manifest.sweep(tmp_path)) == sorted(go)
    assert names(tmp_path) == sorted(stay)


def test_who_holds_the_lock_sweeps_whatever_is_left_by_any_host_and_process(tmp_path):
    go = [f".tmp-{socket.gethostname()}-{os.getpid()}-0a", ".tmp-elsewhere-1-0a"]
    for name in (*go, "made", ".lock"):
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-elsewhere-2-0b").write_text("half")
    assert sorted(path.name for path in manifest.sweep(tmp_path, alone=True)) == sorted([*go, ".tmp-elsewhere-2-0b"])
    assert names(tmp_path) == [".lock", "made"]


@pytest.mark.parametrize("step", ["_sync", "shutil"])
def test_a_directory_that_is_removed_is_never_half_there(tmp_path, monkeypatch, step):
    made, fail = commit(tmp_path / "made"), fails(RuntimeError("stop"))
    with monkeypatch.context() as patch:
        patch.setattr(manifest, step, SimpleNamespace(rmtree=fail) if step == "shutil" else fail)
        with pytest.raises(RuntimeError, match="stop"):
            manifest.remove(made)
    (left,) = names(tmp_path)
    assert left.startswith(".tmp-")
    manifest.verify(tmp_path / left)
    manifest.sweep(tmp_path, alone=True)
    manifest.remove(commit(tmp_path / "made"))
    assert names(tmp_path) == []


def test_sweeping_a_place_that_is_not_there_does_nothing(tmp_path):
    assert manifest.sweep(tmp_path / "nowhere") == []


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_what_others_may_read_is_what_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        made = commit(tmp_path / "made")
    finally:
        os.umask(before)
    manifest.verify(made)
    assert made.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (made / manifest.NAME).stat().st_mode & 0o777 == 0o666 & ~umask


def test_paths_with_spaces_and_unicode_are_as_good_as_any(tmp_path):
    made = tmp_path / "mes données" / "Ünï 😀"
    with manifest.committing(made) as draft:
        (draft.path / "ein Bild — ф.txt").write_text("x")
        draft.facts["note"] = "Ünï 😀"
    assert list(manifest.verify(made)["files"]) == ["ein Bild — ф.txt"]
    assert manifest.read(made)["note"] == "Ünï 😀"
    (made / "ein Bild — ф.txt").write_text("y")
    with pytest.raises(Corrupt, match=r"ф\.txt has changed"):
        manifest.verify(made)


def test_a_fingerprint_is_the_same_on_every_machine_and_in_every_order():
    value = {"b": [1, 2.5, None, True], "a": {"path": Path("/data/x"), "text": "é"}}
    assert manifest.fingerprint(value) == "c4901f7157516f34"
    assert manifest.fingerprint(dict(reversed(value.items()))) == manifest.fingerprint(value)
    assert manifest.fingerprint({**value, "b": (1, 2.5, None, True)}) == manifest.fingerprint(value)
    assert manifest.fingerprint({**value, "b": [1, 2.5, None, False]}) != manifest.fingerprint(value)


def test_a_value_whose_text_differs_from_process_to_process_has_no_fingerprint():
    with pytest.raises(TypeError):
        manifest.fingerprint({"names": {"a", "b"}})


def test_a_code_fingerprint_changes_with_each_file_of_its_places(tmp_path, monkeypatch):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "models" / "deep").mkdir(parents=True)
    files = [tmp_path / name for name in ("pipeline/records.py", "models/image.py", "models/deep/layer.py")]
    for file in files:
        file.write_text("x = 1\n")
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "pipeline" / "manifest.py"))
    known = manifest.code_fingerprint("models", "pipeline/records.py")
    (tmp_path / "models" / "notes.txt").write_text("no code")
    assert manifest.code_fingerprint("models", "pipeline/records.py") == known
    for file in files:
        file.write_text("x = 2\n")
        assert manifest.code_fingerprint("models", "pipeline/records.py") != known
        file.write_text("x = 1\n")
    files[1].rename(tmp_path / "models" / "renamed.py")
    assert manifest.code_fingerprint("models", "pipeline/records.py") != known


def test_a_single_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "training.json"
    manifest.write_file(path, "old")
    manifest.write_file(path, "new")
    assert path.read_text() == "new"
    monkeypatch.setattr(manifest.os, "replace", fails(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        manifest.write_file(path, "newer")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["training.json"]


HALF = """
import os, signal, sys
from pathlib import Path
from pipeline import manifest
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
manifest.write_file(Path(sys.argv[1]), "new")
"""


def test_what_a_kill_leaves_of_a_single_file_is_swept_like_a_folder(tmp_path):
    (tmp_path / "training.json").write_text("old")
    assert python(HALF, tmp_path / "training.json").returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    manifest.sweep(tmp_path)
    assert names(tmp_path) == ["training.json"]
    assert (tmp_path / "training.json").read_text() == "old"
