"""Claims about plain SGD on tables: slices of a row are added one by one, which is what their sum would do."""

import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers
from custom_optimizers import sparse

VALUES, ROWS = [[1.0, -2.0], [0.5, 4.0], [3.0, 1.0]], [2, 0, 2]
SLICES = tf.IndexedSlices(tf.constant(VALUES), tf.constant(ROWS), tf.constant([4, 2]))


def updated(jit: bool = False, **options) -> np.ndarray:
    table, optimizer = tf.Variable(tf.ones([4, 2])), custom_optimizers.SGD(0.1, **options)
    optimizer.build([table])
    tf.function(lambda: optimizer.apply([SLICES], [table]), jit_compile=jit)()
    return table.numpy()


@pytest.mark.parametrize("jit", [False, True])
def test_rows_that_come_twice_move_by_the_sum_of_their_slices(jit, monkeypatch):
    monkeypatch.setattr(sparse, "summed", lambda *_: pytest.fail("summed first"))
    np.testing.assert_allclose(updated(jit), [[0.95, 0.6], [1, 1], [0.6, 1.1], [1, 1]], rtol=1e-6)


@pytest.mark.parametrize("options", [{"clipnorm": 1e9}, {"clipvalue": 1e9}, {"global_clipnorm": 1e9}])
def test_what_needs_the_sum_gets_it_and_comes_to_the_same(options):
    np.testing.assert_allclose(updated(**options), updated(), rtol=1e-6)


def test_clipping_and_decay_see_the_sum_and_each_row_once():
    np.testing.assert_allclose(updated(clipvalue=3.5), [[0.95, 0.65], [1, 1], [0.65, 1.1], [1, 1]], rtol=1e-6)
    np.testing.assert_allclose(updated(weight_decay=0.5), [[0.9, 0.55], [1, 1], [0.55, 1.05], [1, 1]], rtol=1e-6)
