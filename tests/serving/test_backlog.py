"""The order in which calls that wait get a thread."""

import asyncio
import threading

import pytest

from serving.server.backlog import Backlog
from serving.server.errors import RequestError

NEVER = float("inf")


class Setting:
    """A backlog of one thread that is held until `go`; `now` is its clock, `order` what ran, with what was dropped
    before it."""

    def __init__(self, monkeypatch):
        self.now, self.order, self.drops = 0.0, [], []
        self._gate = threading.Event()
        monkeypatch.setattr("serving.server.metrics.dropped", lambda model, reason: self.drops.append((model, reason)))

    async def __aenter__(self):
        self.backlog = Backlog(1, lambda: self.now)
        began = threading.Event()
        self.futures = {
            "held": self.backlog.put("held", lambda _: began.set() or self._gate.wait(20), self.fits, NEVER)
        }
        while not began.is_set():
            await asyncio.sleep(0.001)
        return self

    async def __aexit__(self, *_):
        self.backlog.close()

    def fits(self, seconds: float) -> bool:
        return True

    def put(self, name: str, deadline: float = NEVER, fits=None) -> asyncio.Future:
        run = lambda left: self.order.append((name, left, len(self.drops)))  # noqa: E731
        self.futures[name] = self.backlog.put(name, run, fits or self.fits, deadline)
        return self.futures[name]

    async def go(self) -> list[str]:
        self._gate.set()
        await asyncio.wait_for(asyncio.wait(self.futures.values()), 20)
        return [name for name, *_ in self.order]


def test_first_come_first_served_while_there_is_time(monkeypatch):
    async def play():
        async with Setting(monkeypatch) as setting:
            setting.put("a", deadline=100)
            setting.now = 49  # less than half of its time is gone
            setting.put("b", deadline=100)
            setting.put("c")
            return await setting.go(), setting.order[0]

    order, (_, left, _) = asyncio.run(play())
    assert order == ["a", "b", "c"]
    assert left == 51_000


def test_the_newest_goes_first_when_the_oldest_has_lost_half_of_its_time(monkeypatch):
    async def play():
        async with Setting(monkeypatch) as setting:
            setting.put("a", deadline=100)
            setting.now = 51
            setting.put("b", deadline=200)
            setting.put("c", deadline=200)
            return await setting.go()

    assert asyncio.run(play()) == ["c", "b", "a"]


def test_without_a_deadline_the_oldest_never_loses_its_turn(monkeypatch):
    async def play():
        async with Setting(monkeypatch) as setting:
            setting.put("a")
            setting.now = 1e9
            setting.put("b", deadline=1e9 + 10)
            return await setting.go()

    assert asyncio.run(play()) == ["a", "b"]


def test_what_expired_is_cleared_away_before_anything_runs(monkeypatch):
    """Else it would pile up behind the newest for as long as the overload lasts."""

    async def play():
        async with Setting(monkeypatch) as setting:
            late = [setting.put(f"late {i}", deadline=10) for i in range(3)]
            setting.now = 11
            setting.put("new", deadline=100)
            await setting.go()
            return setting.order, [str(future.exception()) for future in late], setting.drops

    order, errors, drops = asyncio.run(play())
    assert order == [("new", 89_000, 3)]
    assert errors == ["Timed out waiting for notification"] * 3
    assert drops == [(f"late {i}", "expired") for i in range(3)]


def test_what_was_cancelled_does_not_run_whether_it_is_the_oldest_or_the_newest(monkeypatch):
    async def play():
        async with Setting(monkeypatch) as setting:
            old, _, _, new = setting.put("a"), setting.put("b", deadline=100), setting.put("c"), setting.put("d")
            setting.now = 60
            old.cancel()
            new.cancel()
            return await setting.go(), sorted(setting.drops)

    assert asyncio.run(play()) == (["c", "b"], [("a", "cancelled"), ("d", "cancelled")])


def test_what_does_not_fit_into_its_time_is_dropped(monkeypatch):
    async def play():
        async with Setting(monkeypatch) as setting:
            tight = setting.put("tight", deadline=10, fits=lambda seconds: seconds > 10)
            setting.put("loose")
            await setting.go()
            with pytest.raises(RequestError):
                tight.result()
            return setting.order, setting.drops

    assert asyncio.run(play()) == ([("loose", None, 1)], [("tight", "expired")])


def test_a_job_that_would_wait_for_more_than_half_of_its_time_is_hopeless(monkeypatch):
    """By the pace at which jobs were begun since the queue was last empty."""

    async def play():
        async with Setting(monkeypatch) as setting:
            step = lambda _: setattr(setting, "now", setting.now + 10)  # noqa: E731
            told = [setting.backlog.is_hopeless(0.001)]
            began = [
                setting.backlog.put(
                    str(i),
                    lambda left: (told.append([setting.backlog.is_hopeless(s) for s in (39, 41)]), step(left)),
                    setting.fits,
                    NEVER,
                )
                for i in range(4)
            ]
            setting._gate.set()
            await asyncio.gather(*began)
            return told, setting.backlog.is_hopeless(0.001)

    told, after = asyncio.run(play())
    assert told == [
        False,
        [False, False],  # the pace is not known
        [True, False],  # 2 wait, for 10 s each
        [False, False],  # 1 waits
        [False, False],
    ]
    assert after is False
