"""Claim: SOAP and Shampoo cost at most twice AdamW's step where a batch is worth its name.

    python benchmarks/matrix_rules.py

Whole training steps (forward, backward, update) of an MLP with three hidden layers of 512 units, at batch 2048 and 128,
amortised over the default precondition_frequency: a turn is one full period. The peer is AdamW.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from timing import table, turns

import custom_optimizers as ours

UNITS, INPUTS, CLASSES, PERIOD = 512, 256, 10, 100
OPTIMIZERS = {
    "keras AdamW": lambda: keras.optimizers.AdamW(),
    "AdamW": lambda: ours.AdamW(),
    "SOAP": lambda: ours.SOAP(),
    "Shampoo": lambda: ours.Shampoo(),
    "Muon": lambda: ours.Muon(),
}


def period_of(optimizer, batch: int):
    """A call of PERIOD training steps in one tf.function."""
    hidden = [keras.layers.Dense(UNITS, activation="relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((INPUTS,)), *hidden, keras.layers.Dense(CLASSES)])
    optimizer.build(model.trainable_variables)
    x = tf.random.stateless_normal([batch, INPUTS], [0, 1])
    y = tf.random.stateless_uniform([batch], [0, 2], 0, CLASSES, tf.int32)

    @tf.function
    def steps():
        for _ in tf.range(PERIOD):
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
                loss = tf.reduce_mean(losses)
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    return steps


def main() -> None:
    for batch in (2048, 128):
        steps = {name: period_of(make(), batch) for name, make in OPTIMIZERS.items()}
        spent = turns(steps, rounds=3, seconds=0.1)
        print(f"\nMLP {INPUTS}-{UNITS}-{UNITS}-{UNITS}-{CLASSES}, batch {batch}, mean of {PERIOD} whole steps\n")
        table(
            [[name, ms / PERIOD, ms / spent["keras AdamW"]] for name, ms in spent.items()],
            ["optimizer", "ms a step", "of keras AdamW"],
        )


if __name__ == "__main__":
    main()
