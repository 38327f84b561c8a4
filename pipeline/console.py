"""What a command says while it works: ours, and not TensorFlow's."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from pipeline.errors import redacted


class Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def quieten(tensorflow: bool) -> None:
    """TensorFlow's start-up chatter off, ours on."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what goes wrong reaches Python as an exception
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    handler = logging.StreamHandler()
    handler.setFormatter(Redacting("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pipeline").setLevel(logging.INFO)
    if tensorflow:
        with deaf():
            import tensorflow as tf  # noqa: F401


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Drops what compiled code says on stderr: TensorFlow 2.21 greets before it looks at its log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
