"""LIVE.json: what is loaded, who answers, and how a rollback moves a pointer."""

import errno
import json
import os
import shutil
import zlib
from collections import Counter
from pathlib import Path

import pytest

from serving.server.live import NAME, Live, read
from serving.server.source import Source
from tests.serving.shells import Setting


def write(folder, **changes):
    state = {"format": 1, "stable": 1, "previous": None, "canary": None, "percent": 0} | changes
    (folder / "draft").write_text(json.dumps(state))
    (folder / "draft").rename(folder / NAME)


@pytest.fixture
def folder(tmp_path):
    for number in (1, 2, 3, 4):
        (tmp_path / "m" / str(number)).mkdir(parents=True)
    return tmp_path / "m"


@pytest.fixture
def setting(tmp_path):
    setting = Setting(retries=0)
    setting.source = Source(setting.models, tmp_path)
    return setting


def polled(setting):
    setting.source.poll()
    setting.run()
    return sorted(number for _, number in setting.models.available())


def answered(setting, request_id=None, wanted=None):
    with setting.models.lease("m", wanted, request_id) as (number, _):
        return number


def test_without_it_the_newest_version_is_served(folder, setting):
    assert polled(setting) == [4]


def test_exactly_the_versions_that_it_names_are_loaded_and_the_stable_one_answers(folder, setting):
    write(folder, stable=3, previous=2)
    assert polled(setting) == [2, 3]
    assert {answered(setting) for _ in range(50)} == {3}
    assert answered(setting, wanted="stable") == 3


def test_a_rollback_moves_the_answer_without_a_load(folder, setting):
    write(folder, stable=3, previous=2)
    polled(setting)
    with setting.models.lease("m", 2) as (_, shell):
        pass
    write(folder, stable=2, previous=3)
    setting.source.poll()
    assert not setting.models.act()
    with setting.models.lease("m") as (number, after):
        assert (number, after) == (2, shell)


def test_while_the_stable_version_loads_or_when_it_fails_the_previous_one_answers(folder, setting):
    write(folder, stable=2, previous=1)
    polled(setting)
    write(folder, stable=3, previous=2)
    setting.broken.add(folder / "3")
    setting.source.poll()
    assert answered(setting) == 2
    setting.run()
    assert (answered(setting), setting.states()) == (2, {3: "END", 2: "AVAILABLE", 1: "END"})


def test_a_request_id_falls_to_the_canary_by_its_checksum(folder, setting):
    write(folder, stable=3, previous=2, canary=4, percent=20)
    assert polled(setting) == [2, 3, 4]
    ids = [f"request-{i}" for i in range(2000)]
    for request_id in ids:
        expected = 4 if zlib.crc32(request_id.encode()) % 10_000 < 2000 else 3
        assert answered(setting, request_id) == expected
    share = sum(answered(setting, request_id) == 4 for request_id in ids) / len(ids)
    assert 0.16 < share < 0.24  # 4.5 standard deviations of a fair draw


@pytest.mark.parametrize(("percent", "versions"), [(0, {3}), (100, {4}), (0.01, {3})])
def test_the_ends_of_the_percentage_are_exact(folder, setting, percent, versions):
    write(folder, stable=3, canary=4, percent=percent)
    polled(setting)
    ids = [f"{i}" for i in range(500) if percent != 0.01 or zlib.crc32(f"{i}".encode()) % 10_000]
    assert {answered(setting, request_id) for request_id in ids} == versions


def test_a_request_without_an_id_is_drawn(folder, setting):
    write(folder, stable=3, canary=4, percent=50)
    polled(setting)
    counts = Counter(answered(setting) for _ in range(400))
    assert min(counts[3], counts[4]) > 100  # ten standard deviations from a half


def test_a_version_or_a_label_in_the_request_passes_the_split_by(folder, setting):
    write(folder, stable=3, canary=4, percent=100)
    polled(setting)
    assert [answered(setting, "x", wanted) for wanted in (3, "stable", "canary", 4)] == [3, 3, 4, 4]


def test_a_canary_that_does_not_load_gets_no_requests(folder, setting):
    write(folder, stable=3, canary=4, percent=100)
    setting.broken.add(folder / "4")
    assert polled(setting) == [3]
    assert answered(setting, "x") == 3


BROKEN = {
    "no_json": b"{",
    "another_format": b'{"format": 2, "stable": 1, "previous": null, "canary": null, "percent": 0}',
    "a_missing_key": b'{"format": 1, "stable": 1}',
    "a_version_that_is_text": b'{"format": 1, "stable": "1", "previous": null, "canary": null, "percent": 0}',
    "a_percentage_over_a_hundred": b'{"format": 1, "stable": 1, "previous": null, "canary": 2, "percent": 101}',
    "a_list": b"[]",
    "no_text": b"\xff\xfe",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_one_is_one_line_and_leaves_the_model_as_it_is(folder, setting, content, caplog):
    write(folder, stable=3, previous=2)
    polled(setting)
    (folder / NAME).write_bytes(content)
    for _ in range(2):
        assert polled(setting) == [2, 3]
    assert answered(setting) == 3
    [line] = [record.message for record in caplog.records if NAME in record.message]
    assert "\n" not in line


def test_a_model_whose_first_one_is_broken_is_not_served(folder, setting):
    (folder / NAME).write_bytes(b"")
    assert polled(setting) == []


def test_a_version_that_it_names_and_that_is_not_there_is_told_once(folder, setting, caplog):
    write(folder, stable=3, canary=9, percent=10)
    polled(setting)
    polled(setting)
    told = [record.message for record in caplog.records if "9" in record.message]
    assert told == [f"m: version 9 is asked for, and is not under {folder}"]


def test_its_change_is_noticed_without_a_poll(folder, setting):
    write(folder, stable=3)
    polled(setting)
    assert not setting.source.live_changed()
    write(folder, stable=2)
    assert setting.source.live_changed()
    (folder / NAME).unlink()
    assert setting.source.live_changed()


def test_without_it_again_the_newest_version_is_served(folder, setting):
    write(folder, stable=2)
    polled(setting)
    (folder / NAME).unlink()
    assert polled(setting) == [4]
    assert answered(setting) == 4


def test_it_is_read_as_it_was_written(folder):
    assert read(folder) is None
    write(folder, stable=3, previous=2, canary=4, percent=12.5)
    assert read(folder) == Live(3, 2, 4, 12.5)


def test_a_canary_is_not_all_that_answers_after_a_restart(folder, setting):
    write(folder, stable=3, canary=4, percent=1)
    setting.source.poll()
    setting.models.act()
    setting.jobs.pop(0)()
    assert setting.models.available() == [("m", 4)]
    assert setting.models.outcome("m") is None
    setting.run()
    assert setting.models.outcome("m") is True


def test_but_is_when_the_stable_version_does_not_load(folder, setting):
    write(folder, stable=3, canary=4, percent=1)
    setting.broken.add(folder / "3")
    assert polled(setting) == [4]
    assert setting.models.outcome("m") is True


def test_a_folder_that_cannot_be_listed_for_once_leaves_its_model_as_it_is(folder, setting, monkeypatch):
    assert polled(setting) == [4]
    listed = Path.iterdir

    def full(path):
        if path == folder:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return listed(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", full)
        assert polled(setting) == [4]
    shutil.rmtree(folder)
    assert polled(setting) == []
