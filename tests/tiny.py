"""Tiny committed records directories and configs, one a task: what training and release tests start from."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from models.options import Image, Recommendation, Sentiment
from pipeline import manifest, records
from pipeline.config import Config, Data, Optimizer, Run, Train

TASKS = ("image", "sentiment", "recommendation")
SIZES = {"train": 96, "val": 40, "test": 60}


def config(task: str, root: Path, **train) -> Config:
    """A config that trains in a second; `train` overrides fields of Train."""
    model = {
        "image": Image(height=8, width=8, channels=3, filters=(4, 8), convolutions=1, dropout=0.2, flip=True, crop=1),
        "sentiment": Sentiment(vocabulary_size=20, max_tokens=12, embedding=8, units=4, dropout=0.3),
        "recommendation": Recommendation(factors=4, l2=0.01, k=3),
    }[task]
    return Config(
        model=model,
        data=Data(source="sample", name=task),
        optimizer=Optimizer(learning_rate=0.01),
        train=Train(
            **{"batch_size": 16, "epochs": 2, "steps_per_call": 4, "tensorboard": False, "plan": "given", **train}
        ),
        run=Run(name=f"tiny-{task}", model=task, root=root),
    )


def planted(config: Config, secret: str) -> Config:
    """The config with `secret` wherever a setting may hold one; none of them is read by FnApiRunner or a source in
    memory."""
    options = (f"--password={secret}", "--token", secret, "--region=r")
    data = dataclasses.replace(config.data, path=Path(f"https://user:{secret}@host/rows"), runner_options=options)
    return dataclasses.replace(config, data=data)


def rows(task: str, split: str) -> list[dict]:
    random = np.random.default_rng([TASKS.index(task), list(SIZES).index(split)])
    return [_row(task, f"{split}-{i}", random) for i in range(SIZES[split])]


def records_dir(task: str, root: Path) -> Path:
    """Commits the three splits and their analysis under `root`; everything is the same on every call."""
    destination = Path(root) / "records" / task / "0123456789abcdef"
    splits = {split: rows(task, split) for split in SIZES}
    with manifest.committing(destination) as draft:
        for split, members in splits.items():
            name = records.shard_name(split, 0, 1)
            with tf.io.TFRecordWriter(str(draft.path / name)) as writer:
                for row in members:
                    writer.write(records.encode(row, task))
            draft.rows[name] = len(members)
        _write_analysis(draft.path, task, splits["train"])
        draft.facts["task"] = task
    return destination


def with_train(config: Config, **train) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def _row(task: str, name: str, random: np.random.Generator) -> dict:
    positive = bool(random.integers(2))
    if task == "image":
        pixels = random.integers(120, 256, (8, 8, 3)) if positive else random.integers(0, 136, (8, 8, 3))
        png = tf.io.encode_png(tf.constant(pixels, tf.uint8)).numpy()
        return {"id": name, "image_bytes": png, "label": "light" if positive else "dark"}
    if task == "sentiment":
        words = random.choice(["good", "fine", "warm"] if positive else ["bad", "dull", "cold"], random.integers(1, 9))
        return {"id": name, "text": " ".join(["film", *words]), "label": "pos" if positive else "neg"}
    user, item = int(random.integers(12)), int(random.integers(10))
    rating = float(np.clip(round(3 + 0.3 * (user % 5 - 2) + 0.5 * (item % 4 - 1.5) + random.normal(0, 0.3)), 1, 5))
    return {"id": name, "user_id": f"u{user}", "item_id": f"i{item}", "rating": rating, "timestamp": user * 100 + item}


def _write_analysis(directory: Path, task: str, train: list[dict]) -> None:
    if task == "recommendation":
        ratings = [row["rating"] for row in train]
        values = {"global_mean": float(np.mean(ratings)), "lowest": min(ratings), "highest": max(ratings)}
        for name, key in (("users.jsonl", "user_id"), ("items.jsonl", "item_id")):
            lines = []
            for value in sorted({row[key] for row in train}):
                mine = [row for row in train if row[key] == value]
                seen = {"items": sorted({row["item_id"] for row in mine})} if key == "user_id" else {}
                lines.append(json.dumps({"id": value, "count": len(mine), **seen}))
            (directory / name).write_text("\n".join(lines) + "\n")
    else:
        labels = [row["label"] for row in train]
        values = {"classes": sorted(set(labels)), "class_counts": {c: labels.count(c) for c in set(labels)}}
    if task == "image":
        values |= {"mean": [0.5, 0.5, 0.5], "variance": [0.08, 0.08, 0.08]}
    if task == "sentiment":
        words = [word for row in train for word in row["text"].split()]
        counts = sorted({word: words.count(word) for word in words}.items(), key=lambda pair: (-pair[1], pair[0]))
        (directory / "vocabulary.tsv").write_text("".join(f"{word}\t{count}\n" for word, count in counts))
    (directory / "analysis.json").write_text(json.dumps(values))
