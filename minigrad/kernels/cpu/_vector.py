"""Products of a matrix with a vector, and of two vectors: one pass over the matrix, whose numbers are used once each.

BLAS would take threads of its own for large ones, and a tile of the micro-kernel would be mostly empty. Sums run in
float64, a number of `out` in blocks whose borders depend on shapes alone.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _math
from minigrad.kernels.cpu._jit import helper, jit

Array = Any
_PARALLEL_FROM = 1 << 16  # elements of the matrix
_ROWS, _COLUMNS = 64, 1024  # of a block, whose sums of columns stay in the first cache; rows a multiple of four


@helper
def _at(bias: Array, i: int) -> float:
    """bias_i, or the one bias, or 0 if there is none."""
    return np.float64(bias[np.int64(i) if bias.size > 1 else 0]) if bias.size else 0.0


@jit(_PARALLEL_FROM)
def _dots(x: Array, y: Array, bias: Array, out: Array) -> None:
    """out_i = ⟨x_i, y⟩ + bias_i, or the one bias."""
    for i in prange(len(x)):
        out[i] = _math.dot(x[i], y) + _at(bias, i)


@functools.partial(helper, reassociate=True)
def _add_line(total: Array, x: Array, factor: float) -> None:
    for j in range(total.size):
        total[j] += factor * x[j]


@functools.partial(helper, reassociate=True)
def _add_four(total: Array, x0: Array, x1: Array, x2: Array, x3: Array, y: Array) -> None:
    """total += Σ y_i x_i: the totals are read and written once for four lines."""
    y0, y1, y2, y3 = np.float64(y[0]), np.float64(y[1]), np.float64(y[2]), np.float64(y[3])
    for j in range(total.size):
        total[j] += (y0 * x0[j] + y1 * x1[j]) + (y2 * x2[j] + y3 * x3[j])


@jit(_PARALLEL_FROM)
def _combined(x: Array, y: Array, bias: Array, out: Array) -> None:
    """out = Σ_k y_k x_k + bias."""
    depth, n = x.shape
    blocks, strips = (depth + _ROWS - 1) // _ROWS, (n + _COLUMNS - 1) // _COLUMNS
    totals = np.zeros((blocks, n))
    for job in prange(blocks * strips):
        block, left = job // strips, job % strips * _COLUMNS
        total = totals[block, left : left + _COLUMNS]
        right, end = left + total.size, min(depth, (block + 1) * _ROWS)
        for k in range(block * _ROWS, end - 3, 4):
            _add_four(
                total, x[k, left:right], x[k + 1, left:right], x[k + 2, left:right], x[k + 3, left:right], y[k:]
            )  # fmt: skip
        for k in range(end - end % 4, end):
            _add_line(total, x[k, left:right], np.float64(y[k]))
    for strip in prange(strips):
        for j in range(strip * _COLUMNS, min(n, (strip + 1) * _COLUMNS)):
            number = 0.0
            for block in range(blocks):
                number += totals[block, j]
            out[j] = number + _at(bias, j)


@jit(_PARALLEL_FROM)
def _outer(out: Array, x: Array, y: Array) -> None:
    """out_ij = x_i y_j."""
    for i in prange(x.size):
        for j in range(y.size):
            out[i, j] = x[i] * y[j]


def outer(x: Array, y: Array) -> Array:
    """x y for a column and a row."""
    out = np.empty((x.size, y.size), x.dtype)
    _outer.only(out, _line(x), _line(y))
    return out


def multiply(matrix: Array, turned: bool, vector: Array, bias: Array) -> Array:
    """matrix · vector + bias, or matrixᵀ · vector + bias if `turned`, in one dimension; no bias, one, or all."""
    out = np.empty(matrix.shape[1] if turned else len(matrix), matrix.dtype)
    (_combined if turned else _dots).only(matrix, _line(vector), bias, out)
    return out


def _line(x: Array) -> Array:
    """In one dimension, and writable: for memory that is read-only, Numba would compile anew."""
    return x.reshape(-1) if x.flags.writeable else x.flatten()
