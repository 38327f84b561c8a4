"""Claim: matrix factorisation trains at the speed of the machine, not of the framework.

    python benchmarks/ratings.py [--folds ML_100K_DIR]

One epoch of 80,000 ratings (943 users, 1,682 items, 32 factors and biases, batch 128), input and updates, by the rule
of Surprise's SVD: SGD on (r - mean - b_u - b_i - <p_u, q_i>)^2 + l2 * (squares of the rows looked up); then the same
with Adam (LazyAdam here, Adam in Keras, SparseAdam in torch). Peers: Keras fit on arrays as its users run it, without
tf.data's autotuning (untuned.py says why), with jit_compile and steps_per_execution, and with what we tell XLA
(pipeline/training/compiler.py), too; torch; Surprise (pip install torch scikit-surprise; rows of peers that are not
installed say so). Each is a process of its own. With the folder of MovieLens 100K's folds it also fits u1..u5 and
prints RMSE and fitting time.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from timing import table, turns_apart
from untuned import arrays

import custom_optimizers
from models import recommendation
from models.analysis import RatingsAnalysis
from models.options import Recommendation
from pipeline.config import Config, Optimizer, Train
from pipeline.training import compiler, determinism, inputs, step
from pipeline.training.rows import Column, Rows
from pipeline.training.strategy import strategy_of

USERS, ITEMS, FACTORS, BATCH, L2, RATE = 943, 1682, 32, 128, 0.02, 0.005
# For u1..u5, picked by validation on a tenth of the training rows of u1, u3 and u5.
FOLD_MODEL, FOLD_RATE, FOLD_EPOCHS = Recommendation(factors=8, members=4, l2=0.04), 3.0, 12


class Ratings:
    """Ids [n] from 0, ratings [n] and their mean."""

    def __init__(self, user, item, rating):
        self.user, self.item, self.rating = user.astype(np.int32), item.astype(np.int32), rating.astype(np.float32)
        self.mean = float(self.rating.mean())

    @classmethod
    def drawn(cls, rows: int = 80_000):
        random = np.random.default_rng(0)
        return cls(random.integers(0, USERS, rows), random.integers(0, ITEMS, rows), random.integers(1, 6, rows))

    @classmethod
    def read(cls, path: Path):
        user, item, rating = np.loadtxt(path, dtype=np.int64, usecols=(0, 1, 2), unpack=True)
        return cls(user - 1, item - 1, rating)


def rows_of(data: Ratings) -> Rows:
    """As the loop prepares them; id 0 is the one for whatever training never saw."""
    return Rows({"user": Column(data.user + 1), "item": Column(data.item + 1)}, data.rating)


class Ours:
    """The loop's own input and step on the model of models/recommendation.py, compiled with XLA."""

    def __init__(self, data: Ratings, optimizer, model: Recommendation | None = None, calls: int | None = None):
        determinism.enable()  # as the loop does
        compiler.prepare()
        names = tuple(map(str, range(max(USERS, ITEMS))))
        self.analysis = RatingsAnalysis(
            users=names[:USERS],
            items=names[:ITEMS],
            user_counts=(1,) * USERS,
            seen=((),) * USERS,
            global_mean=data.mean,
            lowest=1.0,
            highest=5.0,
        )
        self.config = Config(
            model=model or Recommendation(factors=FACTORS, l2=L2),
            optimizer=Optimizer(),
            train=Train(batch_size=BATCH, jit=True, steps_per_call=calls or -(-len(data.rating) // BATCH)),
        )
        self.model = recommendation.build(self.config.model, self.analysis)
        optimizer.build(self.model.trainable_variables)
        self.rows, self.spec = rows_of(data), recommendation.SPEC
        strategy = strategy_of("cpu")
        self.batches = inputs.Batches(self.rows, self.config, strategy)
        self.steps = step.compiled(self.model, optimizer, self.spec, self.config, strategy)
        self.step = 0

    def __call__(self):
        """One epoch, in the calls of the loop: the input of the next one is made while one is computed."""
        for _ in range(2):  # all updates but the last, and the last
            (count, *_) = self.batches.counts(self.step)
            self.steps(self.batches.part(self.step, count), count == 1).loss.numpy()
            self.step += count

    def rmse(self, data: Ratings) -> float:
        ids = {"user": tf.constant(data.user + 1), "item": tf.constant(data.item + 1)}
        answers = np.clip(self.model(ids)["rating"], 1, 5)
        return float(np.sqrt(np.mean((answers - data.rating) ** 2)))


class KerasFit:
    """keras.layers.Embedding for each table, L2 of what they look up, fit."""

    def __init__(self, data: Ratings, optimizer, tuned: bool = False, told: bool = False, **compile_options):
        if told:
            compiler.prepare()
        layers = keras.layers
        user, item = keras.Input([], dtype="int32"), keras.Input([], dtype="int32")

        def rows(ids, count: int, width: int):
            return layers.Embedding(count, width, activity_regularizer=keras.regularizers.L2(L2))(ids)

        p, q = rows(user, USERS, FACTORS), rows(item, ITEMS, FACTORS)
        rating = layers.Dot(1)([p, q]) + rows(user, USERS, 1) + rows(item, ITEMS, 1) + data.mean
        self.model = keras.Model([user, item], rating)
        self.model.compile(optimizer=optimizer, loss="mse", **compile_options)
        self.arrays = {"x": [data.user, data.item], "y": data.rating, "batch_size": BATCH}
        self.data = None if tuned else arrays((data.user, data.item), data.rating, BATCH)

    def __call__(self):
        self.model.fit(self.data, verbose=0) if self.data else self.model.fit(**self.arrays, verbose=0)


class Torch:
    """nn.Embedding(sparse=True), batches by index_select from tensors, eager."""

    def __init__(self, data: Ratings, rule: str):
        import torch

        self.torch = torch
        sizes = ((USERS, FACTORS), (ITEMS, FACTORS), (USERS, 1), (ITEMS, 1))
        self.tables = [torch.nn.Embedding(*size, sparse=True) for size in sizes]
        weights = [table.weight for table in self.tables]
        rules = {"sgd": torch.optim.SGD, "adam": torch.optim.SparseAdam}
        self.optimizer = rules[rule](weights, lr=RATE)
        self.user, self.item = torch.from_numpy(data.user).long(), torch.from_numpy(data.item).long()
        self.rating, self.mean = torch.from_numpy(data.rating), data.mean

    def __call__(self):
        p_of, q_of, b_of, c_of = self.tables
        for rows in self.torch.randperm(len(self.rating)).split(BATCH):
            user, item = self.user[rows], self.item[rows]
            p, q, b, c = p_of(user), q_of(item), b_of(user)[:, 0], c_of(item)[:, 0]
            error = self.mean + b + c + (p * q).sum(1) - self.rating[rows]
            penalty = (p * p).sum(1) + (q * q).sum(1) + b * b + c * c
            loss = (error * error + L2 * penalty).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def surprise_fit(data: Ratings, epochs: int):
    """(seconds, a function of ratings to RMSE) of Surprise's SVD with its own defaults."""
    from surprise import SVD, Dataset, Reader

    columns = (data.user.tolist(), data.item.tolist(), data.rating.tolist())
    triples = [(*row, None) for row in zip(*columns, strict=True)]
    dataset = Dataset(Reader(rating_scale=(1, 5)))
    trainset = dataset.construct_trainset(triples)
    model = SVD(n_epochs=epochs, random_state=0)
    start = time.perf_counter()
    model.fit(trainset)
    seconds = time.perf_counter() - start

    def rmse(test: Ratings) -> float:
        answers = [model.predict(u, i).est for u, i in zip(test.user.tolist(), test.item.tolist(), strict=True)]
        return float(np.sqrt(np.mean((np.array(answers) - test.rating) ** 2)))

    return seconds, rmse


def ours(data: Ratings, rule: str) -> Ours:
    return Ours(data, {"sgd": custom_optimizers.SGD, "adam": custom_optimizers.LazyAdam}[rule](RATE))


def keras_fit(data: Ratings, rule: str, **options) -> KerasFit:
    return KerasFit(data, {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[rule](RATE), **options)


def compare(rule: str, data: Ratings) -> None:
    ways: dict = {
        "arrays": {"tuned": True},
        "untuned": {"jit_compile": "auto"},
        "jit": {"jit_compile": True},
        "32 steps": {"steps_per_execution": 32, "jit_compile": False},
        "32 steps, jit": {"steps_per_execution": 32, "jit_compile": True},
        "32 steps, jit, our XLA_FLAGS": {"steps_per_execution": 32, "jit_compile": True, "told": True},
    }
    peers: dict = {"ours": partial(ours, data, rule)}
    peers |= {f"keras fit, {name}": partial(keras_fit, data, rule, **chosen) for name, chosen in ways.items()}
    peers["torch"] = partial(Torch, data, rule)
    spent = turns_apart(peers, rounds=5, seconds=0.5)
    count = -(-len(data.rating) // BATCH)
    print(f"\n{rule}: one epoch of {len(data.rating):,} ratings in {count} updates\n")
    rows = [[name, ms / count, ms / spent["ours"]] for name, ms in spent.items()]
    missing = [[name, "not installed", "-"] for name in peers if name not in spent]
    table(rows + missing, ["", "ms an update", "times ours"])


def folds(folder: Path) -> None:
    """Five folds: RMSE and the seconds of fitting, compiling aside (it is done once and printed)."""
    lines = []
    start = time.perf_counter()
    Ours(Ratings.read(folder / "u1.base"), custom_optimizers.SGD(RATE), FOLD_MODEL)()
    compiling = time.perf_counter() - start
    for fold in range(1, 6):
        train, test = Ratings.read(folder / f"u{fold}.base"), Ratings.read(folder / f"u{fold}.test")
        updates = FOLD_EPOCHS * -(-len(train.rating) // BATCH)
        optimizer = custom_optimizers.SGD(custom_optimizers.LinearToZero(FOLD_RATE, updates))
        mine = Ours(train, optimizer, FOLD_MODEL)
        mine()  # compiles; the weights are drawn anew below
        mine.model.set_weights(recommendation.build(mine.config.model, mine.analysis).get_weights())
        optimizer.iterations.assign(0)
        start = time.perf_counter()
        for _ in range(FOLD_EPOCHS):
            mine()
        seconds = time.perf_counter() - start
        try:
            theirs, rmse = surprise_fit(train, 20)
            lines.append([f"u{fold}", mine.rmse(test), seconds, rmse(test), theirs])
        except ImportError:
            lines.append([f"u{fold}", mine.rmse(test), seconds, "not installed", "-"])
    numbers = [[x for x in column if isinstance(x, float)] for column in zip(*lines, strict=True)]
    lines.append(["mean", *(float(np.mean(column)) if column else "-" for column in numbers[1:])])
    print(f"\nu1..u5, {FOLD_EPOCHS} epochs of SGD here, 20 there; compiling took {compiling:.1f} s once\n")
    table(lines, ["fold", "RMSE", "fitting, s", "Surprise SVD RMSE", "fitting, s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=Path, help="folder with u1.base, u1.test, ..., u5.test")
    options = parser.parse_args()
    for rule in ("sgd", "adam"):
        compare(rule, Ratings.drawn())
    if options.folds:
        folds(options.folds)


if __name__ == "__main__":
    main()
