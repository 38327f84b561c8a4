"""Shards cover a split exactly, and a limit takes an even sample of it."""

import numpy as np
import pytest

from pipeline.sources.ranges import ranges, taken


@pytest.mark.parametrize("rows", [1, 4999, 5000, 5001, 23456])
@pytest.mark.parametrize("limit", [None, 1, 100, 10**6])
def test_ranges_cover_every_row_once_in_order(rows, limit):
    covered = [row for start, stop in ranges(rows, limit) for row in range(start, stop)]
    assert covered == list(range(rows))


def test_no_rows_are_no_ranges():
    assert ranges(0, None) == []


def test_a_limit_makes_fewer_shards_not_emptier_ones():
    assert len(ranges(1_000_000, None)) == 200
    assert len(ranges(1_000_000, 10_000)) == 2


@pytest.mark.parametrize(("rows", "limit"), [(10, 3), (5000, 500), (100_000, 99_999), (7, 7), (7, 100)])
def test_a_limit_takes_exactly_that_many_rows_or_all(rows, limit):
    assert sum(taken(row, rows, limit) for row in range(rows)) == min(limit, rows)


def test_a_limit_takes_as_many_from_each_class_of_a_sorted_file():
    rows = [row for row in range(5000) if taken(row, 5000, 500)]
    assert np.bincount([row // 500 for row in rows]).tolist() == [50] * 10


def test_an_array_of_rows_is_judged_like_each_of_them():
    rows = np.arange(1000)
    for limit in (None, 37, 5000):
        assert taken(rows, 1000, limit).tolist() == [taken(int(row), 1000, limit) for row in rows]
