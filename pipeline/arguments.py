"""The words after a stage's command, `PRESET [options]`, as a Config."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator

from pipeline.config import Config, check
from pipeline.errors import USAGE, UserError
from pipeline.presets import PRESETS, preset_of


def parse(command: str, arguments: list[str], kind: type[Config] = Config) -> tuple[str, Config]:
    """PRESET and its Config with the options given on the command line. Raises UserError(USAGE) for what is unknown.

    A command with options of its own has a `kind` of Config with these beside the sections."""
    import tyro

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: minibatch {command} PRESET [options]\n\npresets:")
        for name, function in PRESETS.items():
            print(f"  {name:<16}{(function.__doc__ or '').splitlines()[0]}")
        print(f"\n`minibatch {command} PRESET --help` lists the options.")
        sys.exit(0 if arguments else USAGE)
    preset, rest = arguments[0], arguments[1:]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), wide(not {"-h", "--help"} & {*rest}):
            default = preset_of(preset)
            config = tyro.cli(
                kind,
                args=rest,
                default=kind(**{f.name: getattr(default, f.name) for f in dataclasses.fields(Config)}),
                prog=f"minibatch {command} {preset}",
                description=PRESETS[preset].__doc__ if kind is Config else inspect.getdoc(kind),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as error:
        if error.code:
            raise UserError(
                f"{in_one_line(said.getvalue())} `minibatch {command} {preset} --help` lists the options.", USAGE
            ) from None
        raise
    return preset, check(config)


@contextlib.contextmanager
def wide(wanted: bool) -> Iterator[None]:
    """Keeps tyro from breaking words in the middle to fit its frame into a narrow terminal."""
    columns = os.environ.get("COLUMNS")
    if wanted:
        os.environ["COLUMNS"] = "9999"
    try:
        yield
    finally:
        if wanted:
            os.environ.pop("COLUMNS")
            os.environ.update({} if columns is None else {"COLUMNS": columns})


def in_one_line(box: str) -> str:
    """The message of tyro's framed error: what is wrong, and the first option it suggests.

    The frame is drawn in ASCII where the terminal does not speak UTF-8, and coloured where there is one.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"[│╭╮╰╯]", " ", line).strip() for line in plain.splitlines()[1:]]  # the first is a title
    texts = [" ".join(block.split()) for block in re.split(r"^[─-]{4,}$", "\n".join(lines), flags=re.MULTILINE)]
    message = next((text for text in texts if text), "The options cannot be read").rstrip(".")
    suggested = re.search(r"Perhaps you meant: (--\S+)", " ".join(texts))
    return f"{message}." + (f" Perhaps you meant {suggested[1]}." if suggested else "")
