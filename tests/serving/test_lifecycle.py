"""What is loaded and unloaded, and in which order; servables are empty shells here."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.server.config import ModelConfig, VersionPolicy
from serving.server.errors import RequestError
from serving.server.lifecycle import Action, Models, State, Version, next_action

LATEST = VersionPolicy()


def version(state, failed=False):
    return Version(State[state], failed=failed)


@pytest.mark.parametrize(
    ("on_disk", "versions", "policy", "expected"),
    [
        ({1, 2}, {}, LATEST, Action("load", 2)),
        ({1, 2}, {1: version("AVAILABLE")}, LATEST, Action("load", 2)),
        ({1, 2}, {1: version("AVAILABLE"), 2: version("AVAILABLE")}, LATEST, Action("unload", 1)),
        ({1, 2}, {1: version("AVAILABLE"), 2: version("END", failed=True)}, LATEST, None),
        ({1, 2}, {2: version("END", failed=True)}, LATEST, Action("load", 1)),
        ({2}, {1: version("AVAILABLE"), 2: version("END", failed=True)}, LATEST, None),
        (set(), {1: version("AVAILABLE")}, LATEST, Action("unload", 1)),
        ({1}, {1: version("END"), 2: version("AVAILABLE")}, LATEST, Action("load", 1)),
        ({1, 2, 3}, {3: version("AVAILABLE")}, VersionPolicy(latest=2), Action("load", 2)),
        ({1, 2, 3}, {3: version("AVAILABLE")}, VersionPolicy(latest=0), Action("load", 2)),
        ({1, 2, 3}, {}, VersionPolicy(specific=frozenset({1, 9})), Action("load", 1)),
    ],
    ids=[
        "the_newest_is_loaded_first",
        "a_newer_one_is_loaded_beside_the_old_one",
        "the_old_one_goes_when_the_new_one_is_there",
        "a_failed_one_is_not_tried_again",
        "the_one_before_a_failed_one_is_loaded",
        "the_last_one_stays_though_its_folder_is_gone_while_its_successor_is_broken",
        "no_folder_at_all_unloads",
        "an_unloaded_one_is_loaded_again",
        "the_latest_two",
        "all",
        "specific_ones_that_are_there",
    ],
)
def test_next_action(on_disk, versions, policy, expected):
    assert next_action(on_disk, versions, policy) == expected


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "break", "heal"]), st.integers(1, 4)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_model_that_ever_answered_answers_while_any_version_is_on_disk(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("model")
    broken = set()
    served = False
    models = Models(lambda path: Shell(path, broken))
    models.add(ModelConfig("m", folder))
    for event, number in events:
        path = folder / str(number)
        if event == "add":
            path.mkdir(exist_ok=True)
        elif event == "remove" and path.exists():
            path.rmdir()
        elif event == "break":
            broken.add(number)
        elif event == "heal":
            broken.discard(number)
        models.step()
        available = models.available()
        if served and any(folder.iterdir()):
            assert available
        served = bool(available)
        assert len(available) <= 1


class Shell:
    """Fails to load when its number is among the broken."""

    def __init__(self, path, broken=()):
        if int(path.name) in broken:
            raise OSError(f"{path} is broken")
        self.closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def models(tmp_path):
    models = Models(Shell)
    models.add(ModelConfig("m", tmp_path))
    (tmp_path / "1").mkdir()
    models.step()
    return models


def test_a_version_is_unloaded_only_when_its_last_request_is_done(models, tmp_path):
    with models.lease("m") as (number, shell):
        assert number == 1
        (tmp_path / "2").mkdir()
        stepping = threading.Thread(target=models.step, daemon=True)
        stepping.start()
        for _ in range(1000):  # seconds at most; milliseconds usually
            stepping.join(timeout=0.01)
            if models.status("m", 1)[0][1] is not State.AVAILABLE:
                break
        assert [(n, state) for n, state, _ in models.status("m")] == [(2, State.AVAILABLE), (1, State.UNLOADING)]
        with models.lease("m") as (newer, _):
            assert newer == 2
        with pytest.raises(RequestError, match=r"Specific\(m, 1\)"), models.lease("m", 1):
            pass
        assert not shell.closed
    stepping.join()
    assert shell.closed
    assert [(n, state) for n, state, _ in models.status("m")] == [(2, State.AVAILABLE), (1, State.END)]


def test_a_failed_version_is_tried_again_when_its_folder_comes_back(tmp_path):
    broken = {1}
    models = Models(lambda path: Shell(path, broken))
    models.add(ModelConfig("m", tmp_path))
    folder = tmp_path / "1"
    folder.mkdir()
    models.step()
    assert [(n, str(error)) for _, n, error in models.failures()] == [(1, f"{folder} is broken")]
    broken.clear()
    models.step()
    assert models.available() == []
    folder.rmdir()
    models.step()
    folder.mkdir()
    models.step()
    assert models.available() == [("m", 1)]
