"""What plain methods reach on the same rows: what each sample preset is held against.

    python benchmarks/baselines.py [RECORDS_DIR ...]

Trains on the train split of a committed records directory only, with settings fixed beforehand, and prints the accuracy
or RMSE on its test split. RECORDS_DIR is what `minibatch preprocess PRESET` prints; by default all under records/.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from pipeline import manifest, records

Rows = dict[str, np.ndarray]
SVC_ROWS = 10_000  # the time of an SVC is quadratic in them


def images(train: Rows, test: Rows) -> dict[str, Callable[[], float]]:
    def pixels(rows: Rows) -> np.ndarray:
        """[rows, height * width * channels] in [0, 1]."""
        return np.stack([np.asarray(Image.open(io.BytesIO(b)), np.float32).ravel() for b in rows["image_bytes"]]) / 255

    inputs, asked = pixels(train), pixels(test)
    few = np.random.default_rng(0).permutation(len(inputs))[:SVC_ROWS]
    return {
        "logistic regression on pixels": _accuracy(LogisticRegression(max_iter=300), inputs, train, asked, test),
        f"RBF SVC on pixels, {len(few):,} rows": _accuracy(SVC(C=10), inputs[few], _part(train, few), asked, test),
    }


def texts(train: Rows, test: Rows) -> dict[str, Callable[[], float]]:
    decode = FunctionTransformer(lambda texts: [text.decode() for text in texts])
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = make_pipeline(decode, words, LogisticRegression(C=10, max_iter=300))
    name = "TF-IDF of words and pairs, logistic regression"
    return {name: _accuracy(model, train["text"], train, test["text"], test)}


def ratings(train: Rows, test: Rows) -> dict[str, Callable[[], float]]:
    mean = train["rating"].astype(np.float64).mean()

    def error(answers: np.ndarray) -> float:
        answers = np.clip(answers, train["rating"].min(), train["rating"].max())
        return float(np.sqrt(np.mean((test["rating"] - answers) ** 2)))

    return {
        "global mean": lambda: error(np.full(len(test["rating"]), mean)),
        "mean, user and item biases": lambda: error(_biases(train, test, mean)),
    }


def _biases(train: Rows, test: Rows, mean: float, weight: float = 5.0, sweeps: int = 20) -> np.ndarray:
    """mean + user bias + item bias of the test rows, [rows]; the bias of who or what training never saw is 0.

    Minimises the squared error plus weight * bias^2 by turns: given the items' biases, the best bias of a user is the
    sum of the residuals over (their number + weight), and the other way round.
    """
    users, user = np.unique(train["user_id"], return_inverse=True)  # user: [rows]
    items, item = np.unique(train["item_id"], return_inverse=True)
    of_user, of_item = np.zeros(len(users)), np.zeros(len(items))
    for _ in range(sweeps):
        of_user = np.bincount(user, train["rating"] - mean - of_item[item]) / (np.bincount(user) + weight)
        of_item = np.bincount(item, train["rating"] - mean - of_user[user]) / (np.bincount(item) + weight)
    user_bias, item_bias = dict(zip(users, of_user, strict=True)), dict(zip(items, of_item, strict=True))
    return np.array([mean + user_bias.get(u, 0.0) + item_bias.get(i, 0.0)
                     for u, i in zip(test["user_id"], test["item_id"], strict=True)])  # fmt: skip


def _accuracy(model, inputs, train: Rows, asked, test: Rows) -> Callable[[], float]:
    def labels(rows: Rows) -> list[str]:
        return [label.decode() for label in rows["label"]]

    return lambda: float(np.mean(model.fit(inputs, labels(train)).predict(asked) == np.array(labels(test))))


def _part(rows: Rows, chosen: np.ndarray) -> Rows:
    return {name: values[chosen] for name, values in rows.items()}


BASELINES = {"image": images, "sentiment": texts, "recommendation": ratings}


def table(directory: Path) -> None:
    task = manifest.verify(directory)["task"]
    train, test = (records.load(directory, split, task) for split in ("train", "test"))
    print(f"\n{directory}: {len(train['id']):,} train rows, {len(test['id']):,} test rows")
    print(f"{'baseline':<50}{'test RMSE' if task == 'recommendation' else 'test accuracy':>14}{'seconds':>10}")
    for name, run in BASELINES[task](train, test).items():
        start = time.perf_counter()
        print(f"{name:<50}{run():>14.4f}{time.perf_counter() - start:>10.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="*", metavar="RECORDS_DIR")
    committed = sorted(path.parent for path in Path("records").glob(f"*/*/{manifest.NAME}"))
    directories = parser.parse_args().records or committed
    if not directories:
        print("There are no records yet: run `minibatch preprocess digits-sample` first.")
    for directory in directories:
        table(directory)


if __name__ == "__main__":
    main()
