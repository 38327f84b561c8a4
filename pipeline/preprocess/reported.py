"""How an error that a user should read gets out of a worker: as text, the one thing every runner hands back."""

import errno
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from pipeline.errors import UserError

MARK = "reported-by-worker "
LOGGERS = ("apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker")


class Reported(Exception):
    """Its text is MARK and then a JSON object; a runner may wrap it in any exception and text of its own."""


@contextmanager
def reported() -> Iterator[None]:
    """Inside a worker: turns what `recovered` understands into Reported."""
    try:
        yield
    except UserError as error:
        raise Reported(MARK + json.dumps({"message": str(error), "code": error.code})) from error
    except OSError as error:
        raise Reported(MARK + json.dumps({"errno": error.errno, "message": error.strerror or str(error)})) from error
    except tf.errors.ResourceExhaustedError as error:  # TensorFlow's word for a full disk
        raise Reported(MARK + json.dumps({"errno": errno.ENOSPC, "message": "No space left on device"})) from error


def recovered(error: Exception) -> Exception:
    """In the driver: the UserError or OSError that a worker reported, or `error` itself if it is none of them."""
    _, mark, text = str(error).partition(MARK)
    if not mark:
        return error
    values, _ = json.JSONDecoder().raw_decode(text)
    if "errno" in values:
        return OSError(values["errno"], values["message"])
    return UserError(values["message"], values["code"])


@contextmanager
def untraced() -> Iterator[None]:
    """Keeps Beam from logging a traceback of what is reported in one line anyway."""

    def silent(record: logging.LogRecord) -> bool:
        return MARK not in record.getMessage()

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(silent)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(silent)
