"""`python -m serving.server`, which is also what `minibatch serve` runs."""

import logging
import os
import sys
from collections.abc import Sequence

from serving.server import flags as command_line
from serving.server.config import ConfigError, model_configs
from serving.server.ports import hold


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT and returns the exit status; what stops it at the start is one line on stderr."""
    flags, unknown = command_line.parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr)
    log = logging.getLogger("serving")
    for argument in unknown:
        log.warning("unknown argument: %s (passed over)", argument)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
    try:
        configs = model_configs(flags)
        rest_port = hold(flags.bind, flags.rest_api_port, "--rest_api_port") if flags.rest_api_port else None
        rpc_port = hold(flags.bind, flags.port, "--port") if flags.port else None
        import tensorflow as tf
        import uvloop

        from serving.server.app import serve

        tf.get_logger().setLevel("ERROR")  # it would advise against the loader that TF Serving's behaviour needs
        logging.getLogger("uvicorn").setLevel("WARNING")
        uvloop.run(serve(flags, configs, rest_port, rpc_port))
    except ConfigError as error:
        print(f"minibatch serve: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # every answer is out; TensorFlow's teardown, or a load under way, would only delay the exit
