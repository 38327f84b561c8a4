"""`python -m serving.server`, which is also what `minibatch serve` runs."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from serving.server import flags as command_line
from serving.server.config import ConfigError, model_configs
from serving.server.ports import hold


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT and returns the exit status; what stops it at the start is one line on stderr."""
    flags, unknown = command_line.parse(sys.argv[1:] if argv is None else argv)
    if flags.version:
        print(f"minibatch {_release('minibatch-descent')}\nTensorFlow Library: {_release('tensorflow')}")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr)
    log = logging.getLogger("serving")
    for name in (argument.partition("=")[0] for argument in unknown if argument[0] == "-"):  # a value may be a secret
        log.warning("unknown argument: %s (passed over)", name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported; what fails raises
    try:
        configs = model_configs(flags)
        if flags.rest_api_port == flags.port != 0:  # TF Serving goes on without REST, too
            log.error("--rest_api_port cannot be the same as --port: REST is not served")
            flags = replace(flags, rest_api_port=0)
        rest_port = hold(flags.bind, flags.rest_api_port, "--rest_api_port") if flags.rest_api_port else None
        rpc_port = hold(flags.bind, flags.port, "--port") if flags.port else None
        import uvloop

        with deaf():
            import tensorflow as tf

        from serving.server.app import serve

        tf.get_logger().setLevel("ERROR")  # it would advise against the loader that TF Serving's behaviour needs
        logging.getLogger("uvicorn").setLevel("WARNING")
        uvloop.run(serve(flags, configs, rest_port, rpc_port))
    except ConfigError as error:
        print(f"minibatch serve: {error}", file=sys.stderr)
        return error.status
    return 0


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "unreleased"


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Drops what compiled code says on stderr: TensorFlow 2.21 greets before it looks at its log level."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # every answer is out; TensorFlow's teardown, or a load under way, would only delay the exit
