"""The command `minibatch`: calls the stage. Only the commands that compute import TensorFlow and Beam."""

import importlib.util
import os
import sys
from typing import NoReturn

from pipeline.advice.proofs import KINDS
from pipeline.arguments import parse
from pipeline.config import Config
from pipeline.console import quieten
from pipeline.errors import CANNOT_WRITE, INTERRUPTED, TERMINATED, USAGE, UserError, storage_failure
from pipeline.presets import PRESETS

# command -> (extra, modules it must bring, what the command does)
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "run": (
        "all",
        ("apache_beam", "tensorflow", "tensorflow_serving", "jinja2", "matplotlib"),
        "PRESET [options]: the whole flow, from the source to a pushed model",
    ),
    "preprocess": ("data", ("apache_beam", "tensorflow"), "PRESET [options]: source -> records"),
    "train": ("train", ("tensorflow",), "PRESET [options]: records -> run"),
    "launch": (
        "train",
        ("tensorflow",),
        "--workers N train PRESET [options]: one model, N processes on this machine",
    ),
    "job": ("train", (), "gke|vertex|tpu-vm PRESET …: the file that starts a training job there"),
    "export": ("train", ("tensorflow", "tensorflow_serving"), "PRESET [options]: run -> SavedModel"),
    "evaluate": ("train", ("tensorflow",), "PRESET [options]: test metrics of the export, with intervals and slices"),
    "gate": ("train", ("tensorflow",), "PRESET [options]: may the export go live?"),
    "validate": (
        "all",
        ("tensorflow", "uvicorn", "tensorflow_serving"),
        "PRESET [options]: does a server that is booted on the export answer as the model did?",
    ),
    "push": ("train", ("tensorflow",), "PRESET [options]: the accepted export becomes the next version, and live"),
    "canary": ("client", (), "MODEL --version N --percent P [--judge]: try a version on a share of the requests"),
    "promote": ("client", (), "MODEL: the canary becomes the stable version"),
    "rollback": ("client", (), "MODEL: away with the canary, or back to the previous version"),
    "status": ("client", (), "[MODEL] [--address HOST:PORT]: versions, what is live, what a server says"),
    "audit": ("client", (), "MODEL: from the live version back to data, config, code and seed"),
    "models-config": ("client", (), "--output FILE: what is live, as TF Serving's models.config"),
    "report": ("report", ("jinja2", "matplotlib"), "PRESET [options]: the run as one HTML page"),
    "verify-resume": ("train", ("tensorflow",), "PRESET [options]: does a killed run end bit-equal?"),
    "verify-distribution": ("train", ("tensorflow",), "PRESET [options]: do N replicas equal one?"),
    "explain": (
        "data",
        ("apache_beam", "tensorflow"),
        "PRESET [options]: would preprocess hit its cache, and if not, why?",
    ),
    "serve": (
        "serve",
        ("tensorflow", "uvicorn", "tensorflow_serving"),
        "[TF Serving's options]: REST and gRPC on a serving root (exports/ by default)",
    ),
    "predict": (
        "client",
        ("grpc", "httptools", "google.protobuf"),
        "MODEL …: ask a running server, ours or TF Serving",
    ),
    "demo": (
        "all",
        ("apache_beam", "tensorflow", "uvicorn", "httptools"),
        "[--root DIR]: all three sample presets, a bad candidate, the server and its answers",
    ),
}

PUSHING = ("run", "push")  # a server is booted on the export first
OPERATIONS = ("canary", "promote", "rollback", "status", "audit", "models-config")
SERVED = ("--serving_root", "--model_base_path", "--model_config_file", "-h", "--help")


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; a UserError, a full disk and Ctrl-C become one line on stderr and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        dispatch(arguments)
    except UserError as error:
        fail(str(error), error.code)
    except KeyboardInterrupt:
        fail("interrupted; the same command (without --fresh) goes on from what is finished.", INTERRUPTED)
    except Exception as error:
        if storage_failure(error) is None:
            raise
        fail(f"{error}. Free space or choose another folder with --run.root, and repeat the command.", CANNOT_WRITE)


def fail(message: str, code: int) -> NoReturn:
    print(f"minibatch: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    if code == TERMINATED:  # all is saved, and TensorFlow's own leave-taking would take part of the two seconds
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


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
        become([sys.executable, "-m", "serving.command", *rest])
    elif command == "demo":
        from pipeline.demo import main as demo

        demo(rest)
    elif command == "launch":
        from pipeline.launch import main as launch

        launch(rest)
    elif command == "job":
        from pipeline.training.jobs import main as job

        job(rest, parse)
    elif command in OPERATIONS:
        from pipeline.release.operations import main as operate

        quieten(tensorflow=False)
        operate(command, rest)
    else:
        preset, config = parse(command, rest, KINDS.get(command, Config))
        if command in PUSHING and config.push.validate:
            needs_modules("validate", f"`minibatch {command}`, unless --push.no-validate is given,")
        quieten(tensorflow="tensorflow" in COMMANDS[command][1])
        from pipeline import stages

        getattr(stages, command.replace("-", "_"))(preset, config)


def usage() -> str:
    commands = "\n".join(f"  {name:<21}{text}" for name, (_, _, text) in COMMANDS.items())
    return (
        f"usage: minibatch COMMAND …\n\n{commands}\n\npresets: {', '.join(PRESETS)}\n\n"
        "`minibatch run PRESET --help` lists every option; exit codes: 0 done, 2 usage, 3 refused (gate,\n"
        "push, canary) or not proved, 65 bad data, request or loss, 66 missing file, 69 unavailable, 74 cannot write,\n"
        "78 changed settings, unfinished, or in another process's hands, 130 Ctrl-C, 143 stopped by SIGTERM."
    )


def needs_modules(command: str, who: str = "") -> None:
    """Raises UserError naming the extra to install when a module that `command` needs is not there."""
    extra, modules, _ = COMMANDS[command]
    missing = [m for m in modules if not installed(m)]
    if missing:
        who = who or f"`minibatch {command}`"
        raise UserError(f"{who} needs {', '.join(missing)}: pip install '.[{extra}]' in the project's folder.", USAGE)


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it lies in
        return False


def become(command: list[str]) -> None:
    """Replaces this process, so that signals and exit codes are the command's own."""
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
