"""The whole job: committed, reproducible, cached, and nothing left behind when it fails."""

import errno
import itertools
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import tensorflow as tf

from models import options
from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, DATA, MISSING, USAGE, Corrupt, UserError
from pipeline.preprocess import graph, job, runner
from pipeline.preprocess.job import explain, preprocess
from pipeline.records import load
from pipeline.sources.source import Shard


@dataclass
class Generated:
    """Texts made while they are read, so the source itself is small however many rows it has."""

    rows: int
    task: str = "sentiment"
    classes: tuple[str, ...] = ()

    def shards(self):
        return [Shard(f"s{n}", None, {"start": n}) for n in range(4)]

    def read(self, shard):
        for n in range(shard.where["start"], self.rows, 4):
            yield {"id": f"r{n}", "text": f"word{n % 7} " * (1 + n % 5), "label": "pos" if n % 2 else "neg"}

    def identity(self):
        return {"rows": self.rows}


@dataclass
class Broken(Generated):
    """Fails in the middle of a shard."""

    error: Exception = None

    def read(self, shard):
        yield from super().read(shard)
        raise self.error


def nothing_but(root, *names):
    return sorted(path.name for path in root.glob("*")) == sorted(names)


@pytest.mark.parametrize("task", ["image", "sentiment", "recommendation"])
def test_two_runs_in_two_folders_are_equal_byte_for_byte(task, literal, config, tmp_path):
    source = literal(task, {"id": "bad"})
    one, two = (preprocess(config(task, root=tmp_path / name), source) for name in ("one", "two"))
    assert one.name == two.name
    assert one != two
    files = [{path.name: manifest.digest(path) for path in folder.iterdir()} for folder in (one, two)]
    assert files[0] == files[1]
    assert len(files[0]) >= 10


def test_a_files_rows_are_in_a_random_order_that_no_order_of_the_source_changes(parts, good, made):
    rows = [good("recommendation", 100 + n) for n in range(60)]
    one = parts("recommendation", {"a": (None, rows[:30]), "b": (None, rows[30:])}, named={"n": 1})
    two = parts("recommendation", {"a": (None, rows[:-31:-1]), "b": (None, rows[29::-1])}, named={"n": 2})
    first, second = (made(source, shards=1).ids("train") for source in (one, two))
    assert first == second
    assert first != sorted(first)


def test_records_are_what_the_training_side_loads(plain):
    records = plain("sentiment")
    manifest.verify(records.path)
    for split in ("train", "val", "test"):
        loaded = load(records.path, split, "sentiment")
        assert loaded["id"].tolist() == [row["id"] for row in records.rows(split)]


def test_every_split_has_all_its_files_even_those_of_no_rows(literal, made):
    records = made(literal("recommendation", n=40), shards=30)
    rows = {name: f["rows"] for name, f in records.manifest["files"].items() if name.endswith(".tfrecord")}
    assert len(rows) == 90
    assert min(rows.values()) == 0
    assert sum(rows.values()) == 40


def test_the_files_of_a_split_hold_its_rows_whatever_their_number(literal, made, plain):
    few, many = plain("sentiment"), made(literal("sentiment"), shards=5)
    assert {split: set(few.ids(split)) for split in ("train", "val", "test")} == {
        split: set(many.ids(split)) for split in ("train", "val", "test")
    }
    assert few.analysis == many.analysis


def test_manifest_says_what_the_records_were_made_from(plain):
    records = plain("sentiment")
    facts = records.manifest
    assert facts["fingerprint"] == records.path.name == manifest.fingerprint(facts["key"])
    assert facts["task"] == "sentiment"
    assert facts["key"]["input"] == {"source": "literal"}
    assert set(facts["key"]) == {"task", "input", "settings", "code", "versions"}


def test_the_driver_never_holds_the_rows(config, monkeypatch):
    """The pipeline is the same size for ten rows and a billion, and nothing is read while it is built."""
    built = []
    monkeypatch.setattr(Generated, "read", lambda *_: pytest.fail("read while building"))

    def capture(pipeline):
        built.append(len(pipeline.to_runner_api().SerializeToString()))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", capture)
    for rows in (10, 10**9):
        with pytest.raises(KeyboardInterrupt):
            preprocess(config("sentiment"), Generated(rows))
    assert abs(built[1] - built[0]) < 100
    assert max(built) < 100_000
    assert nothing_but(config("sentiment").records_root)


def test_rows_flow_in_chunks_and_each_arrives_once(made):
    records = made(Generated(3 * graph.CHUNK * 4 + 7))
    found = [name for split in ("train", "val", "test") for name in records.ids(split)]
    assert sorted(found) == sorted(f"r{n}" for n in range(3 * graph.CHUNK * 4 + 7))


def test_unchanged_inputs_are_a_hit_and_nothing_is_read(literal, config, monkeypatch, capsys):
    source = literal("sentiment")
    first = preprocess(config("sentiment"), source)
    monkeypatch.setattr(runner, "run", lambda _: pytest.fail("ran again"))
    os.utime(first, (100, 100))
    assert preprocess(config("sentiment", runner_options=("--some=thing",)), source) == first
    assert first.stat().st_mtime > 100  # the next stage takes what was preprocessed last
    assert capsys.readouterr().err.splitlines()[-1] == f"preprocess: {first} is there already"


def test_explain_names_what_differs_from_the_nearest_records(literal, config):
    source, settings = literal("sentiment"), config("sentiment")
    assert explain(settings, source) == f"miss: there are no records under {settings.records_root} yet."
    made = preprocess(settings, source)
    assert explain(settings, source).startswith(f"hit: {made} ")
    other = config("sentiment", validation_fraction=0.3)
    assert explain(other, source).endswith("differs in settings.data.validation_fraction: 0.2 -> 0.3")
    other = replace(settings, model=options.Sentiment(vocabulary_size=6))
    assert explain(other, source).endswith("differs in settings.model.vocabulary_size: 5 -> 6")
    other = literal("sentiment", named={"source": "another"})
    assert explain(settings, other).endswith("differs in input.source: literal -> another")


def test_explain_names_changed_code(literal, config, monkeypatch):
    source, settings = literal("sentiment"), config("sentiment")
    preprocess(settings, source)
    known = manifest.code_fingerprint
    monkeypatch.setattr(manifest, "code_fingerprint", lambda p: "new" if p.endswith("sentiment.py") else known(p))
    assert "differs in code.models/sentiment.py: " in explain(settings, source)


def test_model_settings_that_preprocessing_does_not_read_are_no_miss(literal, config):
    source, settings = literal("sentiment"), config("sentiment")
    made = preprocess(settings, source)
    assert preprocess(replace(settings, model=replace(settings.model, units=3)), source) == made


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "stray"])
def test_a_directory_that_is_not_what_it_was_is_refused_by_file_name(damage, literal, config, made):
    source = literal("sentiment")
    directory = made(source).path
    file = directory / "train-00001-of-00002.tfrecord"
    data = file.read_bytes()
    match damage:
        case "flip":
            file.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
        case "truncate":
            file.write_bytes(data[:-1])
        case "delete":
            file.unlink()
        case "stray":
            file = directory / "train-00009-of-00002.tfrecord"
            file.write_bytes(data)
    with pytest.raises(Corrupt) as refused:
        preprocess(config("sentiment"), source)
    message = str(refused.value)
    assert str(file) in message
    assert message.endswith("remove that directory and repeat the command.")
    assert "\n" not in message


def test_a_folder_in_the_way_that_was_never_committed_is_refused(literal, config, made):
    source = literal("sentiment")
    directory = made(source).path
    (directory / manifest.NAME).unlink()
    with pytest.raises(Corrupt, match=r"has no MANIFEST\.json.*remove that directory"):
        preprocess(config("sentiment"), source)


@pytest.mark.parametrize("kind", ["tensorflow", "rename"])
def test_a_full_disk_in_a_worker_is_one_line_and_leaves_nothing(kind, literal, config, monkeypatch, caplog):
    def full(*_):
        if kind == "tensorflow":
            with tf.io.TFRecordWriter("/dev/full") as writer:
                writer.write(b"x" * 100)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(graph.os, "replace", full)
    with pytest.raises(UserError, match=r"^Cannot write .*: No space left on device\. Nothing was changed") as error:
        preprocess(config("sentiment"), literal("sentiment"))
    assert error.value.code == CANNOT_WRITE
    assert "\n" not in str(error.value)
    assert nothing_but(config("sentiment").records_root)
    assert caplog.text == "", "no traceback is logged for it"


def test_a_full_disk_in_the_driver_is_one_line_and_leaves_nothing(literal, config, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(job, "_finish", full)
    with pytest.raises(UserError, match="No space left"):
        preprocess(config("sentiment"), literal("sentiment"))
    assert nothing_but(config("sentiment").records_root)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (UserError("rows.csv: line 3 is cut; repair it.", DATA), "rows.csv: line 3 is cut; repair it.", DATA),
        (
            FileNotFoundError(2, "No such file", "a.csv"),
            "of the source cannot be read: [Errno 2] No such file",
            MISSING,
        ),
    ],
)
def test_an_error_of_the_source_reaches_the_user_as_its_own_line(error, message, code, config):
    with pytest.raises(UserError) as raised:
        preprocess(config("sentiment"), Broken(8, error=error))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.code == code
    assert nothing_but(config("sentiment").records_root)


def test_a_bug_is_not_dressed_up_as_the_users_error(config):
    with pytest.raises(ZeroDivisionError):
        preprocess(config("sentiment"), Broken(8, error=ZeroDivisionError("a bug")))


def test_lost_rows_are_noticed(literal, made, monkeypatch):
    monkeypatch.setattr(graph, "pairwise", lambda rows: list(itertools.pairwise(rows))[:-3])
    with pytest.raises(AssertionError, match="lost or made up"):
        made(literal("sentiment"))


def test_what_a_stopped_worker_left_does_not_get_into_the_records(literal, made, monkeypatch):
    write = graph.write_records

    def twice(path, examples):
        path.with_name(f"{graph.PART}killed").write_bytes(b"half a fi")
        write(path, examples)

    monkeypatch.setattr(graph, "write_records", twice)
    assert not [name for name in made(literal("sentiment")).manifest["files"] if name.startswith(".")]


def test_what_a_killed_run_left_is_swept_by_the_next(literal, config):
    root = config("sentiment").records_root
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (root / f".tmp-{socket.gethostname()}-{dead.stdout.strip()}-0000").mkdir(parents=True)
    directory = preprocess(config("sentiment"), literal("sentiment"))
    assert nothing_but(root, directory.name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"validation_fraction": 0.0}, "Split 'val' is empty; raise --data.validation-fraction"),
        ({"test_fraction": 0.0}, "Split 'test' is empty; raise --data.test-fraction"),
        (
            {"test_fraction": 0.5, "validation_fraction": 0.5},
            "Split 'train' is empty; lower --data.validation-fraction",
        ),
    ],
)
def test_an_empty_split_is_an_error_that_names_it_and_its_option(settings, words, literal, config):
    with pytest.raises(UserError) as error:
        preprocess(config("sentiment", **settings), literal("sentiment"))
    assert str(error.value).startswith(words)
    assert error.value.code == DATA
    assert nothing_but(config("sentiment").records_root)


def test_a_source_without_rows_is_an_error(literal, made):
    with pytest.raises(UserError, match="has no rows"):
        made(literal("sentiment", n=0))


def test_a_declared_class_without_a_training_row_is_an_error_that_names_it(literal, config):
    with pytest.raises(UserError, match="Class 'bird' has no training row"):
        preprocess(config("image", classes=("cat", "dog", "bird")), literal("image"))
    with pytest.raises(UserError, match="Class 'bird' has no training row"):
        preprocess(config("image"), literal("image", classes=("cat", "dog", "bird")))
    assert nothing_but(config("image").records_root)


def test_a_class_that_only_the_test_rows_have_is_an_error_that_names_it(parts, good, made):
    rows = [good("image", n) for n in range(60)]
    source = parts(
        "image", {"a": ("train", rows[:40]), "b": ("test", [*rows[40:], rows[0] | {"id": "x", "label": "bird"}])}
    )
    with pytest.raises(UserError, match="Class 'bird' has no training row"):
        made(source)


def test_a_classifier_needs_two_classes_and_sentiment_exactly_two(literal, made, good):
    with pytest.raises(UserError, match=r"has 1 class\(es\) \(pos\); sentiment needs exactly two"):
        made(literal("sentiment", *(good("sentiment", n) | {"label": "pos"} for n in range(60)), n=0))
    more = [good("sentiment", 100 + n) | {"label": "meh"} for n in range(40)]
    with pytest.raises(UserError, match=r"3 class\(es\) \(meh, neg, pos\); sentiment needs exactly two"):
        made(literal("sentiment", *more))


def test_users_that_training_never_saw_are_fine_in_the_test_rows(parts, good, made):
    rows = [good("recommendation", n) for n in range(60)]
    stranger = good("recommendation", 70) | {"user_id": "stranger", "item_id": "new"}
    records = made(parts("recommendation", {"a": ("train", rows), "b": ("test", [stranger])}))
    assert records.ids("test") == ["r70"]
    assert "stranger" not in (records.path / "users.jsonl").read_text()


def test_rows_of_a_group_stay_together(literal, made, good):
    rows = [good("sentiment", n) | {"group": f"film {n % 12}"} for n in range(120)]
    records = made(literal("sentiment", *rows, n=0))
    found = [{int(name[1:]) % 12 for name in records.ids(split)} for split in ("train", "val", "test")]
    assert sum(map(len, found)) == len(set.union(*found)) == 12


def test_the_wrong_kind_of_source_and_a_time_split_without_times_are_usage_errors(literal, config):
    with pytest.raises(UserError, match="holds image rows, the model wants sentiment rows") as error:
        preprocess(config("sentiment"), literal("image"))
    assert error.value.code == USAGE
    with pytest.raises(UserError, match=r"--data\.split-by time: image rows have no timestamp") as error:
        preprocess(config("image", split_by="time"), literal("image"))
    assert error.value.code == USAGE


def test_the_end_is_told_in_one_line(literal, made, capsys):
    counts = made(literal("recommendation", {"id": "bad"})).manifest["counts"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("preprocess: 61 rows in, 60 good, 1 dead; train ")
    assert f"val {counts['val']}, test {counts['test']}; " in line
