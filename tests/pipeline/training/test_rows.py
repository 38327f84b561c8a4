"""Claims about the prepared rows."""

import dataclasses

import numpy as np
import pytest

from models.analysis import load
from models.spec import spec_of
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.training.rows import Column, prepare
from tests import tiny


def prepared(task: str, root, **train):
    directory, config, spec = tiny.records_dir(task, root), tiny.config(task, root, **train), spec_of(task)
    return prepare(directory, config, spec, load(directory, task), root / "prepared")


def test_ragged_rows_are_taken_with_zeros_behind_them():
    column = Column(np.array([1, 2, 3, 4, 5, 6]), np.array([0, 2, 3, 3, 6]))
    np.testing.assert_array_equal(column.take(np.array([3, 0, 2])), [[4, 5, 6], [1, 2, 0], [0, 0, 0]])
    np.testing.assert_array_equal(column.take(np.array([1]), 3), [[3, 0, 0]])


@pytest.mark.parametrize("task", tiny.TASKS)
def test_rows_in_files_are_those_in_memory_in_the_order_of_the_records(task, tmp_path):
    (tmp_path / "a").mkdir()
    memory, disk = prepared(task, tmp_path / "a"), prepared(task, tmp_path, memory_limit=1e-6)
    assert (memory.on_disk, disk.on_disk) == (False, True)
    assert not (tmp_path / "a" / "prepared").exists()
    manifest.verify(tmp_path / "prepared")
    every = np.arange(len(memory))
    assert len(disk) == len(memory) == tiny.SIZES["train"]
    np.testing.assert_array_equal(memory.target, disk.target)
    assert memory.inputs.keys() == disk.inputs.keys()
    for name in memory.inputs:
        assert isinstance(disk.inputs[name].values, np.memmap)
        np.testing.assert_array_equal(memory.inputs[name].take(every), disk.inputs[name].take(every))
    if task == "recommendation":
        ratings = [row["rating"] for row in tiny.rows(task, "train")]
        np.testing.assert_array_equal(memory.target, np.float32(ratings))


def test_rows_in_files_are_prepared_once_and_verified(tmp_path):
    prepared("image", tmp_path, memory_limit=1e-6)
    before = (tmp_path / "prepared" / "image").stat().st_mtime_ns
    directory, config = tmp_path / "records/image/0123456789abcdef", tiny.config("image", tmp_path)
    again = prepare(directory, config, spec_of("image"), load(directory, "image"), tmp_path / "prepared")
    assert again.on_disk
    assert (tmp_path / "prepared" / "image").stat().st_mtime_ns == before
    with open(tmp_path / "prepared" / "image", "r+b") as file:
        file.write(b"\xff\x00\xff")
    with pytest.raises(UserError, match="has changed since it was written"):
        prepare(directory, config, spec_of("image"), load(directory, "image"), tmp_path / "prepared")


def test_a_training_label_that_is_no_class_stops_before_the_first_update(tmp_path):
    directory = tiny.records_dir("image", tmp_path)
    config = tiny.config("image", tmp_path)
    analysis = dataclasses.replace(load(directory, "image"), classes=("dark", "bright"))
    with pytest.raises(UserError, match="none of the classes"):
        prepare(directory, config, spec_of("image"), analysis, tmp_path / "unused")
