"""Claim: a small CNN trains on a CPU in well under the time of Keras' and torch's best.

    python benchmarks/images.py [--quick]

Milliseconds a whole training step: images of 32x32x3, three stages of two 3x3 convolutions (32, 64, 128 filters) with
batch norm, batch 64, Adam. Ours is the loop's own input and step, augmentation included, in bfloat16 and in float32.
Peers: Keras fit with its own layers in {float32, mixed_bfloat16} x {plain, steps_per_execution=16, jit_compile}, torch
in {eager, torch.compile} x {float32, bfloat16 autocast} (pip install torch). Each is a process of its own. --quick
leaves out what compiles long.
"""

import argparse
import os
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from timing import table, turns_apart
from untuned import untuned

import custom_optimizers
from models import image
from models.analysis import ImageAnalysis
from models.options import Image
from pipeline.config import Config, Optimizer, Train
from pipeline.training import determinism, inputs, step
from pipeline.training.rows import Column, Rows
from pipeline.training.strategy import strategy_of

BATCH, UPDATES, ROWS, CLASSES = 64, 16, 2048, 10
SIDE = 2048  # of the square matrices that tell the peak
FILTERS = (32, 64, 128)
# Two floating-point operations a multiplication, forward and twice that backward.
FLOP = (
    3
    * 2
    * BATCH
    * sum(
        side * side * 9 * into * out
        for side, into, out in ((32, 3, 32), (32, 32, 32), (16, 32, 64), (16, 64, 64), (8, 64, 128), (8, 128, 128))
    )
)


class Ours:
    """The loop's own input, augmentation, model and step."""

    def __init__(self, images, labels, precision: str):
        determinism.enable()  # as the loop does
        keras.config.set_dtype_policy(precision)
        options = Image(filters=FILTERS, dropout=0.0, flip=True, crop=3)
        config = Config(
            model=options,
            optimizer=Optimizer(),
            train=Train(batch_size=BATCH, steps_per_call=UPDATES, precision=precision),
        )
        names = tuple(map(str, range(CLASSES)))
        model = image.build(options, ImageAnalysis(names, (0.5,) * 3, (0.06,) * 3))
        optimizer = custom_optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)
        self.rows, self.config, self.spec = Rows({"image": Column(images)}, labels), config, image.SPEC
        strategy = strategy_of("cpu")
        self.batches = inputs.Batches(self.rows, config, strategy)
        self.steps = step.compiled(model, optimizer, self.spec, config, strategy)
        keras.config.set_dtype_policy("float32")

    def __call__(self):
        self.steps(self.batches.part(0, UPDATES), False).loss.numpy()


class KerasFit:
    def __init__(self, images, labels, precision: str, **options):
        keras.config.set_dtype_policy(precision)
        layers = keras.layers
        stack: list = [keras.Input((32, 32, 3)), layers.Rescaling(1 / 255)]
        for depth, filters in enumerate(FILTERS):
            for _ in range(2):
                stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False), layers.BatchNormalization()]
                stack.append(layers.ReLU())
            stack.append(layers.MaxPooling2D() if depth < 2 else layers.GlobalAveragePooling2D())
        self.model = keras.Sequential([*stack, layers.Dense(CLASSES, dtype="float32")])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.Adam(1e-3), loss, **options)
        self.data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().batch(BATCH, drop_remainder=True)
        self.data = untuned(self.data.take(UPDATES).cache().prefetch(2))
        keras.config.set_dtype_policy("float32")

    def __call__(self):
        self.model.fit(self.data, verbose=0)


class Torch:
    def __init__(self, images, labels, compiled: bool, bfloat16: bool):
        import torch

        nn = torch.nn
        stack, into = [], 3
        for depth, filters in enumerate(FILTERS):
            for _ in range(2):
                stack += [nn.Conv2d(into, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
                into = filters
            stack.append(nn.MaxPool2d(2) if depth < 2 else nn.AdaptiveAvgPool2d(1))
        model = nn.Sequential(*stack, nn.Flatten(), nn.Linear(into, CLASSES)).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        self.torch, self.bfloat16 = torch, bfloat16
        self.model = torch.compile(model) if compiled else model
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        self.x, self.y = pixels.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels).long()

    def __call__(self):
        for start in range(0, UPDATES * BATCH, BATCH):
            with self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.bfloat16):
                logits = self.model(self.x[start : start + BATCH])
            loss = self.torch.nn.functional.cross_entropy(logits.float(), self.y[start : start + BATCH])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class Product:
    """UPDATES matrix products in bfloat16: what the processor can do."""

    def __init__(self):
        self.a = tf.cast(tf.random.normal([SIDE, SIDE]), tf.bfloat16)
        self.product = tf.function(lambda: tf.matmul(self.a, self.a))

    def __call__(self):
        for _ in range(UPDATES):
            self.product().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without jit_compile and torch.compile")
    quick = parser.parse_args().quick
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (ROWS, 32, 32, 3)).astype(np.uint8)
    labels = random.integers(0, CLASSES, ROWS).astype(np.int32)

    peers: dict = {f"ours, {p}": partial(Ours, images, labels, p) for p in ("mixed_bfloat16", "float32")}
    ways: dict = {"": {"jit_compile": False}, ", 16 steps a call": {"steps_per_execution": 16, "jit_compile": False}}
    if not quick:
        ways[", jit"] = {"jit_compile": True}
    for precision in ("float32", "mixed_bfloat16"):
        for name, options in ways.items():
            peers[f"keras, {precision}{name}"] = partial(KerasFit, images, labels, precision, **options)
    for compiled in (False,) if quick else (False, True):
        for bfloat16 in (False, True):
            name = f"torch, {'compile' if compiled else 'eager'}, {'bfloat16' if bfloat16 else 'float32'}"
            peers[name] = partial(Torch, images, labels, compiled, bfloat16)
    peers["bfloat16 matrix product"] = Product
    spent = {name: ms / UPDATES for name, ms in turns_apart(peers, rounds=9, seconds=0.5).items()}
    peak = 2 * SIDE**3 / (spent.pop("bfloat16 matrix product") / 1e3)
    print(f"\nCNN {FILTERS}, batch {BATCH}, {FLOP / 1e9:.1f} GFLOP a step\n")
    rows = [[name, ms, spent["ours, mixed_bfloat16"] / ms] for name, ms in spent.items()]
    missing = [[name, "not installed", "-"] for name in peers if name.startswith("torch") and name not in spent]
    table(rows + missing, ["", "ms a step", "ours in bfloat16, of this"])
    share = FLOP / (spent["ours, mixed_bfloat16"] / 1e3) / peak
    print(f"\nours in bfloat16: {share:.0%} of the {peak / 1e9:.0f} GFLOP/s of a bfloat16 matrix product in this run")


if __name__ == "__main__":
    main()
