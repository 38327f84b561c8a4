"""The tf.distribute strategy behind `--train.strategy`."""

import faulthandler
import logging
import os
import signal
import threading

import tensorflow as tf

from pipeline.errors import USAGE, UserError
from pipeline.training import cluster

log = logging.getLogger(__name__)

JOIN_SECONDS = 600.0
"""How long the processes of a cluster wait for each other at the start: machines may still be on their way."""
START_SECONDS = 120
"""How long TensorFlow may take to connect those that are there."""


def strategy_of(name: str) -> tf.distribute.Strategy:
    """cpu, gpu: one device; mirrored: all GPUs, or all logical CPU devices; multi_worker: the cluster that TF_CONFIG
    names; tpu: the TPU that TPU_NAME names, or this host's. Raises UserError where the device is not there.

    To be called before TensorFlow computes anything: collectives between processes are set up only once.
    """
    if name == "cpu":
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    if name == "multi_worker":
        return _multi_worker()
    if name == "tpu":
        return _tpu()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "gpu":
        if not gpus:
            raise UserError(
                "--train.strategy gpu: TensorFlow sees no GPU here; install the extra [gpu] on a "
                "machine with one, or use --train.strategy cpu.",
                USAGE,
            )
        return tf.distribute.OneDeviceStrategy("/gpu:0")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if not gpus:
        log.warning("--train.strategy mirrored: TensorFlow sees no GPU here; it uses %d CPU device(s).", len(devices))
    # Collectives between CPU devices are keyed by the process: a second strategy in it would meet the first one's.
    return tf.distribute.MirroredStrategy(devices, None if gpus else tf.distribute.ReductionToOneDevice())


def _multi_worker() -> tf.distribute.Strategy:
    addresses, me = cluster.place(os.environ.get("TF_CONFIG", ""))
    cluster.join(addresses, me, JOIN_SECONDS)
    # Connecting holds the interpreter's lock, waits for an hour and cannot be interrupted: should a process be lost
    # right now, the watchdog, which needs no lock, ends this one.
    faulthandler.dump_traceback_later(START_SECONDS, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise cluster.gone(addresses, error, "at the start") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        if threading.current_thread() is threading.main_thread():
            # TensorFlow has made SIGTERM a notice of preemption that nobody reads; it is to end the process again.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def _tpu() -> tf.distribute.Strategy:
    name = os.environ.get("TPU_NAME", "local")  # a Cloud TPU VM holds its own TPU
    try:
        return tf.distribute.TPUStrategy(tf.distribute.cluster_resolver.TPUClusterResolver.connect(name))
    # of TensorFlow, of the look-up of a name, of its missing client library
    except (ValueError, RuntimeError, ImportError, OSError, tf.errors.OpError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"--train.strategy tpu: no TPU {name!r} could be reached ({said}); run on a TPU VM with "
            "the extra [tpu], or set TPU_NAME.",
            USAGE,
        ) from None
