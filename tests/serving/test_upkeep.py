"""The thread that looks at the folders: what wakes it, and how it stops."""

import threading
import time

import pytest

from serving.server.config import ModelConfig
from serving.server.lifecycle import Models
from serving.server.source import Source
from serving.server.upkeep import Upkeep
from tests.serving.shells import Shell
from tests.serving.test_live import write


@pytest.fixture
def start(tmp_path):
    """Starts the upkeep of a serving root or of nothing, with loads in threads of their own."""
    started = []

    def start(poll_seconds, root=None):
        models = Models(Shell, lambda job: threading.Thread(target=job).start())
        source = Source(models, root)
        source.poll()
        started.append(Upkeep(models, source, poll_seconds))
        started[-1].start()
        return models, source

    yield start
    for upkeep in started:
        upkeep.stop()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def answering(models):
    with models.lease("m") as (number, _):
        return number


def test_without_polling_a_reload_is_still_carried_out(tmp_path, start):
    (tmp_path / "m" / "1").mkdir(parents=True)
    models, source = start(0)
    source.name([ModelConfig("m", tmp_path / "m")])
    wait_for(lambda: models.available() == [("m", 1)])
    source.name([])
    wait_for(lambda: models.available() == [])


def test_a_changed_live_state_is_followed_long_before_the_next_poll(tmp_path, start):
    for number in (1, 2):
        (tmp_path / "m" / str(number)).mkdir(parents=True)
    write(tmp_path / "m", stable=2, previous=1)
    models, _ = start(3600, tmp_path)
    wait_for(lambda: len(models.available()) == 2)
    assert answering(models) == 2
    write(tmp_path / "m", stable=1, previous=2)
    wait_for(lambda: answering(models) == 1)


def test_a_poll_that_raises_does_not_end_the_updates(tmp_path, start, monkeypatch, caplog):
    (tmp_path / "m" / "1").mkdir(parents=True)
    models, source = start(0.01)
    poll, raised = source.poll, []

    def fail_once():
        if not raised:
            raised.append(True)
            raise RuntimeError("a bad moment")
        return poll()

    monkeypatch.setattr(source, "poll", fail_once)
    source.name([ModelConfig("m", tmp_path / "m")])
    wait_for(lambda: models.available() == [("m", 1)])
    assert "could not be brought up to date" in caplog.text


def test_a_failed_load_is_tried_again_without_anything_else_happening(tmp_path):
    broken = [True, True]

    def load(path):
        if broken:
            broken.pop()
            raise OSError("not yet")
        return Shell(path)

    (tmp_path / "m" / "1").mkdir(parents=True)
    models = Models(load, lambda job: threading.Thread(target=job).start(), retries=2, retry_seconds=0.02)
    source = Source(models, tmp_path)
    source.poll()
    upkeep = Upkeep(models, source, 0)
    upkeep.start()
    wait_for(lambda: models.available() == [("m", 1)])
    upkeep.stop()
