"""The options of a TensorFlow session, as the flags give them."""

import tensorflow as tf
from google.protobuf import text_format

from serving.server.config import ConfigError
from serving.server.flags import Flags


def session_config(flags: Flags) -> tf.compat.v1.ConfigProto:
    """Raises ConfigError for a --tensorflow_session_config_file that is none, and for too many flags of threads."""
    intra, inter = flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism
    both = flags.tensorflow_session_parallelism
    if both > 0 and intra > 0 and inter > 0:
        raise ConfigError(
            "give --tensorflow_session_parallelism, or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism, not all three",
            64,
        )
    config = tf.compat.v1.ConfigProto()
    file = flags.tensorflow_session_config_file
    if file:
        try:
            text_format.Parse(file.read_text(), config)
        except OSError as error:
            raise ConfigError(f"--tensorflow_session_config_file {file}: {error.strerror}", 66) from None
        except (text_format.ParseError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--tensorflow_session_config_file {file} is not a ConfigProto: {reason}", 65) from None
    if flags.per_process_gpu_memory_fraction > 0:
        config.gpu_options.per_process_gpu_memory_fraction = flags.per_process_gpu_memory_fraction
    else:  # TF Serving takes all of the GPU; several models, and perhaps a training run, share it here
        config.gpu_options.allow_growth = True
    single = intra > 0 or inter > 0
    config.intra_op_parallelism_threads = (intra if single else both) or config.intra_op_parallelism_threads
    config.inter_op_parallelism_threads = (inter if single else both) or config.inter_op_parallelism_threads
    return config
