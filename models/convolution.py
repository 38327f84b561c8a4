"""A convolution whose kernel gradient, over small images in bfloat16 on a CPU, is computed as a forward convolution.

oneDNN's own kernel for that gradient reaches 20 to 60% of what its forward convolutions do where images are of 8x8 or
smaller. But the sum over batch and places is a forward convolution, too, with the batch in the place of the channels:

    gradient[i, j, a, b] = sum over y, x, n of inputs[y + i, x + j, a, n] * outputs' gradient[y, x, n, b]
"""

import keras
import tensorflow as tf

from models.recurrence import on_cpu

LARGEST = 64  # places of an image: from 15x15 on there is nothing to gain
CHANNELS = 32  # oneDNN's block of channels: what a batch must fill


@keras.saving.register_keras_serializable("minibatch")
class Convolution(keras.layers.Conv2D):
    """keras.layers.Conv2D: the same arguments, weights and, up to rounding, numbers."""

    def convolution_op(self, inputs, kernel):
        if self._plain() and _small(inputs) and on_cpu():
            return _convolved(inputs, tf.convert_to_tensor(kernel), self.padding.upper())
        return super().convolution_op(inputs, kernel)

    def _plain(self) -> bool:
        odd = all(size % 2 for size in self.kernel_size)
        return {*self.strides, *self.dilation_rate, self.groups} == {1} and odd and self.data_format == "channels_last"


def _small(x: tf.Tensor) -> bool:
    batch, height, width, _ = x.shape
    return x.dtype == tf.bfloat16 and bool(batch) and batch % CHANNELS == 0 and height * width <= LARGEST


def _convolved(x: tf.Tensor, kernel: tf.Tensor, padding: str) -> tf.Tensor:
    """x [batch, h, w, in] and kernel [rows, columns, in, out] -> [batch, h', w', out]."""

    @tf.custom_gradient
    def convolved(x, kernel):
        def gradient(y):
            back = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=x.shape, filter=kernel, out_backprop=y, strides=[1] * 4, padding=padding
            )
            edges = [size // 2 if padding == "SAME" else 0 for size in kernel.shape[:2]]
            return back, _kernel_gradient(x, y, edges)

        return tf.nn.conv2d(x, kernel, 1, padding), gradient

    return convolved(x, kernel)


def _kernel_gradient(x: tf.Tensor, y: tf.Tensor, edges: list[int]) -> tf.Tensor:
    """[rows, columns, in, out] from inputs x [batch, h, w, in], which `edges` zeros were put around above and below,
    left and right, and the outputs' gradient y [batch, h', w', out]."""
    batch, height, width, out = y.shape
    y = tf.transpose(tf.reshape(y, [batch, -1, out]), [1, 0, 2])
    image = tf.pad(tf.transpose(x, [1, 2, 3, 0])[None], [[0, 0], *([edge] * 2 for edge in edges), [0, 0], [0, 0]])
    return tf.nn.conv3d(image, tf.reshape(y, [height, width, 1, batch, out]), [1] * 5, "VALID")[0]
