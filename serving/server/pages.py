"""What operators read: metrics, health, and the list of models. TF Serving has only the first, on the REST port."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from serving.server import metrics
from serving.server.errors import Code
from serving.server.flags import Flags
from serving.server.lifecycle import Models
from serving.server.settings import DEFAULT_METRICS_PATH, metrics_path

OPEN = ("/healthz", "/readyz")  # probes carry no token, and learn no name


class Page(NamedTuple):
    status: int
    media: str
    text: str


class Pages:
    """All of them on the admin port; on the data port what --monitoring_config_file and --health_pages ask for, and
    nothing under --profile=hardened. Raises ConfigError."""

    def __init__(self, models: Models[Any], flags: Flags):
        self._models = models
        asked = metrics_path(flags.monitoring_config_file)
        self._metrics_path = asked or DEFAULT_METRICS_PATH
        health = {"/healthz": self._alive, "/readyz": self._ready, "/v1/models": self._list}
        self._all: Mapping[str, Callable[[], Page]] = {**health, self._metrics_path: self._metrics}
        open_to_all = flags.profile != "hardened"
        self._data = frozenset(
            path for path in self._all if open_to_all and (flags.health_pages if path in health else asked)
        )
        self.started = False  # every model that was there was tried, and the data ports are open
        self.draining = False

    def answer(self, method: str, path: str, query: bytes, *, operator: bool = False) -> Page | None:
        """None for what is no page on this port. As in TF Serving, metrics come for any method but without a query."""
        page = self._all.get(path) if operator or path in self._data else None
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
        """Something answers. A model that comes later keeps nobody waiting: its attempts may take minutes, and fail."""
        if self.draining or not self.started or not self._models.available():
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
