"""The command `minibatch`: parses, and calls the stage. TensorFlow and Beam are imported by the commands that need
them."""

import contextlib
import importlib.util
import io
import os
import re
import sys

from pipeline.config import Config, check
from pipeline.errors import USAGE, UserError
from pipeline.presets import PRESETS, preset_of

# command -> (extra, modules it must bring, what the command does)
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "run": (
        "all",
        ("apache_beam", "tensorflow", "tensorflow_serving", "jinja2", "matplotlib"),
        "PRESET [options]: the whole flow, from the source to a pushed model",
    ),
    "preprocess": ("data", ("apache_beam", "tensorflow"), "PRESET [options]: source -> records"),
    "train": ("train", ("tensorflow",), "PRESET [options]: records -> run"),
    "export": ("train", ("tensorflow", "tensorflow_serving"), "PRESET [options]: run -> SavedModel"),
    "evaluate": ("train", ("tensorflow",), "PRESET [options]: test metrics of the export, with intervals and slices"),
    "gate": ("train", ("tensorflow",), "PRESET [options]: may the export go live?"),
    "push": ("train", ("tensorflow",), "PRESET [options]: the accepted export becomes the next version"),
    "report": ("report", ("jinja2", "matplotlib"), "PRESET [options]: the run as one HTML page"),
    "explain": (
        "data",
        ("apache_beam", "tensorflow"),
        "PRESET [options]: would preprocess hit its cache, and if not, why?",
    ),
    "serve": (
        "serve",
        ("tensorflow", "starlette", "uvicorn", "tensorflow_serving"),
        "[TF Serving's options]: REST and gRPC on a serving root (exports/ by default)",
    ),
    "predict": ("client", ("grpc", "httpx", "google.protobuf"), "MODEL …: ask a running server, ours or TF Serving"),
    "demo": (
        "all",
        ("apache_beam", "tensorflow", "starlette", "httpx"),
        "[--root DIR]: all three sample presets, a bad candidate, the server and its answers",
    ),
}


SERVED = ("--serving_root", "--model_base_path", "--model_config_file", "-h", "--help")


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; a UserError becomes one line on stderr and its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        dispatch(arguments)
    except UserError as error:
        print(f"minibatch: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)


def dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise UserError(f"Unknown command {command!r}: there are {', '.join(COMMANDS)}.", USAGE)
    needs_modules(command)
    if command == "serve":
        chosen = any(word.startswith(SERVED) for word in rest)
        become([sys.executable, "-m", "serving.server", *([] if chosen else ["--serving_root=exports"]), *rest])
    elif command == "predict":
        become([sys.executable, "-m", "serving.client", *rest])
    elif command == "demo":
        from pipeline.demo import main as demo

        demo(rest)
    else:
        preset, config = parse(command, rest)
        quieten()
        from pipeline import stages

        getattr(stages, command)(preset, config)


def usage() -> str:
    commands = "\n".join(f"  {name:<11}{text}" for name, (_, _, text) in COMMANDS.items())
    return (
        f"usage: minibatch COMMAND …\n\n{commands}\n\npresets: {', '.join(PRESETS)}\n\n"
        "`minibatch run PRESET --help` lists every option; exit codes: 0 done, 2 usage, 3 refused by the gate, 65 bad "
        "data,\n66 missing file, 69 unavailable, 74 cannot write, 78 changed settings, 143 stopped by SIGTERM."
    )


def needs_modules(command: str) -> None:
    """Raises UserError naming the extra to install when a module that `command` needs is not there."""
    extra, modules, _ = COMMANDS[command]
    missing = [m for m in modules if importlib.util.find_spec(m.split(".")[0]) is None]
    if missing:
        raise UserError(
            f"`minibatch {command}` needs {', '.join(missing)}: pip install 'minibatch-descent[{extra}]'.", USAGE
        )


def parse(command: str, arguments: list[str]) -> tuple[str, Config]:
    """PRESET and its Config with the options given on the command line. Raises UserError(USAGE) for what is unknown."""
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
        with contextlib.redirect_stderr(said):
            config = tyro.cli(
                Config,
                args=rest,
                default=preset_of(preset),
                prog=f"minibatch {command} {preset}",
                description=PRESETS[preset].__doc__,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as error:
        if error.code:
            raise UserError(
                f"{in_one_line(said.getvalue())} `minibatch {command} {preset} --help` lists the options.", USAGE
            ) from None
        raise
    return preset, check(config)


def in_one_line(box: str) -> str:
    """The message of tyro's framed error: what is wrong, and the first option it suggests."""
    blocks = re.split(r"─{4,}", box)
    texts = [" ".join(re.sub(r"[│╭╮╰╯─]", " ", block).split()) for block in blocks]
    message = (texts[1] if len(texts) > 1 else "The options cannot be read").rstrip(
        "."
    )  # texts[0] is the frame's title
    suggested = re.search(r"Perhaps you meant: (--\S+)", " ".join(texts))
    return f"{message}." + (f" Perhaps you meant {suggested[1]}." if suggested else "")


def quieten() -> None:
    """TensorFlow's start-up chatter off, ours on."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)


def become(command: list[str]) -> None:
    """Replaces this process, so that signals and exit codes are the command's own."""
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
