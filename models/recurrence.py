"""An LSTM over whole sequences in one kernel. Keras steps through time with a loop of small operations on CPUs; the
kernel does a sequence, forward or backward, in one call, and its weights are those of Keras' layer."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("minibatch")
class BlockLSTM(keras.layers.LSTM):
    """keras.layers.LSTM, computed by tf.raw_ops.BlockLSTMV2 where that is possible; the same arguments and weights.

    [batch, time, features] -> [batch, time, units], for masks that end with the text (right padding). What stands
    where the mask is false is not defined (Keras repeats the last state there): pool with the mask. Anything that the
    kernel does not do (XLA, GPUs, float64, other activations, dropout inside, states handed in or out) goes Keras' way.
    """

    def call(self, sequences, initial_state=None, mask=None, training=False):
        if initial_state is not None or not self._plain() or not on_cpu():
            return super().call(sequences, initial_state=initial_state, mask=mask, training=training)
        x = tf.cast(sequences, tf.float32)
        lengths = None if mask is None else tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)  # [batch]
        if self.go_backwards:
            x = _reversed(x, lengths)
        h = self._states(tf.transpose(x, [1, 0, 2]))  # [time, batch, units]
        h = tf.cast(tf.transpose(h, [1, 0, 2]), self.compute_dtype)
        # Backwards, Keras hands out states in the order of its steps, padding first.
        return h if not self.go_backwards or lengths is None else tf.reverse(_reversed(h, lengths), [1])

    def _states(self, x):
        """x [time, batch, features] -> hidden states [time, batch, units]."""
        weights = tf.concat([self.cell.kernel, self.cell.recurrent_kernel], axis=0)  # [features + units, 4 * units]
        return _block(x, tf.cast(weights, tf.float32), tf.cast(self.cell.bias, tf.float32))

    def _plain(self) -> bool:
        names = (keras.activations.serialize(self.activation), keras.activations.serialize(self.recurrent_activation))
        dropped = self.dropout or self.recurrent_dropout
        whole = self.return_sequences and not self.return_state and not self.stateful
        single = self.compute_dtype != "float64"
        return names == ("tanh", "sigmoid") and self.use_bias and not dropped and whole and single


@tf.custom_gradient
def _block(x, weights, bias):
    """The kernel with its own gradient: TensorFlow 2.21 has registered that of the first version, which takes the gates
    in another order, so that its gradients are wrong."""
    units = bias.shape[0] // 4
    zeros, none = tf.zeros([tf.shape(x)[1], units]), tf.zeros([units])
    inputs = {
        "seq_len_max": tf.cast(tf.shape(x)[0], tf.int64),
        "x": x,
        "cs_prev": zeros,
        "h_prev": zeros,
        "w": weights,
        "wci": none,
        "wcf": none,
        "wco": none,
        "b": bias,
        "use_peephole": False,
    }
    gates = tf.raw_ops.BlockLSTMV2(cell_clip=0.0, **inputs)._asdict()  # each [time, batch, units]

    def gradient(h_grad):
        back = tf.raw_ops.BlockLSTMGradV2(cs_grad=tf.zeros_like(h_grad), h_grad=h_grad, **inputs, **gates)
        return back.x_grad, back.w_grad, back.b_grad

    return gates["h"], gradient


def on_cpu() -> bool:
    """Whether what is being traced or run will run on a CPU without XLA."""
    from tensorflow.python.ops import control_flow_util

    in_graph = not tf.executing_eagerly()
    under_xla = in_graph and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
    return not under_xla and not tf.config.list_logical_devices("GPU") and not tf.config.list_logical_devices("TPU")


def _reversed(x, lengths):
    return tf.reverse(x, [1]) if lengths is None else tf.reverse_sequence(x, lengths, seq_axis=1, batch_axis=0)
