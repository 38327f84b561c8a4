"""What is loaded and unloaded, and in which order; servables are empty shells, and threads are run by hand here."""

from pathlib import Path

import pytest

from serving.server import metrics
from serving.server.errors import Code, RequestError
from serving.server.lifecycle import Action, State, Version, next_action
from tests.serving.shells import Setting, Shell


def version(state, aspired=True, **changes):
    return Version(Path("v"), aspired, State[state], **changes)


NEW, LOADING, UP, FAILED = (
    version("START"),
    version("LOADING", busy=True),
    version("AVAILABLE"),
    version("END", failed=True),
)
OLD_UP, DRAINING, GONE = (
    version("AVAILABLE", aspired=False),
    version("UNLOADING", aspired=False),
    version("END", aspired=False),
)


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({}, None),
        ({1: NEW, 2: NEW}, Action("load", 2)),
        ({1: OLD_UP, 2: NEW}, Action("load", 2)),
        ({1: OLD_UP, 2: LOADING}, None),
        ({1: OLD_UP, 2: UP}, Action("unload", 1)),
        ({1: OLD_UP, 2: FAILED}, None),
        ({1: OLD_UP, 2: OLD_UP, 3: NEW}, Action("unload", 1)),
        ({1: OLD_UP, 2: OLD_UP}, Action("unload", 1)),
        ({1: OLD_UP}, Action("unload", 1)),
        ({1: UP, 2: NEW, 3: OLD_UP}, Action("unload", 3)),
        ({1: DRAINING, 2: NEW}, Action("close", 1)),
        ({1: version("UNLOADING", aspired=False, users=1), 2: UP}, None),
        ({1: version("UNLOADING", aspired=False, busy=True), 2: UP}, None),
        ({1: version("LOADING", due=5.0)}, None),
        ({1: version("LOADING", due=2.0)}, Action("load", 1)),
        ({1: GONE, 2: FAILED}, None),
    ],
    ids=[
        "nothing",
        "the_newest_is_loaded_first",
        "a_newer_one_is_loaded_beside_the_old_one",
        "a_load_under_way_is_waited_for",
        "the_old_one_goes_when_the_new_one_is_there",
        "a_failed_one_is_not_tried_again_and_the_old_one_stays",
        "of_two_that_are_not_aspired_one_goes_before_the_new_one_is_there",
        "with_none_aspired_all_go_the_oldest_first",
        "with_none_aspired_the_last_one_goes",
        "unloads_come_before_loads",
        "a_drained_one_is_closed_first",
        "a_used_one_is_not_closed",
        "a_close_under_way_is_waited_for",
        "a_retry_waits_for_its_time",
        "a_retry_comes_at_its_time",
        "ended_ones_are_left_alone",
    ],
)
def test_next_action(versions, expected):
    assert next_action(versions, now=3.0) == expected


@pytest.fixture
def setting():
    return Setting(retries=0)


def test_a_version_goes_through_all_states(setting):
    seen = []
    setting.aspire(1)
    seen.append(setting.states()[1])
    setting.models.act()
    seen.append(setting.states()[1])
    setting.jobs.pop()()
    seen.append(setting.states()[1])
    setting.aspire()
    setting.models.act()
    seen.append(setting.states()[1])
    setting.run()
    seen.append(setting.states()[1])
    assert seen == ["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]


def test_a_version_is_closed_only_when_its_last_request_is_done(setting):
    setting.aspire(1)
    setting.run()
    with setting.models.lease("m") as (number, shell):
        assert number == 1
        setting.aspire(2)
        setting.run()
        assert setting.states() == {2: "AVAILABLE", 1: "UNLOADING"}
        with setting.models.lease("m") as (newer, _):
            assert newer == 2
        with pytest.raises(RequestError, match=r"Servable not found for request: Specific\(m, 1\)"):
            setting.models.lease("m", 1)
        assert not shell.closed
        setting.models.stirred.clear()
    assert setting.models.stirred.is_set()
    setting.run()
    assert shell.closed
    assert setting.states() == {2: "AVAILABLE", 1: "END"}


def test_a_load_is_tried_again_after_the_interval_and_then_given_up():
    setting = Setting(retries=2, retry_seconds=60)
    setting.broken.add(Path("m/1"))
    setting.aspire(1)
    for now in (0, 60, 120):
        setting.now = now
        assert setting.models.act()
        setting.run()
        assert not setting.models.act()
        assert setting.models.seconds_to_retry() == (60 if now < 120 else None)
        assert setting.states() == {1: "LOADING" if now < 120 else "END"}
    [(_, _, error)] = setting.models.status("m")
    assert (error.code, str(error)) == (Code.DATA_LOSS, "m/1 is broken")
    setting.now = 1e6
    setting.aspire(1)
    setting.run()
    assert setting.states() == {1: "END"}


def test_while_it_is_tried_again_the_status_shows_no_error():
    setting = Setting(retries=1)
    setting.broken.add(Path("m/1"))
    setting.aspire(1)
    setting.run()
    assert setting.models.status("m") == [(1, State.LOADING, None)]
    assert setting.models.outcome("m") is None


def test_a_retry_is_given_up_when_the_version_is_no_longer_aspired():
    setting = Setting(retries=5)
    setting.broken.add(Path("m/1"))
    setting.aspire(1)
    setting.run()
    setting.aspire()
    assert setting.states() == {1: "END"}
    setting.now = 1e6
    assert not setting.models.act()


def test_a_retry_of_one_model_does_not_hold_up_another():
    setting = Setting(retries=5)
    setting.broken.add(Path("m/1"))
    setting.aspire(1)
    setting.run()
    setting.aspire(1, name="other")
    setting.run()
    assert (setting.states(), setting.states("other")) == ({1: "LOADING"}, {1: "AVAILABLE"})


def test_a_load_that_is_no_longer_wanted_when_it_ends_is_closed(setting):
    setting.aspire(1)
    setting.models.act()
    setting.aspire()
    setting.run()
    assert setting.models.available() == []
    [(_, state, error)] = setting.models.status("m")
    assert (state, error.code, str(error)) == (State.END, Code.CANCELLED, "Loading of servable cancelled")


def test_a_version_that_is_unwished_and_wished_again_while_it_loads_is_loaded_once(setting):
    setting.aspire(1)
    setting.models.act()
    setting.aspire()
    setting.aspire(1)
    setting.run()
    assert setting.loaded == [Path("m/1")]
    assert setting.states() == {1: "AVAILABLE"}


def test_a_retry_that_waits_for_another_load_has_no_time_of_its_own():
    """Else the upkeep would ask again and again without a pause."""
    setting = Setting(retries=1, retry_seconds=60)
    setting.broken.add(Path("m/1"))
    setting.aspire(1)
    setting.run()
    setting.aspire(1, name="other")
    setting.models.act()
    setting.now = 60
    assert not setting.models.act()
    assert setting.models.seconds_to_retry() is None


def test_each_failed_attempt_is_counted():
    setting = Setting(retries=1, retry_seconds=0)
    setting.broken.add(Path("counted/1"))
    setting.aspire(1, name="counted")
    setting.run()
    assert ':minibatch:serving:load_failures{model_name="counted"} 2\n' in metrics.text()


def test_a_failed_version_is_tried_again_when_it_was_away(setting):
    setting.broken.add(Path("m/1"))
    setting.aspire(1)
    setting.run()
    setting.broken.clear()
    setting.aspire(1)
    setting.run()
    assert setting.models.available() == []
    setting.aspire()
    setting.aspire(1)
    setting.run()
    assert setting.models.available() == [("m", 1)]


def test_a_failed_version_that_an_older_one_stands_in_for_is_not_tried_again_while_its_folder_stays(setting):
    setting.broken.add(Path("m/2"))
    setting.aspire(2, on_disk={1, 2})
    setting.run()
    assert setting.models.failed("m") == {2}
    for _ in range(2):
        setting.aspire(1, on_disk={1, 2})
        setting.run()
    assert (setting.models.failed("m"), setting.models.available()) == ({2}, [("m", 1)])
    setting.aspire(1, on_disk={1})
    assert setting.models.failed("m") == set()


def test_a_version_that_is_wanted_again_while_its_last_request_runs_is_loaded_anew_after_it(setting):
    setting.aspire(1)
    setting.run()
    with setting.models.lease("m"):
        setting.aspire()
        setting.run()
        setting.aspire(1)
        setting.run()
        assert setting.states() == {1: "UNLOADING"}
    setting.run()
    assert setting.states() == {1: "AVAILABLE"}


def test_a_version_that_is_wanted_again_while_it_is_still_loaded_stays(setting):
    setting.aspire(1)
    setting.run()
    with setting.models.lease("m") as (_, before):
        pass
    setting.aspire(2)
    setting.models.act()  # 2 begins to load
    setting.aspire(1)
    setting.run()
    with setting.models.lease("m") as (_, after):
        assert after is before


def test_no_more_loads_than_allowed_go_on_at_the_same_time():
    setting = Setting(loads=2)
    for name in "abc":
        setting.aspire(1, name=name)
    while setting.models.act():
        pass
    assert len(setting.jobs) == 2
    assert sorted(setting.states(name)[1] for name in "abc") == ["LOADING", "LOADING", "START"]
    setting.jobs.pop()()
    assert setting.models.act()


def test_a_close_that_raises_still_ends_the_version(setting, monkeypatch, caplog):
    def fail(self):
        raise OSError("stuck")

    monkeypatch.setattr(Shell, "close", fail)
    setting.aspire(1)
    setting.run()
    setting.aspire()
    setting.run()
    assert setting.states() == {1: "END"}
    assert "could not be closed" in caplog.text


def test_an_unknown_model_and_version_are_not_found(setting):
    with pytest.raises(RequestError, match=r"Servable not found for request: Latest\(m\)") as raised:
        setting.models.lease("m")
    assert raised.value.code is Code.NOT_FOUND
    with pytest.raises(RequestError, match="Could not find any versions of model m"):
        setting.models.status("m")
    setting.aspire(1)
    with pytest.raises(RequestError, match="Could not find version 2 of model m"):
        setting.models.status("m", 2)
