"""Which variables a pattern means, decided once, when the optimizer is built, and kept in its config.

Paths change when a model is saved and loaded (a Sequential loses its own name from them). A loaded optimizer must not
regroup its variables, so it takes the decision from its config and does not match again.
"""

import re

from custom_optimizers.state import path


class Selection:
    def __init__(self):
        self.excluded: list[str] = []  # patterns of variables without weight decay
        self._keys: list = []  # variables without weight decay, given as such
        self._spared: list[int] | None = None  # the same as positions, once known
        self._chosen: dict[str, list[int]] = {}  # pattern -> positions
        self._count: int | None = None  # of the variables that these are positions among

    def exclude(self, keys: list, patterns: list[str]) -> None:
        self._keys, self.excluded, self._spared = keys, patterns, None

    def build(self, patterns: list[str], variables: list, key_of) -> None:
        """Settles every pattern: re.search over paths. Raises ValueError for a pattern that is none, and for positions
        out of the config of another model that no pattern stands for."""
        if self._count not in (None, len(variables)):  # a config of another model: its positions mean nothing here
            self._chosen = {}
            if self._spared:
                raise ValueError(
                    f"the optimizer's config spares variables of a model with {self._count} from weight decay, and "
                    f"this one has {len(variables)}: call exclude_from_weight_decay again before it is built."
                )
        self._count = len(variables)
        paths = [path(variable) for variable in variables]
        for p in patterns:
            if p not in self._chosen:
                self._chosen[p] = [i for i, each in enumerate(paths) if _search(p, each)]
        if self._spared is None:
            self._spared = [i for i, variable in enumerate(variables) if key_of(variable) in self._keys]

    def has(self, pattern: str, index: int) -> bool:
        return index in self._chosen.get(pattern, ())

    def spares(self, index: int) -> bool:
        return index in (self._spared or ()) or any(self.has(pattern, index) for pattern in self.excluded)

    def config(self) -> dict:
        kept = {"excluded": self.excluded, "spared": self._spared, "chosen": self._chosen}
        return {"selection": {**kept, "count": self._count}} if any(kept.values()) else {}

    @classmethod
    def from_config(cls, config: dict) -> "Selection":
        """Takes what config() wrote out of the config."""
        selection, kept = cls(), config.pop("selection", None)
        if kept:
            selection.excluded = list(kept["excluded"])
            selection._spared, selection._chosen = kept["spared"], dict(kept["chosen"] or {})
            selection._count = kept.get("count")
        return selection


def _search(pattern: str, path: str) -> bool:
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a pattern of variable paths ({error}).") from None
