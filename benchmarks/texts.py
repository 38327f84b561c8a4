"""Claim: a bidirectional LSTM trains at a multiple of Keras' pace, on the same reviews.

    python benchmarks/texts.py

Reviews a second of whole training steps: embedding 64, bidirectional LSTM 64, batch 32, reviews cut at 256 tokens.
Lengths are drawn as those of the Large Movie Reviews are: a log-normal of median 174 and mean 234. Peers: Keras' LSTM
as users run it (every batch padded to 256, fit), the same on our batches of similar length, and torch's LSTM, padded
and packed (pip install torch). Each is a process of its own.
"""

import argparse
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from timing import table, turns_apart
from untuned import arrays, untuned

import custom_optimizers
from models import sentiment
from models.analysis import TextAnalysis
from models.options import Sentiment
from pipeline.config import Config, Optimizer, Train
from pipeline.training import determinism, inputs, step
from pipeline.training.rows import Column, Rows
from pipeline.training.strategy import strategy_of

VOCABULARY, TOKENS, BATCH, UNITS, UPDATES = 20_000, 256, 32, 64, 40
OPTIONS = Sentiment(vocabulary_size=VOCABULARY - 2, max_tokens=TOKENS, embedding=UNITS, units=UNITS, dropout=0.0)


class Reviews:
    """Token ids of all reviews one after another, lengths [reviews], labels [reviews]."""

    def __init__(self, count: int = 6400):
        random = np.random.default_rng(0)
        self.lengths = np.clip(random.lognormal(np.log(174), 0.77, count), 10, TOKENS).astype(int)
        self.ids = random.integers(2, VOCABULARY, self.lengths.sum()).astype(np.int32)
        self.labels = random.integers(0, 2, count).astype(np.int32)

    @property
    def tokens(self) -> tf.RaggedTensor:  # [reviews, None]
        return tf.RaggedTensor.from_row_lengths(self.ids, self.lengths)

    def padded(self) -> np.ndarray:
        return self.tokens.to_tensor(0, shape=[None, TOKENS]).numpy()  # [reviews, tokens]


class Ours:
    """The loop's own input, model and step; a call is UPDATES updates from anywhere in an epoch."""

    def __init__(self, reviews: Reviews):
        determinism.enable()  # as the loop does
        config = Config(model=OPTIONS, optimizer=Optimizer(), train=Train(batch_size=BATCH, steps_per_call=UPDATES))
        analysis = TextAnalysis(("neg", "pos"), Path("unused"))
        self.model = sentiment.build(OPTIONS, analysis)
        optimizer = custom_optimizers.Adam(1e-3)
        optimizer.build(self.model.trainable_variables)
        tokens = Column(reviews.ids, reviews.tokens.row_splits.numpy())
        self.rows, self.config, self.spec = Rows({"tokens": tokens}, reviews.labels), config, sentiment.SPEC
        strategy = strategy_of("cpu")
        self.batches = inputs.Batches(self.rows, config, strategy)
        self.steps = step.compiled(self.model, optimizer, self.spec, config, strategy)
        self.calls = len(reviews.labels) // BATCH // UPDATES
        self.done = 0

    def __call__(self):
        epoch, place = divmod(self.done, self.calls)
        per_epoch = self.calls * UPDATES
        self.steps(self.batches.part(epoch * per_epoch + place * UPDATES, UPDATES), False).loss.numpy()
        self.done += 1


def keras_model() -> keras.Model:
    layers = keras.layers
    tokens = keras.Input([None], dtype="int32")
    x = layers.Embedding(VOCABULARY, UNITS, mask_zero=True)(tokens)
    x = layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True))(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, layers.Dense(1)(x))


class KerasFit:
    """fit on reviews padded to 256 tokens."""

    def __init__(self, reviews: Reviews):
        self.model = keras_model()
        self.model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
        self.x, self.y, self.done = reviews.padded(), reviews.labels, 0

    def __call__(self):
        first = self.done * UPDATES * BATCH % (len(self.y) - UPDATES * BATCH + 1)
        rows = slice(first, first + UPDATES * BATCH)
        self.model.fit(arrays(self.x[rows], self.y[rows], BATCH, shuffle=False), verbose=0)
        self.done += 1


class KerasBuckets:
    """fit on our batches: a data set of batches of similar length, padded to their longest review."""

    def __init__(self, reviews: Reviews):
        self.model = keras_model()
        self.model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
        order = inputs.order(0, 0, len(reviews.labels), BATCH, reviews.lengths)
        groups = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        tokens = reviews.tokens
        self.batches = [(tf.gather(tokens, g).to_tensor(0).numpy(), reviews.labels[g]) for g in groups]
        self.done = 0

    def __call__(self):
        first = self.done * UPDATES % (len(self.batches) - UPDATES + 1)
        part = self.batches[first : first + UPDATES]
        shapes = (tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32))
        data = tf.data.Dataset.from_generator(lambda: iter(part), output_signature=shapes)
        self.model.fit(untuned(data), verbose=0)
        self.done += 1


class Torch:
    """nn.LSTM on reviews padded to 256, or packed."""

    def __init__(self, reviews: Reviews, packed: bool):
        import torch

        self.torch, self.packed = torch, packed
        self.embedding = torch.nn.Embedding(VOCABULARY, UNITS, padding_idx=0)
        self.lstm = torch.nn.LSTM(UNITS, UNITS, batch_first=True, bidirectional=True)
        self.top = torch.nn.Linear(2 * UNITS, 1)
        weights = [w for module in (self.embedding, self.lstm, self.top) for w in module.parameters()]
        self.optimizer = torch.optim.Adam(weights, 1e-3)
        self.x = torch.from_numpy(reviews.padded()).long()
        self.y = torch.from_numpy(reviews.labels).float()
        self.lengths, self.done = torch.from_numpy(reviews.lengths), 0

    def __call__(self):
        torch, rnn = self.torch, self.torch.nn.utils.rnn
        first = self.done * UPDATES * BATCH % (len(self.y) - UPDATES * BATCH + 1)
        for start in range(first, first + UPDATES * BATCH, BATCH):
            rows = slice(start, start + BATCH)
            lengths = self.lengths[rows]
            x = self.embedding(self.x[rows])
            if self.packed:
                states, _ = self.lstm(rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
                states, _ = rnn.pad_packed_sequence(states, batch_first=True, total_length=TOKENS)
            else:
                states, _ = self.lstm(x)
            there = (torch.arange(TOKENS)[None] < lengths[:, None]).float()[:, :, None]
            pooled = (states * there).sum(1) / lengths[:, None]
            logits = self.top(pooled)[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, self.y[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.done += 1


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    reviews = Reviews()
    peers = {
        "ours": partial(Ours, reviews),
        "keras, padded": partial(KerasFit, reviews),
        "keras, our batches": partial(KerasBuckets, reviews),
        "torch, padded": partial(Torch, reviews, False),
        "torch, packed": partial(Torch, reviews, True),
    }
    spent = turns_apart(peers, rounds=3, seconds=1.0)
    rows = [[name, UPDATES * BATCH / ms * 1e3, ms / spent["ours"]] for name, ms in spent.items()]
    missing = [[name, "not installed", "-"] for name in peers if name not in spent]
    print(f"\nbidirectional LSTM {UNITS}, batch {BATCH}, at most {TOKENS} tokens\n")
    table(rows + missing, ["", "reviews/s", "ours is faster by"])


if __name__ == "__main__":
    main()
