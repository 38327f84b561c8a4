"""A SavedModel that takes tf.Examples: signatures to classify and to regress, and some that only look like it."""

from pathlib import Path


def save(folder: Path) -> None:
    """Each example has a float "x" and perhaps a text "s"."""
    import tensorflow as tf

    text = tf.TensorSpec([None], tf.string, "inputs")

    def x_of(inputs):
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]

    def s_of(inputs):
        return tf.io.parse_example(inputs, {"s": tf.io.FixedLenFeature([], tf.string, "none")})["s"]

    def labels(x, *names):
        return tf.repeat([names], tf.size(x), axis=0)

    outputs = {
        "serving_default": lambda x, s: {"classes": labels(x, "low", "high"), "scores": tf.stack([-x, x], axis=1)},
        "scores": lambda x, s: {"scores": tf.stack([x / 3], axis=1)},
        "labels": lambda x, s: {"classes": s[:, None]},
        "regress": lambda x, s: {"outputs": x * 2},
        "regress_column": lambda x, s: {"outputs": x[:, None] / 3},
        "flat_scores": lambda x, s: {"scores": x},
        "int_scores": lambda x, s: {"scores": tf.ones([tf.size(x), 1], tf.int32)},
        "float_labels": lambda x, s: {"classes": x[:, None], "scores": x[:, None]},
        "first_scores": lambda x, s: {"scores": x[:1, None]},
        "uneven": lambda x, s: {"classes": labels(x, "a", "b"), "scores": x[:, None]},
        "three": lambda x, s: {"classes": s[:, None], "scores": x[:, None], "more": x},
        "neither": lambda x, s: {"y": x},
        "wide": lambda x, s: {"outputs": tf.stack([x, x], axis=1)},
        "int_outputs": lambda x, s: {"outputs": tf.cast(x, tf.int64)},
        "first_output": lambda x, s: {"outputs": x[:1]},
    }
    signatures = {}
    for name, function in outputs.items():

        def signature(inputs, function=function):
            return function(x_of(inputs), s_of(inputs))

        signatures[name] = tf.function(signature, input_signature=[text])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def other_name(examples):
        return {"outputs": x_of(examples)}

    @tf.function(input_signature=[text, tf.TensorSpec([None], tf.float32, "x")])
    def two_inputs(inputs, x):
        return {"outputs": x_of(inputs) + x}

    signatures |= {"other_name": other_name, "two_inputs": two_inputs}
    tf.saved_model.save(tf.Module(), str(folder), signatures)
