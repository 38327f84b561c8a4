"""Markdown for what was measured: which versions, which core, and tables."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import load
from machine import LOAD_CORE, SERVER_CORE

OURS = ("tensorflow", "uvicorn", "uvloop", "httptools", "grpcio")


def heading(title: str) -> None:
    """The title, and the conditions of this run. Exits with a line on what is missing when the load tools are."""
    if absent := load.missing_tools():
        print(f"\n## {title}\n\nskipped: the load needs the Debian package(s) {' '.join(absent)}")
        raise SystemExit
    versions = ", ".join(f"{name} {version(name)}" for name in OURS)
    print(f"\n## {title}\n\nPython {platform.python_version()}, {versions}; {_processor()}; ", end="")
    print(f"server on core {SERVER_CORE}, load on core {LOAD_CORE}, load average {_load_average()} at the start.\n")
    if SERVER_CORE == LOAD_CORE:
        print("One core only: server and load share it, so these figures say little.\n")


def table(heads: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Floats with three significant digits."""
    for row in (heads, ["---"] * len(heads), *rows):
        print("| " + " | ".join(_cell(value) for value in row) + " |", flush=True)
    print(flush=True)


def bar(value: float, least: float | None = None, most: float | None = None) -> str:
    """The figure against its bar, of which one is given."""
    met = value >= least if least is not None else value <= most
    return f"{'met' if met else 'MISSED'} ({f'at least {least:g}' if least is not None else f'at most {most:g}'})"


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _load_average() -> str:
    return Path("/proc/loadavg").read_text().split()[0]
