"""Which rows fall where: known values, stability under other rows, and the split by time."""

import pytest

from pipeline.preprocess.splits import Row, Shares, assign, bucket, shuffled, stable_hash


def content(features):
    return features["text"].encode()


def texts(*values, given=None):
    return [Row({"id": f"{n}", "text": text}, "s", n, given) for n, text in enumerate(values)]


def ratings(user, *times, given=None):
    return [Row({"id": f"{user}{n}", "user_id": user, "timestamp": t}, "s", n, given) for n, t in enumerate(times)]


def ids(splits):
    return {name: [row.id for row in rows] for name, rows in splits.items()}


def test_the_hash_is_the_same_for_ever():
    assert stable_hash(b"split", b"a text") == 1981324254872130018
    assert [bucket(name, 4) for name in "abcdefgh"] == [3, 1, 1, 1, 2, 0, 3, 1]


def test_a_rows_split_does_not_depend_on_the_other_rows():
    shares = Shares("hash", 0.2, 0.2)
    rows = texts(*(f"text {n}" for n in range(500)))
    whole, part = ids(assign(rows, shares, content)), ids(assign(rows[100:200], shares, content))
    assert all(set(part[name]) <= set(whole[name]) for name in whole)


def test_the_shares_are_about_as_asked_for():
    splits = assign(texts(*(f"text {n}" for n in range(5000))), Shares("hash", 0.1, 0.2), content)
    assert {name: len(rows) / 5000 for name, rows in splits.items()} == pytest.approx(
        {"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.02
    )


def test_equal_contents_never_straddle_two_splits():
    splits = assign(texts(*(f"text {n % 10}" for n in range(1000))), Shares("hash", 0.3, 0.3), content)
    found = [{row.features["text"] for row in rows} for rows in splits.values()]
    assert sum(map(len, found)) == len(set.union(*found)) == 10


def test_a_larger_validation_share_only_adds_rows_to_it():
    rows = texts(*(f"text {n}" for n in range(300)))
    small, large = (ids(assign(rows, Shares("hash", share, 0.1), content)) for share in (0.1, 0.3))
    assert small["test"] == large["test"]
    assert set(small["val"]) < set(large["val"])


@pytest.mark.parametrize("by", ["hash", "time"])
def test_the_sources_own_test_rows_stay_test_and_no_others_join_them(by):
    own = ratings("a", *range(50), given="test")
    rest = ratings("b", *range(50), given="train")
    splits = assign([*own, *rest], Shares(by, 0.2, 0.0), lambda features: features["id"].encode())
    assert splits["test"] == own
    assert splits["train"]
    assert splits["val"]


def test_by_time_each_users_latest_ratings_are_test_and_those_before_validation():
    rows = [*ratings("a", 50, 10, 30, 20, 40), *ratings("b", 5, 6, 7, 8, 9)]
    splits = ids(assign(rows, Shares("time", 0.4, 0.2), content))
    assert splits == {"train": ["a1", "a3", "b0", "b1"], "val": ["a2", "a4", "b2", "b3"], "test": ["a0", "b4"]}


def test_by_time_ties_go_by_id():
    rows = list(reversed(ratings("a", 1, 1, 1, 1)))
    splits = ids(assign(rows, Shares("time", 0.25, 0.25), content))
    assert splits == {"train": ["a0", "a1"], "val": ["a2"], "test": ["a3"]}


def test_by_time_shares_are_rounded_to_whole_ratings_and_never_overlap():
    assert ids(assign(ratings("a", 1), Shares("time", 0.1, 0.1), content))["train"] == ["a0"]
    splits = ids(assign(ratings("a", 1, 2, 3, 4, 5), Shares("time", 0.6, 0.6), content))
    assert splits == {"train": [], "val": ["a0", "a1"], "test": ["a2", "a3", "a4"]}
    assert ids(assign(ratings("a", 1), Shares("time", 0.9, 0.9), content)) == {"train": [], "val": [], "test": ["a0"]}


def test_the_order_of_the_rows_does_not_show_in_a_file():
    rows = texts(*(f"text {n}" for n in range(50)))
    order = [row.id for row in shuffled(rows)]
    assert order == [row.id for row in shuffled(reversed(rows))]
    assert sorted(order) == sorted(row.id for row in rows)
    assert order != [row.id for row in rows]
