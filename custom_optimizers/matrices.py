"""Variables as matrices: how a kernel becomes one, how it is cut, and the bases and roots of its statistics.

A matrix has two sides, "left" (rows: the inputs of a Keras kernel) and "right" (columns: its outputs). Rules that
precondition keep one symmetric statistic a side, G G' on the left and G' G on the right, and turn matrices by one
factor a side; a side without a factor is left alone.
"""

import itertools
import math

import keras
import numpy as np
from keras import ops


def folded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[inputs, outputs] of a kernel of three or more axes; vectors, scalars and matrices keep their shape.

    Convolutions keep outputs last, so [height, width, in, out] becomes [height * width * in, out]. Three axes may also
    be the [in, heads, size] of an attention layer, whose inputs are the first axis: the more square matrix is taken.
    """
    shape = tuple(shape)
    if len(shape) < 3:
        return shape
    first, last = (shape[0], math.prod(shape[1:])), (math.prod(shape[:-1]), shape[-1])
    return min(last, first, key=_stretch) if len(shape) == 3 else last


def _stretch(shape: tuple[int, ...]) -> float:
    return max(shape) / min(shape) if min(shape) else 0.0


def sides(shape: tuple[int, ...], largest: int) -> list[str]:
    """The sides of a variable that are worth a factor: those of a matrix, of 2 to `largest` rows or columns."""
    shape = folded(shape)
    if len(shape) < 2 or 0 in shape:
        return []
    return [side for side, size in zip(("left", "right"), shape, strict=True) if 1 < size <= largest]


def side_size(shape: tuple[int, ...], side: str) -> int:
    return shape[0] if side == "left" else shape[1]


def gram(g, side: str):
    """G G' or G' G, [size, size] of that side."""
    return g @ ops.transpose(g) if side == "left" else ops.transpose(g) @ g


def turned(x, factors: dict):
    """left' x right: into the bases that are the columns of the factors. [rows, columns], as x."""
    x = ops.transpose(factors["left"]) @ x if "left" in factors else x
    return x @ factors["right"] if "right" in factors else x


def turned_back(x, factors: dict):
    """left x right': the inverse of `turned` for orthogonal factors. [rows, columns], as x."""
    x = factors["left"] @ x if "left" in factors else x
    return x @ ops.transpose(factors["right"]) if "right" in factors else x


def eigenbasis(statistic):
    """The eigenvectors of symmetric matrices as columns, [..., size, size], largest eigenvalue first."""
    return ops.flip(ops.eigh(statistic)[1], axis=-1)


def inverse_root(statistic, order: int, epsilon: float):
    """(A + epsilon |A| I)^(-1 / order) of a symmetric A >= 0, |A| its Frobenius norm; the identity for A = 0.

    The share epsilon is relative, because the eigenvalues of float32 statistics are known only to about 1e-7 of the
    largest: a small fixed number would let that noise, to a negative power, rule the step.

    By the coupled Newton iteration (Iannazzo 2006; Anil et al., 2002.09018, appendix): X -> A^(-1/order), M -> I. It is
    made of products alone; XLA compiles an eigendecomposition on the CPU, but runs it eighty times slower than those.
    """
    size, kind = statistic.shape[0], statistic.dtype
    norm, identity = _norm(statistic), ops.eye(size, dtype=kind)
    statistic = statistic + ops.where(norm > 1e-30, epsilon * norm, 1.0) * identity
    scale = (order + 1) / (2 * _norm(statistic))
    tolerance = 1e-14 if keras.backend.standardize_dtype(kind) == "float64" else 1e-6

    def goes_on(x, m, error, before):
        return ops.logical_and(error > tolerance, ops.logical_or(error < before, error > 0.5))  # then rounding rules

    def iterate(x, m, error, before):
        factor = (1 + 1 / order) * identity - m / order
        m = _power(factor, order) @ m
        return x @ factor, m, ops.max(ops.abs(m - identity)), error

    m = scale * statistic
    start = (scale ** (1 / order) * identity, m, ops.max(ops.abs(m - identity)), ops.full((), np.inf, dtype=kind))
    return ops.while_loop(goes_on, iterate, start, maximum_iterations=100)[0]


def _norm(x):
    return ops.sqrt(ops.sum(ops.square(x)))


def _power(x, exponent: int):
    return x if exponent == 1 else _power(x @ x, exponent // 2)  # exponents are powers of 2


def batched(function, *lists: list) -> list:
    """[function(a, b, ...) for each a, b, ... of the lists], matrices of one size in one call: [..., size, size].

    The function returns a tuple. XLA takes seconds to compile one QR or eigendecomposition; so all layers of one width
    cost that once, and share the cores.
    """
    groups: dict[tuple, list[int]] = {}
    for place, matrix in enumerate(lists[0]):
        groups.setdefault((matrix.shape, str(matrix.dtype)), []).append(place)
    results: list = [None] * len(lists[0])
    for places in groups.values():
        stacks = function(*(ops.stack([each[place] for place in places]) for each in lists))
        for number, place in enumerate(places):
            results[place] = tuple(stack[number] for stack in stacks)
    return results


def cuts(size: int, largest: int) -> list[tuple[int, int]]:
    """(from, to) of the fewest parts of at most `largest` that make up size, as even as can be."""
    parts = max(1, -(-size // largest))
    edges = [size * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(edges))


def joined(blocks: list[list]):
    """The matrix that a grid of blocks, row by row, was cut from."""
    rows = [ops.concatenate(row, axis=1) if len(row) > 1 else row[0] for row in blocks]
    return ops.concatenate(rows, axis=0) if len(rows) > 1 else rows[0]
