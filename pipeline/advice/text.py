"""JSON values as a reader wants to see them."""

import json
import math
from typing import Any


def number(value: Any) -> str:
    """A figure with as many digits as a reader needs; a dash for None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """4.2 ms, 12.3 s, 4 min 5 s, 1 h 2 min."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def flatten(values: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, text) pairs; a list of more than 20 becomes its length."""
    if isinstance(values, dict) and values:
        return [pair for key, value in values.items() for pair in flatten(value, f"{name}.{key}" if name else str(key))]
    if isinstance(values, list) and values:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        return [(name, ", ".join(texts) if len(texts) <= 20 else f"{len(texts):,} entries")]
    if values in (None, "", {}, []):
        return [(name, "–")] if name else []
    return [(name, values if isinstance(values, str) else json.dumps(values))]
