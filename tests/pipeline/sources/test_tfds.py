"""TensorFlow Datasets sets that the tests prepare themselves, without a network."""

import hashlib
import json
import shutil
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from pipeline.config import Data
from pipeline.errors import DATA, MISSING, UNAVAILABLE, USAGE, UserError
from pipeline.sources import open_source, ranges


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set whose subclasses give FEATURES, SPLITS (name -> rows) and `row`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.FEATURES))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name, rows) for name, rows in self.SPLITS.items()}

    def _generate_examples(self, name, rows):
        for number in range(rows):
            yield number, self.row(name, number)


class TinyImages(Tiny):
    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    SPLITS: ClassVar = {"train": 23, "test": 5, "validation": 4, "unsupervised": 3}

    def row(self, name, number):
        return {"image": np.full((4, 4, 1), number, np.uint8), "label": number % 2}


class TinyReviews(Tiny):
    FEATURES: ClassVar = {
        "sentence": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["bad", "good"]),
        "stars": np.int32,
        "embedding": tfds.features.Tensor(shape=(2,), dtype=np.float32),
    }
    SPLITS: ClassVar = {"train": 6, "validation": 3}

    def row(self, name, number):
        label = -1 if (name, number) == ("train", 0) else number % 2  # TFDS says -1 for a row without a label
        return {"sentence": f"{name} caf\u00e9", "label": label, "stars": number, "embedding": np.zeros(2, np.float32)}


class TinyRatings(Tiny):
    FEATURES: ClassVar = {
        "user_id": np.int64,
        "movie_id": tfds.features.Text(),
        "user_rating": np.float32,
        "movie_genres": tfds.features.Sequence(tfds.features.Text()),
    }
    SPLITS: ClassVar = {"train": 8}

    def row(self, name, number):
        return {"user_id": 7, "movie_id": f"m{number}", "user_rating": 3.5, "movie_genres": ["a"] * number}


class TinyFailing(TinyRatings):
    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to the data\nand more lines")


TASKS = {"tiny_images": "image", "tiny_reviews": "sentiment", "tiny_ratings": "recommendation"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    for name in TASKS:
        shards = 2 if name == "tiny_images" else 1
        config = tfds.download.DownloadConfig(num_shards=shards, try_download_gcs=False)
        tfds.builder(name, data_dir=folder).download_and_prepare(download_config=config)
    return folder


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "data")


def opened(name: str, folder: Path | None, **settings):
    columns = {"text": "sentence"} if name == "tiny_reviews" else {}
    settings = {"columns": columns, **settings}
    return open_source(Data(source="tfds", name=name, path=folder, **settings), TASKS[name], Path("no-cache"))


def rows(source, split="any") -> list[dict]:
    return [row for shard in source.shards() if split in ("any", shard.split) for row in source.read(shard)]


def one_line(error: UserError, code: int) -> str:
    assert error.code == code
    assert "\n" not in str(error)
    return str(error)


def test_images_stay_encoded_and_labels_become_class_names(prepared):
    source = opened("tiny_images", prepared)
    assert source.classes == ("cat", "dog")
    found = rows(source, "train")
    assert sorted(tf.io.decode_png(row["image_bytes"]).numpy()[0, 0, 0] for row in found) == list(range(23))
    for row in found:
        assert row["label"] == ("cat", "dog")[tf.io.decode_png(row["image_bytes"]).numpy()[0, 0, 0] % 2]


@pytest.mark.parametrize("name", TASKS)
def test_rows_and_ids_are_those_of_the_reader_of_tfds(prepared, name):
    source = opened(name, prepared)
    theirs = tfds.builder(name, data_dir=prepared).as_dataset(
        split="train",
        decoders={"image": tfds.decode.SkipDecoding()} if name == "tiny_images" else None,
        read_config=tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1),
    )
    expected = [(row["tfds_id"], *(row[column] for column in source.columns.values())) for row in theirs]
    ours = rows(opened(name, prepared))[: len(expected)]
    assert [row["id"] for row in ours] == [values[0].numpy().decode() for values in expected]
    for place, feature in enumerate(source.columns, start=1):
        if feature not in ("label", "user_id"):
            assert [row[feature] for row in ours] == [values[place].numpy() for values in expected]


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("tiny_images", {"train": 23, "test": 5}),  # validation and unsupervised are not read
        ("tiny_reviews", {"train": 6, "test": 3}),  # no test: validation takes its place
        ("tiny_ratings", {None: 8}),  # neither: ours are cut from train
    ],
)
def test_splits_keep_their_role(prepared, name, splits):
    source = opened(name, prepared)
    assert {split: len(rows(source, split)) for split in {shard.split for shard in source.shards()}} == splits


def test_a_label_of_minus_one_is_no_label(prepared):
    labels = [row["label"] for row in rows(opened("tiny_reviews", prepared), "train")]
    assert labels.count(None) == 1
    assert set(labels) == {None, "bad", "good"}


def test_columns_follow_the_usual_names_and_numbers_that_are_ids_become_text(prepared):
    found = rows(opened("tiny_ratings", prepared))
    assert all(set(row) == {"id", "user_id", "item_id", "rating"} for row in found)
    assert {row["user_id"] for row in found} == {"7"}
    assert {row["item_id"] for row in found} == {f"m{number}".encode() for number in range(8)}
    assert found[0]["rating"] == 3.5


def test_columns_can_be_given(prepared):
    source = opened("tiny_reviews", prepared, columns={"text": "sentence", "label": "stars"})
    assert source.classes == ()
    assert {row["label"] for row in rows(source, "train")} == set("012345")


@pytest.mark.parametrize(
    ("name", "columns", "words"),
    [
        ("tiny_reviews", {}, "no column text for text; .* one of embedding, label, sentence, stars"),
        ("tiny_reviews", {"text": "review"}, "no column review for text"),
        ("tiny_reviews", {"text": "embedding"}, "cannot be text: it is a Tensor"),
        ("tiny_reviews", {"body": "sentence"}, "body is no feature of sentiment; there are text, label"),
        ("tiny_ratings", {"rating": "movie_genres"}, "cannot be rating"),
        ("tiny_images", {"label": "image"}, "cannot be label"),
        ("tiny_images", {"image_bytes": "label"}, "ClassLabel, where an Image is needed"),
    ],
)
def test_a_column_that_does_not_fit_is_one_line_with_those_there_are(prepared, name, columns, words):
    with pytest.raises(UserError, match=words) as caught:
        opened(name, prepared, columns=columns)
    one_line(caught.value, USAGE)


def test_shards_are_small_and_read_every_row_once_over_files_of_any_length(prepared, monkeypatch):
    source = opened("tiny_images", prepared)
    whole = rows(source)
    monkeypatch.setattr(ranges.ranges, "__defaults__", (5,))
    shards = source.shards()
    assert [len(list(source.read(shard))) for shard in shards] == [5, 5, 5, 5, 3, 5]
    assert rows(source) == whole
    assert len({row["id"] for row in whole}) == 28
    assert len({shard.name for shard in shards}) == len(shards)
    assert len(ForkingPickler.dumps(shards[0])) < 300


def test_a_source_travels_to_a_worker(prepared):
    source = opened("tiny_reviews", prepared)
    sent = ForkingPickler.dumps(source)
    assert len(sent) < 1000
    assert rows(ForkingPickler.loads(sent)) == rows(source)


def test_a_limit_takes_an_even_stride_of_each_split(prepared):
    whole, some = rows(opened("tiny_images", prepared)), rows(opened("tiny_images", prepared, limit=4))
    assert some == [whole[number] for number in (5, 11, 17, 22, 23 + 1, 23 + 2, 23 + 3, 23 + 4)]


def test_batches_without_a_taken_row_are_passed_over(prepared, monkeypatch):
    monkeypatch.setattr("pipeline.sources.tfds.BATCH", 2)
    whole, some = rows(opened("tiny_images", prepared)), rows(opened("tiny_images", prepared, limit=1))
    assert some == [whole[22], whole[27]]


def test_the_identity_names_version_and_files_with_checksums_and_no_folder(copied, prepared):
    identity = opened("tiny_images", copied).identity()
    assert identity == opened("tiny_images", prepared).identity() == json.loads(json.dumps(identity))
    assert identity["name"] == "tiny_images/1.0.0"
    directory = copied / "tiny_images/1.0.0"
    files = {entry["file"]: entry for entry in identity["files"]}
    assert "tiny_images-train.tfrecord-00001-of-00002" in files
    assert not any("unsupervised" in file or "validation" in file for file in files)
    for file, entry in files.items():
        data = (directory / file).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_inside_a_record(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def cut_between_records(file: Path) -> None:
    records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records[:-1]:
            writer.write(record)


def another_set(file: Path) -> None:
    count = len(list(tf.data.TFRecordDataset(str(file))))
    with tf.io.TFRecordWriter(str(file)) as writer:
        for _ in range(count):
            writer.write(tf.train.Example().SerializeToString())


@pytest.mark.parametrize("damage", [flip, cut_inside_a_record, cut_between_records, another_set, Path.unlink])
def test_a_damaged_file_is_one_line_naming_it_and_never_fewer_rows(copied, damage):
    file = copied / "tiny_images/1.0.0/tiny_images-test.tfrecord-00001-of-00002"
    damage(file)
    source = opened("tiny_images", copied)
    assert len(rows(source, "train")) == 23
    with pytest.raises(UserError, match="cannot be read") as caught:
        rows(source, "test")
    assert str(file if damage is not another_set else file.parent) in one_line(caught.value, DATA)


def test_a_set_that_is_not_prepared_is_one_line_and_nothing_is_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"not prepared: .*tiny_images/1\.0\.0 is missing.*--data\.download") as caught:
        opened("tiny_images", tmp_path)
    one_line(caught.value, MISSING)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_and_an_unknown_set_are_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a folder; pass the TFDS data directory") as caught:
        opened("tiny_images", tmp_path / "nowhere")
    one_line(caught.value, MISSING)
    for name, words in (("", "needs --data.name"), ("no_such_set", "no_such_set is no TFDS set")):
        with pytest.raises(UserError, match=words) as caught:
            open_source(Data(source="tfds", name=name, path=tmp_path), "image", tmp_path)
        one_line(caught.value, USAGE)


def test_download_prepares_a_set_and_a_failed_one_says_so_in_one_line(tmp_path):
    assert len(rows(opened("tiny_ratings", tmp_path / "new", download=True))) == 8
    with pytest.raises(
        UserError, match=r"could not download and prepare tiny_failing \(no route to the data\)"
    ) as caught:
        open_source(Data(source="tfds", name="tiny_failing", path=tmp_path, download=True), "recommendation", tmp_path)
    one_line(caught.value, UNAVAILABLE)


def test_a_set_in_another_file_format_says_so(tmp_path):
    tfds.builder("tiny_ratings", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="is stored as array_record; prepare the set as TFRecord") as caught:
        opened("tiny_ratings", tmp_path)
    one_line(caught.value, USAGE)
