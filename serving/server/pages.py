"""What operators read: metrics, health, and the list of models. TF Serving has only the first, on the REST port."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from serving.server import metrics
from serving.server.errors import Code
from serving.server.lifecycle import Models

OPEN = ("/healthz", "/readyz")  # probes carry no token, and learn no name


class Page(NamedTuple):
    status: int
    media: str
    text: str


class Pages:
    """`metrics_path` None: no metrics; `health`: /healthz, /readyz and the list at /v1/models."""

    def __init__(self, models: Models[Any], metrics_path: str | None, health: bool):
        self._models = models
        self._pages: Mapping[str, Callable[[], Page]] = {}
        if health:
            self._pages = {"/healthz": self._alive, "/readyz": self._ready, "/v1/models": self._list}
        if metrics_path:
            self._pages = {**self._pages, metrics_path: self._metrics}
        self._metrics_path = metrics_path
        self.draining = False

    def answer(self, method: str, path: str, query: bytes) -> Page | None:
        """None for what is no page. As in TF Serving, the metrics come for any method, but not with a query."""
        page = self._pages.get(path)
        if page is None:
            return None
        if query and path == self._metrics_path:
            asked = f"{path}?{query.decode('utf-8', 'replace')}"
            return Page(400, "text/plain", f"Unexpected path: {asked}. Should be {path}")
        if path != self._metrics_path and (query or method not in ("GET", "HEAD")):
            return None
        return page()

    def _metrics(self) -> Page:
        return Page(200, "text/plain", metrics.text())

    def _alive(self) -> Page:
        return Page(200, "text/plain", "alive\n")

    def _ready(self) -> Page:
        """Something answers and no model is still on its way; one that failed for good keeps nobody waiting."""
        outcomes = [self._models.outcome(name) for name in self._models.names()]
        if self.draining or True not in outcomes or None in outcomes:
            return Page(503, "text/plain", "draining\n" if self.draining else "not ready\n")
        return Page(200, "text/plain", "ready\n")

    def _list(self) -> Page:
        models = [{"name": name, "model_version_status": self._status(name)} for name in self._models.names()]
        return Page(200, "application/json", json.dumps({"models": models}, indent=1) + "\n")

    def _status(self, name: str) -> list[dict[str, Any]]:
        return [
            {
                "version": str(number),
                "state": state.value,
                "status": {
                    "error_code": (error.code if error else Code.OK).name,
                    "error_message": error.message if error else "",
                },
            }
            for number, state, error in self._models.status(name)
        ]
