"""Keras' peers at their best: their input without tf.data's autotuning.

An iterator that tunes its buffers is given back only after a wait that doubles from 10 ms on, so a fit, and each epoch
of one, can stand still for 0.6 s and more after its last step. Where a turn is half a second of training, that would be
half of the peer's time.
"""

import tensorflow as tf
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def arrays(x, y, batch: int, shuffle: bool = True) -> tf.data.Dataset:
    """What fit makes of arrays by itself (the class is Keras' own, not public), untuned."""
    return untuned(ArrayDataAdapter(x, y, batch_size=batch, shuffle=shuffle).get_tf_dataset())
