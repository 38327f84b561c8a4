"""An embedding layer whose lookup reads the rows of the batch, not the table."""

import keras
from keras import saving

from custom_optimizers import replicas


@saving.register_keras_serializable("minibatch")
class SparseEmbedding(keras.layers.Embedding):
    """keras.layers.Embedding with the same arguments and weights, gathering straight from the variable.

    Keras' lookup turns the whole table into a tensor first, which copies it on every step once an optimizer has written
    single rows. ids of any shape [...] give [..., output_dim]. On other backends than TensorFlow it is Keras' layer.
    """

    def call(self, inputs):
        if not replicas.on_tensorflow() or self.lora_enabled or self.quantization_mode:
            return super().call(inputs)
        import tensorflow as tf

        ids = inputs if inputs.dtype in ("int32", "int64") else tf.cast(inputs, "int32")
        rows = tf.gather(self._embeddings.value, ids)
        return tf.cast(rows, self.compute_dtype)
