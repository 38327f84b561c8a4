"""The tf.distribute strategy behind `--train.strategy`."""

import os

import tensorflow as tf

from pipeline.errors import USAGE, UserError


def strategy_of(name: str) -> tf.distribute.Strategy:
    """cpu, gpu: one device; mirrored: all GPUs, or all logical CPU devices; multi_worker: the cluster that TF_CONFIG
    names; tpu: the TPU that TPU_NAME names or this host holds. Raises UserError where the device is not there."""
    if name == "cpu":
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    gpus = tf.config.list_logical_devices("GPU")
    if name == "gpu":
        if not gpus:
            raise UserError(
                "--train.strategy gpu: TensorFlow sees no GPU here; install minibatch-descent[gpu] on a "
                "machine with one, or use --train.strategy cpu.",
                USAGE,
            )
        return tf.distribute.OneDeviceStrategy("/gpu:0")
    if name == "mirrored":
        devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
        # Collectives between CPU devices are keyed by the process: a second strategy in it would meet the first one's.
        return tf.distribute.MirroredStrategy(devices, None if gpus else tf.distribute.ReductionToOneDevice())
    if name == "multi_worker":
        if "TF_CONFIG" not in os.environ:
            raise UserError(
                "--train.strategy multi_worker: set TF_CONFIG to the cluster and this worker's place in it.", USAGE
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ.get("TPU_NAME", ""))
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--train.strategy tpu: no TPU could be reached ({first}); set TPU_NAME.", USAGE) from None
