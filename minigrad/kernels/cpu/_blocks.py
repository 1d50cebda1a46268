"""Pooling by windows of two by two pixels, side by side: no table to look into, and the loops become vector code.

The tables of `pool.py` give the same numbers, two to four times slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _tile
from minigrad.kernels.cpu._jit import helper, jit
from minigrad.kernels.windows import Extents, are_blocks

_PARALLEL_FROM = 2**16  # numbers


def cover(space: Extents, kernel: Extents, stride: Extents, padding: Extents) -> bool:
    """Are the kernels of this file for these windows?"""
    return are_blocks(space, kernel, stride, padding) and not _tile.PLAIN


@helper
def _sum_line(out: Any, upper: Any, lower: Any, divisor: float) -> None:
    for j in range(out.size):
        out[j] = (np.float64(upper[2 * j]) + upper[2 * j + 1] + lower[2 * j] + lower[2 * j + 1]) / divisor


@helper
def _deal_line(upper: Any, lower: Any, g: Any, divisor: float) -> None:
    for j in range(g.size):
        share = g[j] / divisor
        upper[2 * j] = upper[2 * j + 1] = lower[2 * j] = lower[2 * j + 1] = share


@helper
def _max_line(values: Any, indices: Any, upper: Any, lower: Any, start: int, width: int) -> None:
    """All four are compared before anything is stored: a branch would be guessed wrong as often as not."""
    for j in range(values.size):
        a, b, c, d = upper[2 * j], upper[2 * j + 1], lower[2 * j], lower[2 * j + 1]
        above, below = (b > a) | (b != b), (d > c) | (d != d)
        high, low = b if above else a, d if below else c
        down = (low > high) | (low != low)
        values[j] = low if down else high
        indices[j] = start + 2 * j + (width + below if down else above)


@jit(_PARALLEL_FROM)
def sum_blocks(x: Any, out: Any, divisor: float) -> None:
    """out[p] = Σ of block p / divisor, summed in float64; for planes (P, H, W) and (P, H/2, W/2)."""
    for i in prange(len(x)):
        for r in range(out.shape[1]):
            _sum_line(out[i, r], x[i, 2 * r], x[i, 2 * r + 1], divisor)


@jit(_PARALLEL_FROM)
def deal_blocks(x: Any, g: Any, divisor: float) -> None:
    """The adjoint of `sum_blocks`, into x."""
    for i in prange(len(x)):
        for r in range(g.shape[1]):
            _deal_line(x[i, 2 * r], x[i, 2 * r + 1], g[i, r], divisor)


@jit(_PARALLEL_FROM)
def max_blocks(x: Any, values: Any, indices: Any) -> None:
    """The largest value of each block and its place in the plane: the first of equals, a NaN before any number."""
    for i in prange(len(x)):
        for r in range(values.shape[1]):
            start = 2 * r * x.shape[2]
            _max_line(values[i, r], indices[i, r], x[i, 2 * r], x[i, 2 * r + 1], start, x.shape[2])
