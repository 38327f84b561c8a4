"""What the folders say: polled into what each model should offer."""

import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from serving.server import live
from serving.server.config import ModelConfig, aspired, discover, versions_on_disk
from serving.server.lifecycle import Models

log = logging.getLogger("serving")


class Source:
    """The models that were asked for by name, and those that stand in `serving_root`; a named one wins."""

    def __init__(self, models: Models[Any], serving_root: Path | None, allow_unavailable_labels: bool = False):
        self.models = models
        self._root = serving_root
        self._allow_unavailable_labels = allow_unavailable_labels
        self._named: dict[str, ModelConfig] = {}
        self._configs: dict[str, ModelConfig] = {}
        self._stamps: dict[str, object] = {}
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()  # a reload and a poll never mix
        self.overdue = threading.Event()  # the next poll should not wait for its time

    def name(self, configs: Iterable[ModelConfig]) -> set[str]:
        """Replaces the models that are asked for by name, and returns which of them are new.

        As in TF Serving, labels are checked against what is loaded now, before anything loads.
        Raises RequestError(FAILED_PRECONDITION) for a label, and changes nothing then. (TF Serving keeps half of it.)
        """
        with self._lock:
            wanted = {config.name: config for config in configs}
            labels = {name: config.labels for name, config in wanted.items() if config.labels}
            self.models.relabel(labels, self._allow_unavailable_labels)
            new = wanted.keys() - self._named.keys()
            self._named = wanted
        self.overdue.set()
        self.models.stirred.set()
        return new

    def poll(self) -> None:
        """Reads all folders once.

        A base path that cannot be read leaves its own model as it is. (In TF Serving it stops the updates of all.)
        """
        with self._lock:
            self.overdue.clear()
            configs = {config.name: config for config in self._rooted()} | self._named
            for name in self._configs.keys() - configs.keys():
                self.models.aspire(name, {})
            self._configs = configs
            for config in configs.values():
                self._poll(config)

    def live_changed(self) -> bool:
        """Whether some LIVE.json was replaced since the last poll; cheap enough to ask several times a second."""
        return any(live.stamp(c.base_path) != self._stamps.get(c.name) for c in self._configs.values() if c.rooted)

    def _rooted(self) -> list[ModelConfig]:
        if not self._root:
            return []
        known = [config for config in self._configs.values() if config.rooted]
        try:
            found = discover(self._root)
        except OSError as error:
            self._say(str(self._root), f"--serving_root {self._root}: {error.strerror}; its models stay as they are")
            return known
        there = {config.name for config in found}
        unread = (c for c in known if c.name not in there and os.path.isdir(c.base_path))
        return [*found, *(config for config in unread if versions_on_disk(config.base_path) is None)]

    def _poll(self, config: ModelConfig) -> None:
        name = config.name
        on_disk = versions_on_disk(config.base_path)
        if on_disk is None:
            self._say(name, f"Could not find base path {config.base_path} for servable {name}; waiting for it")
            return
        route = None
        if config.rooted:
            self._stamps[name] = live.stamp(config.base_path)
            try:
                route = live.read(config.base_path)
            except ValueError as error:
                self._say(name, f"{error}; {name} stays as it is")
                return
        wanted = aspired(on_disk, config, self.models.failed(name), route)
        absent = (route.versions if route else config.policy.specific or set()) - on_disk.keys()
        self._say(name, _lack(config, bool(on_disk), absent))
        self.models.aspire(name, {number: on_disk[number] for number in wanted}, on_disk if config.rooted else ())
        self.models.route(name, route)

    def _say(self, about: str, message: str) -> None:
        """Once, not at every poll."""
        if message and self._said.get(about) != message:
            log.warning(message)
        self._said[about] = message


def _lack(config: ModelConfig, any_version: bool, absent: Iterable[int]) -> str:
    if not any_version:
        return (
            f"No versions of servable {config.name} found under base path {config.base_path}. "
            "Did you forget to name your leaf directory as a number (eg. '/1/')?"
        )
    missing = ", ".join(str(number) for number in sorted(absent))
    return f"{config.name}: version {missing} is asked for, and is not under {config.base_path}" if missing else ""
