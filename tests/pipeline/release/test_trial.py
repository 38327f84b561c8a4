"""A canary under watch is promoted or rolled back by itself, and the journal says why."""

import math
from collections import Counter
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.errors import REFUSED, UNAVAILABLE, Refused, UserError
from pipeline.release import live, rollout, trial
from pipeline.release.live import Live
from pipeline.release.traffic import Traffic
from pipeline.release.verdict import Limits, Verdict, due


@pytest.fixture
def root(tmp_path) -> Path:
    for number in (1, 2):
        with manifest.committing(tmp_path / "digits" / str(number)) as draft:
            (draft.path / "saved_model.pb").write_text(str(number))
    with live.locked(tmp_path / "digits"):
        live.commit(tmp_path / "digits", "push", None, Live(1), "")
    rollout.canary(tmp_path / "digits", 2, 20)
    return tmp_path / "digits"


class Servers:
    """`servers` of them, each of which answers `rate` requests a second, a fifth by the canary; time stands still but
    for the sleeps."""

    def __init__(self, errors: float = 0.0, rate: int = 50, servers: int = 1, score: float = 0.0):
        self.time, self.errors, self.rate, self.servers, self.score = 0.0, errors, rate, servers, score
        self.down, self.restarted, self.asleep = False, 0.0, lambda: None

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.asleep()

    def read(self) -> list[dict[int, Traffic]]:
        if self.down:
            raise UserError("nobody listens there", UNAVAILABLE)
        asked = int(self.rate * (self.time - self.restarted))
        canary = asked // 5
        failed = int(canary * self.errors)
        return [
            {1: self.count(asked - canary, 0, 0.0), 2: self.count(canary - failed, failed, self.score)}
        ] * self.servers

    def count(self, good: int, failed: int, mean: float) -> Traffic:
        moments = {"count": good, "sum": good * mean, "sum_squares": good * (1 + mean**2)}
        latency = Counter({1000.0: good + failed, math.inf: good + failed})
        return Traffic(Counter(OK=good, INTERNAL=failed), latency, Counter({("y", k): v for k, v in moments.items()}))

    def watch(self, root: Path, **options) -> str:
        limits = options.pop("limits", Limits())
        seconds = options.pop("max_seconds", 600)
        return trial.watch(root, self.read, self.read(), limits, seconds, now=self.now, sleep=self.sleep, **options)


def test_a_canary_that_is_as_good_is_promoted_and_the_journal_says_on_what_evidence(root):
    servers = Servers()
    assert "version 2 is stable" in servers.watch(root)
    assert live.read(root) == Live(2, 1)
    *_, last = live.events(root)
    assert (last.event, last.why[:13]) == ("promote", "judged after ")
    assert "0 errors beside 0 of" in last.why


def test_a_canary_with_a_fifth_of_errors_is_rolled_back_within_fifty_of_its_requests(root):
    servers = Servers(errors=0.2)
    with pytest.raises(Refused, match="failed, at the stable version 0 of") as raised:
        servers.watch(root)
    assert raised.value.code == REFUSED
    assert live.read(root) == Live(1)
    *_, last = live.events(root)
    assert (last.event, last.undone) == ("rollback", {2})
    assert "failed, at the stable version" in last.why
    assert servers.read()[0][2].total <= 50


def test_a_canary_whose_answers_moved_is_rolled_back(root):
    with pytest.raises(Refused, match="output y moved by"):
        Servers(score=1.0).watch(root)
    assert live.read(root) == Live(1)


def test_the_requests_of_all_servers_count(root):
    one, many = Servers(), Servers(servers=4)
    many.watch(root)
    rollout.rollback(root, 1)
    rollout.canary(root, 2, 20)
    one.watch(root)
    assert many.time < one.time / 2


def test_a_canary_that_is_undecided_in_time_is_rolled_back_with_what_was_missing(root):
    with pytest.raises(Refused, match=r"undecided after 60 s, after .* of 300 requests"):
        Servers(rate=10).watch(root, max_seconds=60)
    assert live.read(root) == Live(1)


def test_each_look_is_numbered_and_comes_when_the_canary_s_requests_have_grown_by_half(root, monkeypatch):
    looks = []

    def judge(stable, canary, look, limits):
        looks.append((look, canary.total))
        return Verdict("wait", "not yet")

    monkeypatch.setattr(trial, "judge", judge)
    with pytest.raises(Refused):
        Servers().watch(root, max_seconds=100)
    assert [look for look, _ in looks] == sorted({look for look, _ in looks})
    assert all(total >= due(look) for look, total in looks)
    assert len(looks) < 12


def test_servers_that_fall_silent_take_the_canary_back(root):
    servers = Servers(rate=10)

    def fail_after_ten():
        servers.down = servers.time > 10

    servers.asleep = fail_after_ten
    with pytest.raises(Refused, match="no metrics for 30 s"):
        servers.watch(root)
    assert live.read(root) == Live(1)
    assert servers.time < 60


def test_a_short_silence_and_a_restart_are_survived(root):
    servers = Servers()

    def restart():
        servers.down = 10 < servers.time < 20
        if 20 <= servers.time < 22:
            servers.restarted = servers.time

    servers.asleep = restart
    servers.watch(root)
    assert live.read(root) == Live(2, 1)


def test_a_decision_by_somebody_else_ends_the_watch_and_is_not_overruled(root):
    servers = Servers(rate=1)
    servers.asleep = lambda: rollout.rollback(root, why="by hand")
    with pytest.raises(Refused, match="somebody else decided"):  # so that no script takes it for promoted
        servers.watch(root)
    assert live.events(root)[-1].why == "by hand"


def test_a_promotion_by_somebody_else_ends_the_watch_as_a_promotion(root):
    servers = Servers(rate=1)
    servers.asleep = lambda: rollout.promote(root, "by hand")
    with pytest.raises(rollout.Overtaken, match="somebody else decided") as raised:
        servers.watch(root)
    assert raised.value.promoted


@pytest.mark.parametrize("decide", ["promote", "rollback"])
def test_a_judge_that_was_overtaken_while_it_read_decides_about_no_other_canary(decide, root):
    rollout.rollback(root)
    rollout.canary(root, 2, 20)
    before = live.read(root)
    act = {"promote": rollout.promote, "rollback": rollout.rollback}[decide]
    with pytest.raises(rollout.Overtaken) as raised:
        act(root, why="judged", judged=3)
    assert not raised.value.promoted
    rollout.promote(root)
    with pytest.raises(rollout.Overtaken) as raised:
        act(root, why="judged", judged=2)
    assert raised.value.promoted
    assert before.canary == live.read(root).stable == 2


def test_a_watch_that_was_killed_is_taken_up_by_the_same_command(root):
    servers = Servers()

    def kill():
        if servers.time == 10:
            raise KeyboardInterrupt

    servers.asleep = kill
    with pytest.raises(KeyboardInterrupt):
        servers.watch(root)
    assert live.read(root) == Live(1, None, 2, 20)
    servers.watch(root)
    assert live.read(root) == Live(2, 1)


def test_without_a_canary_there_is_nothing_to_watch(root):
    rollout.rollback(root)
    with pytest.raises(UserError, match="no canary"):
        Servers().watch(root)
