"""From a request to its answer: admission, deadlines, departures, and what runs where."""

import asyncio
import threading
import time

import numpy as np
import pytest
from tensorflow_serving.apis import model_pb2

from serving.server.batching_parameters import BatchingParameters
from serving.server.departures import Departures
from serving.server.engine import LARGE_BYTES, Caller, Engine
from serving.server.errors import Code, RequestError
from serving.server.pace import Pace
from tests.serving.shell_servable import Models, Shell, call, refused

SPEC = model_pb2.ModelSpec(name="m")


class Setting:
    """An engine of one thread over a shell; `ask` begins a request."""

    def __init__(self, shell: Shell, **options):
        self.shell, self.models = shell, Models(shell)
        self.engine = Engine(self.models, threads=1, batch_threads=1, **options)
        self.asked: list[asyncio.Task] = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.shell.gate.set()
        await asyncio.gather(*self.asked, return_exceptions=True)
        self.engine.close()

    def ask(self, *rows, timeout_ms=None, **caller) -> asyncio.Task:
        read = lambda _: call(*rows)  # noqa: E731
        task = asyncio.create_task(self.engine.answer(SPEC, read, Caller(timeout_ms, **caller)))
        self.asked.append(task)
        return task

    async def hold(self):
        """A first request takes the only thread."""
        self.shell.gate.clear()
        self.ask(0)
        for _ in range(2000):
            if self.shell.runs:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the first request did not begin")


async def outcome(task):
    try:
        return await asyncio.wait_for(task, 20)
    except RequestError as error:
        return refused(error)


def drops(monkeypatch) -> list[tuple[str, str]]:
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr("serving.server.metrics.dropped", lambda *what: counted.append(what))
    return counted


@pytest.mark.parametrize("batching", [None, BatchingParameters()], ids=["alone", "batching"])
def test_an_answer_names_its_version_and_lets_go_of_it(batching):
    async def play():
        async with Setting(Shell(batching)) as setting:
            answer = await outcome(setting.ask(1, 2, request_id="abc"))
            bad = await outcome(setting.ask(13))
            return answer, bad, setting.models.held, setting.models.asked[0]

    answer, bad, held, asked = asyncio.run(play())
    assert answer == (7, [[2, 3]])
    assert bad == ("INVALID_ARGUMENT", "13 brings bad luck")
    assert held == 0
    assert asked == ("m", None, "abc")


def test_a_run_leaves_the_loop_free():
    async def play():
        async with Setting(Shell()) as setting:
            await setting.hold()
            for _ in range(3):
                await asyncio.sleep(0)  # would not return before the gate opens, which happens after it
            return setting.shell.threads[0]

    assert asyncio.run(play()) is not threading.main_thread()


def test_a_short_run_of_a_small_request_stays_on_the_loop_and_that_of_a_large_one_does_not():
    async def play():
        async with Setting(Shell(short=True)) as setting:
            await outcome(setting.ask(1))
            await outcome(setting.ask(1, size=LARGE_BYTES + 1))
            return [thread is threading.main_thread() for thread in setting.shell.threads]

    assert asyncio.run(play()) == [True, False]


def test_large_requests_are_read_and_large_answers_written_in_a_thread():
    threads = []

    def read(_):
        threads.append(threading.current_thread())
        return call(*range(20, 5020))._replace(write=lambda values: threads.append(threading.current_thread()))

    async def play():
        async with Setting(Shell()) as setting:
            await setting.engine.answer(SPEC, read, Caller(None, size=LARGE_BYTES + 1))
            await setting.engine.answer(SPEC, lambda _: call(1)._replace(write=lambda _: None), Caller(None))

    asyncio.run(play())
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_more_requests_than_the_bound_are_shed_until_one_is_answered(monkeypatch):
    counted = drops(monkeypatch)

    async def play():
        async with Setting(Shell(), max_queued=2) as setting:
            await setting.hold()
            setting.ask(1)
            await asyncio.sleep(0)
            with pytest.raises(RequestError) as raised:
                setting.engine.admit(None, "m")
            setting.shell.gate.set()
            await asyncio.gather(*setting.asked)
            setting.engine.admit(None, "m")
            return raised.value

    error = asyncio.run(play())
    assert (error.code.name, error.http, error.retry_after) == ("RESOURCE_EXHAUSTED", 429, 1)
    assert counted == [("m", "shed")]


def test_what_came_while_others_were_read_counts_against_the_bound():
    async def play():
        async with Setting(Shell(), max_queued=2) as setting:
            await setting.hold()
            setting.engine.admit(None, "m")
            tasks = [setting.ask(i) for i in range(3)]
            await asyncio.sleep(0)
            setting.shell.gate.set()
            return [await outcome(task) for task in tasks]

    first, *others = asyncio.run(play())
    assert first == (7, [[1]])
    assert [code for code, _ in others] == ["RESOURCE_EXHAUSTED"] * 2


def test_without_a_bound_nothing_is_shed():
    async def play():
        async with Setting(Shell()) as setting:
            await setting.hold()
            for i in range(500):
                setting.engine.admit(None, "m")
                setting.ask(i)

    asyncio.run(play())


@pytest.mark.parametrize("batching", [None, BatchingParameters()], ids=["alone", "batching"])
def test_what_expired_before_its_turn_is_not_computed(monkeypatch, batching):
    counted = drops(monkeypatch)

    async def play():
        async with Setting(Shell(batching)) as setting:
            await setting.hold()
            late, patient = setting.ask(1, timeout_ms=5), setting.ask(2, timeout_ms=60_000)
            await asyncio.sleep(0.02)
            setting.shell.gate.set()
            return await outcome(late), await outcome(patient), len(setting.shell.runs)

    late, patient, runs = asyncio.run(play())
    assert late == (
        ("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue")
        if batching
        else ("DEADLINE_EXCEEDED", "Timed out waiting for notification")
    )
    assert patient == (7, [[3]])
    assert runs == 2
    assert counted == [("m", "expired")]


@pytest.mark.parametrize("batching", [None, BatchingParameters()], ids=["alone", "batching"])
def test_what_cannot_end_in_time_does_not_begin(monkeypatch, batching):
    counted = drops(monkeypatch)

    async def play():
        async with Setting(Shell(batching)) as setting:
            setting.shell.needs = 30
            tight, loose = setting.ask(1, timeout_ms=10_000), setting.ask(2, timeout_ms=60_000)
            return (await outcome(tight))[0], await outcome(loose)

    tight, loose = asyncio.run(play())
    assert tight == ("RESOURCE_EXHAUSTED" if batching else "DEADLINE_EXCEEDED")
    assert loose == (7, [[3]])
    assert counted == [("m", "expired")]


@pytest.mark.parametrize("batching", [None, BatchingParameters()], ids=["alone", "batching"])
def test_what_was_cancelled_before_its_turn_is_not_computed(monkeypatch, batching):
    counted = drops(monkeypatch)

    async def play():
        async with Setting(Shell(batching)) as setting:
            await setting.hold()
            gone = setting.ask(1)
            await asyncio.sleep(0.01)
            gone.cancel()
            await asyncio.wait([gone])
            setting.shell.gate.set()
            await outcome(setting.ask(2))
            return len(setting.shell.runs), setting.models.held

    assert asyncio.run(play()) == (2, 0)
    assert counted == [("m", "cancelled")]


def test_the_deadline_bounds_the_run():
    async def play():
        async with Setting(Shell()) as setting:
            await outcome(setting.ask(1, timeout_ms=60_000))
            await outcome(setting.ask(1))
            return [timeout for _, timeout in setting.shell.runs]

    bounded, free = asyncio.run(play())
    assert 50_000 < bounded <= 60_000
    assert free is None


# Clients that depart


def test_a_request_whose_client_departs_is_cancelled_and_others_are_not():
    async def request(departures, receive, seconds):
        with departures.noticed(receive):
            await asyncio.sleep(seconds)
        return "answered"

    async def play():
        departures = Departures()
        left = asyncio.Event()

        async def leaves():
            await left.wait()
            return {"type": "http.disconnect"}

        async def stays():
            await asyncio.Event().wait()

        gone = asyncio.create_task(request(departures, leaves, 20))
        here = asyncio.create_task(request(departures, stays, 0.3))
        await asyncio.sleep(0)
        left.set()
        await asyncio.wait([gone], timeout=10)
        answered = await here
        await asyncio.sleep(0)
        return gone.cancelled(), answered, len(asyncio.all_tasks())

    assert asyncio.run(play()) == (True, "answered", 1)


def test_a_request_that_is_answered_at_once_costs_no_listener():
    asked = []

    async def receive():
        asked.append(1)

    async def play():
        departures = Departures()
        with departures.noticed(receive):
            pass
        await asyncio.sleep(0.2)

    asyncio.run(play())
    assert asked == []


# What may run on the loop


def test_a_run_is_short_once_enough_runs_were():
    pace = Pace()
    for _ in range(15):
        pace.ran(50)
    assert not pace.short
    pace.ran(5000)  # one that waited for the lock says nothing
    assert pace.short


def test_a_long_run_is_never_short():
    pace = Pace()
    for _ in range(100):
        pace.ran(400)
    assert not pace.short


def test_a_run_that_became_long_leaves_the_loop_and_may_come_back():
    pace = Pace()
    for _ in range(16):
        pace.ran(50)
    for _ in range(20):
        pace.on_loop(2000)
    assert not pace.short
    for _ in range(16):
        pace.ran(50)
    assert pace.short


def test_a_run_that_once_held_the_loop_long_never_comes_back():
    pace = Pace()
    for _ in range(16):
        pace.ran(50)
    pace.on_loop(21_000)
    for _ in range(100):
        pace.ran(50)
    assert not pace.short


def test_a_run_fits_into_the_time_of_the_fastest_of_late_or_when_nothing_else_runs():
    pace = Pace()
    for micros in [20_000, 10_000, *[30_000] * 14]:
        pace.ran(micros)
    assert pace.fits(1)
    with pace.in_thread():
        assert pace.fits(10_000)
        assert not pace.fits(9_999)
    assert pace.fits(1)


def test_a_run_that_was_broken_off_counts_and_one_that_was_refused_does_not():
    pace = Pace()
    for code, fits in [(Code.INVALID_ARGUMENT, True), (Code.DEADLINE_EXCEEDED, False)]:
        for _ in range(16):
            with pytest.raises(RequestError), pace.in_thread():
                raise RequestError(code, "")
        with pace.in_thread():
            assert pace.fits(0) is fits


def test_of_real_models_only_one_without_loops_may_run_on_the_loop(saved_models):
    from serving.server.servable import Servable

    servables = {
        name: Servable(saved_models / name / version) for name, version in [("pair", "2"), ("types", "00000003")]
    }

    runs = {"pair": ("half", {"x": np.float32([1])}), "types": ("halves", {"x": np.float16([1])})}
    shorts = {}
    for name, (signature, feeds) in runs.items():
        servable, definition = servables[name], servables[name].signatures[signature]
        fed = {definition.inputs[alias].name: array for alias, array in feeds.items()}
        fetches = tuple(info.name for info in definition.outputs.values())
        for _ in range(400):  # on a busy machine each may take long
            values = servable.run(fed, fetches)
            if servable.is_short(fetches):
                assert [v.tolist() for v in servable.run_here(fed, fetches)] == [v.tolist() for v in values]
                break
        shorts[name] = servable.is_short(fetches)
        servable.close()
    assert shorts == {"pair": False, "types": True}


def test_the_clock_of_deadlines_is_monotonic(monkeypatch):
    """A clock that is set back, or forward, expires nothing (fault F30)."""
    monkeypatch.setattr(time, "time", lambda: 0.0)

    async def play():
        async with Setting(Shell()) as setting:
            return await outcome(setting.ask(1, timeout_ms=60_000))

    assert asyncio.run(play()) == (7, [[2]])
