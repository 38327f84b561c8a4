"""The audit walks from what is live to the data, and a link that is gone or changed is told by its name."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline import __main__ as command
from pipeline import manifest, runs
from pipeline.errors import MISSING, UserError
from pipeline.release import live, rollout
from pipeline.release.audit import _place, audit, lines
from pipeline.release.push import publish

LINKS = ["live", "version", "decision", "run", "export", "checkpoint", "records", "code"]


@pytest.fixture
def home(tmp_path) -> Path:
    """Records, a run, and its export pushed as exports/digits/1."""
    key = {"task": "image", "settings": {"data": {"source": "sample", "name": "digits"}}}
    records = tmp_path / "records" / "digits" / manifest.fingerprint(key)
    with manifest.committing(records) as draft:
        (draft.path / "train").write_text("rows")
        draft.rows["train"] = 3
        draft.facts["key"] = key
    run_dir = tmp_path / "runs" / "digits" / "0001"
    run_dir.mkdir(parents=True)
    code = manifest.code_fingerprint(*runs.CODE)
    described = {
        "preset": "p",
        "config": {"train": {"seed": 7}},
        "fingerprint": {"code": code, "versions": {"keras": "3"}},
    }
    (run_dir / "config.json").write_text(json.dumps(described))
    with manifest.committing(run_dir / "checkpoints" / "000000009") as draft:
        (draft.path / "state").write_text("weights")
        draft.facts["step"] = 9
    with manifest.committing(run_dir / "export") as draft:
        (draft.path / "saved_model.pb").write_text("graph")
        draft.facts.update(seed=7, best_checkpoint="000000009", records=records.name)
    export = manifest.fingerprint(manifest.read(run_dir / "export")["files"])
    decision = {"accepted": True, "champion": None, "export": export, "passed": [1, 2], "reasons": []}
    (run_dir / "decision.json").write_text(json.dumps(decision))
    publish(run_dir, records, tmp_path / "exports" / "digits")
    return tmp_path


def broken(home: Path, state: str = "BROKEN") -> dict[str, str]:
    chain = audit(home / "exports" / "digits")
    assert [link.name for link in chain] == LINKS
    return {link.name: link.text for link in chain if link.state == state}


def test_an_unbroken_chain_names_every_link(home, capsys):
    command.main(["audit", "digits", "--root", str(home / "exports")])
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in told] == [["ok", name] for name in LINKS]
    for part in (
        "by push of",
        "2 checks held",
        "seed 7",
        "update 9",
        "3 rows of sample digits",
        "that of this checkout",
    ):
        assert part in "\n".join(told)


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


CHECKPOINT = "runs/digits/0001/checkpoints/000000009"
BREAKS = {
    "a file of the version": (lambda h: (h / "exports/digits/1/saved_model.pb").write_text("xxxxx"), ["version"]),
    "a fact of the version": (
        lambda h: edit(h / "exports/digits/1/MANIFEST.json", "seed", 8), ["version"],
    ),
    "the run is gone": (lambda h: shutil.rmtree(h / "runs"), ["run", "export", "checkpoint"]),
    "the config": (lambda h: edit(h / "runs/digits/0001/config.json", "preset", "q"), ["run"]),
    "the checkpoint": (lambda h: (h / CHECKPOINT / "state").write_text("weighty"), ["checkpoint"]),
    "the export is gone": (lambda h: manifest.remove(h / "runs/digits/0001/export"), ["export"]),
    "a shard": (lambda h: (only(h / "records/digits") / "train").write_text("rots"), ["records"]),
    "the records are gone": (lambda h: shutil.rmtree(h / "records"), ["records"]),
}  # fmt: skip


def edit(path: Path, name: str, value) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def test_paths_that_were_noted_relative_to_a_folder_lie_beside_the_exports(home, tmp_path, monkeypatch):
    (tmp_path / "other" / "runs" / "digits" / "0001").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    assert _place("runs/digits/0001", home) == home / "runs" / "digits" / "0001"


@pytest.mark.parametrize(("change", "names"), BREAKS.values(), ids=BREAKS)
def test_a_link_that_is_gone_or_changed_is_named(home, change, names):
    change(home)
    chain = audit(home / "exports" / "digits")
    assert [link.name for link in chain if link.state == "BROKEN"] == names


def test_records_that_were_made_anew_with_other_rows_are_not_those_of_the_push(home):
    records = only(home / "records" / "digits")
    facts = manifest.read(records)
    manifest.remove(records)
    with manifest.committing(records) as draft:
        (draft.path / "train").write_text("others")
        draft.facts["key"] = facts["key"]
    assert "has changed since the push" in broken(home)["records"]


def test_a_broken_chain_is_exit_code_3_in_one_line(home, capsys):
    shutil.rmtree(home / "records")
    with pytest.raises(SystemExit) as ended:
        command.main(["audit", "digits", "--root", str(home / "exports")])
    assert ended.value.code == 3
    said = capsys.readouterr()
    assert "BROKEN  records" in said.out
    assert said.err == "minibatch: digits: 1 of 8 links are broken: records.\n"


def test_a_tree_that_was_moved_as_a_whole_is_still_whole(home, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("moved") / "home"
    shutil.move(home, elsewhere)
    assert broken(elsewhere) == {}
    home.mkdir()


def test_a_version_that_no_gate_judged_is_not_known_to_be_accepted(home):
    with manifest.committing(home / "exports" / "digits" / "2") as draft:
        draft.facts.update(seed=7)
    rollout.canary(home / "exports" / "digits", 2, 10)
    rollout.promote(home / "exports" / "digits")
    assert "does not say how the gate decided" in broken(home, "unknown")["decision"]


def remade(home: Path, change) -> None:
    """Version 2, live: the files of version 1 with facts that `change` altered."""
    root = home / "exports" / "digits"
    facts = manifest.read(root / "1")
    change(facts)
    with manifest.committing(root / "2") as draft:
        shutil.copy(root / "1" / "saved_model.pb", draft.path)
        draft.facts.update({key: value for key, value in facts.items() if key != "files"})
    rollout.canary(root, 2, 10)
    rollout.promote(root)


@pytest.mark.parametrize(
    ("change", "link", "told"),
    [
        (lambda facts: facts["parents"]["decision"].update(export="0" * 16), "decision", "about other files"),
        (lambda facts: facts["parents"]["decision"].update(accepted=False), "decision", "the gate refused it"),
        (lambda facts: facts.update(seed=8), "run", "has seed 7, the export 8"),
        (lambda facts: facts["parents"].update(records="0" * 16), "records", "is not called 0000"),
        (lambda facts: (facts.update(seed=8), facts["parents"].pop("sha256")), "run", "has seed 7, the export 8"),
    ],
)
def test_a_version_that_tells_another_story_than_its_links_is_found(home, change, link, told):
    remade(home, change)
    found = broken(home)
    assert list(found) == [link]
    assert told in found[link]


UNRECORDED = {
    "a digest": (lambda facts: facts["parents"]["sha256"].pop("records"), ["records"]),
    "all digests": (lambda facts: facts["parents"].pop("sha256"), ["run", "checkpoint", "records"]),
    "the decision": (lambda facts: facts["parents"].pop("decision"), ["decision"]),
    "what the decision is about": (lambda facts: facts["parents"]["decision"].pop("export"), ["decision"]),
    "the champion": (lambda facts: facts["parents"]["decision"].pop("champion"), ["decision"]),
    "the seed": (lambda facts: facts.pop("seed"), ["run"]),
    "the checkpoint": (lambda facts: facts.pop("best_checkpoint"), ["checkpoint"]),
    "where the records are": (lambda facts: facts["parents"].pop("records_dir"), ["records"]),
    "the name of the records": (lambda facts: facts["parents"].pop("records"), []),
    "the code": (lambda facts: facts["parents"].pop("fingerprint"), ["code"]),
    "the code of the run": (lambda facts: facts["parents"].update(fingerprint=None), ["code"]),
    "all of it": (
        lambda facts: facts.pop("parents"), ["decision", "run", "export", "checkpoint", "records", "code"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "names"), UNRECORDED.values(), ids=UNRECORDED)
def test_what_an_earlier_release_did_not_record_is_unknown_and_not_broken(home, change, names):
    remade(home, change)
    assert broken(home) == {}
    assert list(broken(home, "unknown")) == names


def test_an_incomplete_chain_is_exit_code_3_and_a_line_that_says_so(home, capsys):
    remade(home, lambda facts: facts["parents"].pop("sha256"))
    shutil.rmtree(home / "records")
    with pytest.raises(SystemExit) as ended:
        command.main(["audit", "digits", "--root", str(home / "exports")])
    said = capsys.readouterr()
    assert ended.value.code == 3
    assert "unknown run  " in said.out
    assert said.err == (
        "minibatch: digits: 1 of 8 links are broken: records; 2 of 8 links were not recorded: run, checkpoint.\n"
    )


def test_a_run_that_was_exported_anew_with_other_files_is_not_where_the_version_comes_from(home):
    export = home / "runs" / "digits" / "0001" / "export"
    manifest.remove(export)
    with manifest.committing(export) as draft:
        (draft.path / "saved_model.pb").write_text("another graph")
    assert "is another export than the version" in broken(home)["export"]


def test_a_live_file_that_was_edited_is_a_broken_chain(home):
    edit(home / "exports" / "digits" / live.NAME, "previous", 5)
    assert "the journal's last event" in broken(home)["live"]


def test_the_audit_of_a_model_without_versions_has_nowhere_to_start(tmp_path):
    with pytest.raises(UserError) as raised:
        audit(tmp_path / "digits")
    assert raised.value.code == MISSING


def test_each_line_begins_with_its_state(home):
    assert all(line.startswith("ok ") for line in lines(audit(home / "exports" / "digits")))
