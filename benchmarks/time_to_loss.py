"""Which optimizer reaches a fixed loss in fewer updates, and in less time, when each is tuned equally hard?

    python benchmarks/time_to_loss.py [--steps 1500] [--seeds 3]

The problem: a deep autoencoder (64-256-128-16-128-256-64, tanh) of the 1,797 images of scikit-learn's handwritten
digits, batch 256, squared error; badly conditioned, as this family of methods likes it. Every optimizer gets the same
number of learning rates, a warm-up of 50 updates and no decay; the target is the loss that AdamW's best rate has at the
end (its worst seed). Losses are taken over all images, at the evaluation weights. Peer: AdamW of Keras, and ours.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from timing import table

import custom_optimizers as ours

BATCH, EVERY = 256, 25
RATES = (0.1, 0.3, 1.0, 3.0, 10.0)  # times the rate in the table
OPTIMIZERS = {
    "keras AdamW": (1e-3, lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.0)),
    "AdamW": (1e-3, lambda rate: ours.AdamW(rate, weight_decay=0.0)),
    "SOAP": (1e-3, lambda rate: ours.SOAP(rate)),
    "Shampoo": (1e-3, lambda rate: ours.Shampoo(rate)),
    "Muon": (1e-2, lambda rate: ours.Muon(rate)),
    "ScheduleFreeAdamW": (2.5e-3, lambda rate: ours.ScheduleFreeAdamW(rate)),
    "Prodigy": (1.0, lambda rate: ours.Prodigy(rate)),
}


def autoencoder() -> keras.Model:
    wide = [keras.layers.Dense(units, activation="tanh") for units in (256, 128)]
    back = [keras.layers.Dense(units, activation="tanh") for units in (128, 256)]
    return keras.Sequential([keras.Input((64,)), *wide, keras.layers.Dense(16), *back, keras.layers.Dense(64)])


def run(make, rate: float, images: tf.Tensor, steps: int, seed: int) -> tuple[list[float], float]:
    """(loss every EVERY updates, seconds an update); the time of tracing and of evaluation is left out."""
    keras.utils.set_random_seed(seed)
    model = autoencoder()
    optimizer = make(ours.WarmUp(rate, 50))
    optimizer.build(model.trainable_variables)

    @tf.function
    def train(first):
        for i in tf.range(EVERY):
            rows = tf.random.stateless_uniform([BATCH], [seed, first + i], 0, len(images), tf.int32)
            batch = tf.gather(images, rows)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(batch, training=True) - batch))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    @tf.function
    def loss():
        return tf.reduce_mean(tf.square(model(images) - images))

    losses, spent = [], []
    for first in range(0, steps, EVERY):
        start = time.perf_counter()
        train(tf.constant(first))
        spent.append((time.perf_counter() - start) / EVERY)
        with ours.evaluating(optimizer, model):
            losses.append(float(loss()))
        if not np.isfinite(losses[-1]):
            break
    return losses, statistics.median(spent[1:] or spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    images = tf.constant(load_digits().data / 16.0, tf.float32)

    best = {}
    for name, (around, make) in OPTIMIZERS.items():
        runs = {}
        for factor in RATES:
            runs[around * factor] = [run(make, around * factor, images, options.steps, s) for s in range(options.seeds)]
        ends = {rate: np.mean([losses[-1] for losses, _ in each]) for rate, each in runs.items()}
        rate = min((end, rate) for rate, end in ends.items() if np.isfinite(end))[1]
        best[name] = rate, runs[rate], ends[rate]
        print(f"# {name}: rate {rate:g}, loss at the end {ends[rate]:.5f}", flush=True)

    target = max(losses[-1] for losses, _ in best["keras AdamW"][1])
    rows = []
    for name, (rate, runs, end) in best.items():
        reached = [next((i + 1 for i, x in enumerate(losses) if x <= target), None) for losses, _ in runs]
        pace = statistics.median(seconds for _, seconds in runs)
        steps = statistics.median(EVERY * count for count in reached) if all(reached) else None
        rows.append([name, rate, float(end), steps or "not reached", pace * 1e3, steps * pace if steps else "-"])
    print(f"\nTo a loss of {target:.5f}; {options.seeds} seeds, {len(RATES)} rates each, medians\n")
    table(rows, ["optimizer", "best rate", f"loss after {options.steps}", "updates", "ms an update", "seconds"])


if __name__ == "__main__":
    main()
