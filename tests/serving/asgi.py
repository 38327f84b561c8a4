"""The REST application without a process and a socket: for tests of what is said, not of how it travels."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

from serving.server import rest
from serving.server.engine import Engine
from serving.server.lifecycle import Models
from serving.server.policy import Policy
from serving.server.servable import Servable


class Rest:
    """Serves the newest version of each model folder in `folders`."""

    def __init__(self, folders: Iterable[Path], policy: Policy | None = None):
        self.models: Models[Servable] = Models(Servable, lambda load: load())
        for folder in folders:
            self.models.aspire(folder.name, {int(path.name): path for path in sorted(folder.iterdir())[-1:]})
        while self.models.act():
            pass
        self._runner = asyncio.Runner()
        self._engine = self._runner.run(self._engine_of(policy))
        self._application = rest.application(self._engine, timeout_ms=30_000)

    async def _engine_of(self, policy: Policy | None) -> Engine:
        return Engine(self.models, policy=policy)

    def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        return self._runner.run(self._call(method, path, body))

    def post(self, path: str, body: str | bytes) -> tuple[int, object]:
        """The status and the answer as JSON, for an error its message."""
        status, content = self.call("POST", path, body.encode() if isinstance(body, str) else body)
        answer = json.loads(content)
        return status, answer["error"] if set(answer) == {"error"} else answer

    def close(self) -> None:
        self._engine.close()
        self._runner.close()

    async def _call(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        sent = []
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return pending.pop() if pending else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "raw_path": path.encode(), "query_string": b"", "headers": []}
        await self._application(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)
