"""A convolution of small images, in bfloat16 on a CPU, in the shapes that oneDNN does fastest.

Its own gradient by a kernel takes 1.6 times the work of a forward convolution where images are of 8x8, four times at
4x4. But that gradient, too, is a forward convolution, over inputs whose channels are the batch:

    gradient[i, j, a, b] = sum over y, x, n of inputs[y + i, x + j, a, n] * outputs' gradient[y, x, n, b]

Both ways a convolution of [h, w, batch] runs along the batch and leaves out the zeros around the images, which are
a tenth of the work at 7x7 and a third at 3x3.
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
    edges = [size // 2 if padding == "SAME" else 0 for size in kernel.shape[:2]]

    @tf.custom_gradient
    def convolved(x, kernel):
        x, kernel = _places_first(x), kernel[:, :, None]

        def gradient(y):
            y = _places_first(y)
            back = tf.raw_ops.Conv3DBackpropInputV2(
                input_sizes=x.shape, filter=kernel, out_backprop=y, strides=[1] * 5, padding=padding
            )
            image = tf.pad(tf.transpose(x, [0, 1, 2, 4, 3]), [[0, 0], *([edge] * 2 for edge in edges), [0, 0], [0, 0]])
            return _batch_first(back), tf.nn.conv3d(image, y[0, :, :, None], [1] * 5, "VALID")[0]

        return _batch_first(tf.nn.conv3d(x, kernel, [1] * 5, padding)), gradient

    return convolved(x, kernel)


def _places_first(x: tf.Tensor) -> tf.Tensor:
    """[batch, h, w, channels] -> [1, h, w, batch, channels], as three axes: that is twice as fast."""
    batch, height, width, channels = x.shape
    x = tf.transpose(tf.reshape(x, [batch, -1, channels]), [1, 0, 2])
    return tf.reshape(x, [1, height, width, batch, channels])


def _batch_first(x: tf.Tensor) -> tf.Tensor:
    """The inverse of `_places_first`."""
    _, height, width, batch, channels = x.shape
    x = tf.transpose(tf.reshape(x, [-1, batch, channels]), [1, 0, 2])
    return tf.reshape(x, [batch, height, width, channels])
