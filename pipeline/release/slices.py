"""Parts of the test rows on which a model is measured besides the whole, as boolean masks by name.

    task            slices
    image           label=<class>
    sentiment       label=<class>; words=<range>: words of the review, split at white space
    recommendation  user=<range>: ratings that the user gave in training; user=unseen, item=unseen: none

Every slice stands in the answer, the empty ones too: a slice without rows is something to be told, not to be left out.
"""

import numpy as np

from models.analysis import Analysis, RatingsAnalysis

WORDS = (20, 50, 150, 400)
RATINGS = (0, 20, 100)


def masks(rows: dict[str, np.ndarray], task: str, analysis: Analysis) -> dict[str, np.ndarray]:
    """Slice name -> [rows] boolean, in a fixed order."""
    if isinstance(analysis, RatingsAnalysis):
        return _by_activity(rows, analysis)
    found = {f"label={name}": rows["label"] == name.encode() for name in analysis.classes}
    if task == "sentiment":
        found |= _ranges("words", np.array([len(text.split()) for text in rows["text"]], np.int64), WORDS)
    return found


def _by_activity(rows: dict[str, np.ndarray], analysis: RatingsAnalysis) -> dict[str, np.ndarray]:
    given = {user.encode(): count for user, count in zip(analysis.users, analysis.user_counts, strict=True)}
    known = {item.encode() for item in analysis.items}
    ratings = np.array([given.get(user, 0) for user in rows["user_id"]], np.int64)  # [rows]
    slices = _ranges("user", ratings, RATINGS)
    unseen = slices.pop("user=0-0")
    return {"user=unseen": unseen, **slices, "item=unseen": np.array([i not in known for i in rows["item_id"]], bool)}


def _ranges(name: str, values: np.ndarray, upper: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Masks of the whole-number ranges that end at each of `upper`, and of what lies over the last."""
    lower = (0, *(u + 1 for u in upper[:-1]))
    found = {f"{name}={low}-{high}": (low <= values) & (values <= high) for low, high in zip(lower, upper, strict=True)}
    return {**found, f"{name}=over {upper[-1]}": values > upper[-1]}
