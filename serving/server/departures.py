"""Clients that close the connection while their request is under way: the request is cancelled.

To listen to a connection costs a task, about 20 us, and most requests are answered before any client gives up. So only
those that are still under way after a while are listened to.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

_SECONDS = 0.05

Receive = Callable[[], Awaitable[Any]]  # of ASGI, when the whole body was received


class Departures:
    def __init__(self) -> None:
        self._young: dict[asyncio.Task, Receive] = {}
        self._old: dict[asyncio.Task, Receive] = {}
        self._listening: dict[asyncio.Task, asyncio.Task] = {}
        self._timed = False

    def noticed(self, receive: Receive) -> "_Request":
        """A context in which the running task is cancelled when its client departs, within about 0.1 s."""
        if not self._timed:
            self._timed = True
            asyncio.get_running_loop().call_later(_SECONDS, self._sweep)
        return _Request(self, receive)

    def _leave(self, task: asyncio.Task) -> None:
        if self._young.pop(task, None) is None and self._old.pop(task, None) is None:
            listener = self._listening.pop(task, None)
            if listener:
                listener.cancel()

    def _sweep(self) -> None:
        for task, receive in self._old.items():
            self._listening[task] = asyncio.create_task(self._listen(task, receive))
        self._old, self._young = self._young, {}
        self._timed = bool(self._old)
        if self._timed:
            asyncio.get_running_loop().call_later(_SECONDS, self._sweep)

    async def _listen(self, task: asyncio.Task, receive: Receive) -> None:
        message = await receive()
        if self._listening.pop(task, None) and message["type"] == "http.disconnect":
            task.cancel()


class _Request:
    __slots__ = ("_departures", "_receive", "_task")

    def __init__(self, departures: Departures, receive: Receive):
        self._departures, self._receive = departures, receive
        task = asyncio.current_task()
        assert task
        self._task = task

    def __enter__(self) -> None:
        self._departures._young[self._task] = self._receive

    def __exit__(self, *_: object) -> None:
        self._departures._leave(self._task)
