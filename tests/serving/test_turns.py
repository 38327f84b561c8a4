"""How the threads of the process are scheduled while requests are refused."""

import asyncio
import os
import threading

import pytest

from serving.server import turns
from serving.server.turns import Turns

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux only")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(turns, "_SECONDS", 0.05)


def test_all_threads_wait_for_their_turn_until_a_while_after_the_last_refusal():
    go = threading.Event()
    other = threading.Thread(target=go.wait)
    other.start()

    def policies():
        return {os.sched_getscheduler(0), os.sched_getscheduler(other.native_id)}

    async def play():
        taking = Turns()
        seen = [policies()]
        for _ in range(8):  # more than the while, but never apart by as much
            taking.take()
            seen.append(policies())
            await asyncio.sleep(0.01)
        while policies() != {os.SCHED_OTHER}:
            await asyncio.sleep(0.01)
        taking.take()
        seen.append(policies())
        while policies() != {os.SCHED_OTHER}:
            await asyncio.sleep(0.01)
        return seen

    try:
        first, *seen = asyncio.run(asyncio.wait_for(play(), 20))
    finally:
        go.set()
        other.join()
    assert first == {os.SCHED_OTHER}
    assert seen == [{os.SCHED_BATCH}] * 9


def test_another_policy_stays(monkeypatch):
    monkeypatch.setattr(turns, "_schedule", lambda policy: pytest.fail("scheduled"))
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_BATCH)

    async def play():
        Turns().take()

    asyncio.run(play())
