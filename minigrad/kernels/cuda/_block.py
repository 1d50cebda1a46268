"""What the threads of a block find together: sums with their rounding errors, and norms of which nothing overflows.

A norm that is not put together yet is pairs, of a power of two and of a sum of squares measured by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import SIMULATED, cuda, ldg, steps
from minigrad.kernels.cuda.launch import BLOCK, helper
from minigrad.kernels.cuda.reduce import _power_of_two, _settled, _two_sum

WARP = 2 if SIMULATED else 32
WARPS = BLOCK // WARP  # of a block of the usual size
_POWER_OF_TWO = helper(_power_of_two)


@helper
def least_of(x: Any) -> Any:
    """The least normal number of the dtype."""
    double = type(x)(2.0**-1022)
    return double if double > type(x)(0) else type(x)(2.0**-126)


@helper
def unit_of(x: Any) -> Any:
    """The power of two to measure x by."""
    size = abs(x)
    least = least_of(x)
    if size - size != type(x)(0):
        return type(x)(1) / least  # of infinity
    return _POWER_OF_TWO(size) if size > least else least


@helper
def _join(unit: Any, square: Any, other: Any, other_square: Any) -> tuple[Any, Any]:
    """The sum of two sums of squares, each in units of its own."""
    if unit < other:
        ratio = unit / other
        return other, other_square + square * ratio * ratio
    ratio = other / unit
    return unit, square + other_square * ratio * ratio


@helper
def over_warp(x: Any) -> Any:
    """Σ over a warp, in every lane of it."""
    step = np.uint32(WARP // 2)
    while step > np.uint32(0):
        x += cuda.shfl_xor_sync(np.uint32(0xFFFFFFFF), x, step)
        step = np.uint32(step >> np.uint32(1))
    return x


def _pairs_over_warp(merge: Any) -> Any:
    """What makes one pair of numbers of those of a warp, in every lane of it, as `merge` makes one of two."""

    @helper
    def merged(a: Any, b: Any) -> tuple[Any, Any]:
        step = np.uint32(WARP // 2)
        while step > np.uint32(0):
            other_a = cuda.shfl_xor_sync(np.uint32(0xFFFFFFFF), a, step)
            other_b = cuda.shfl_xor_sync(np.uint32(0xFFFFFFFF), b, step)
            a, b = merge(a, b, other_a, other_b)
            step = np.uint32(step >> np.uint32(1))
        return a, b

    return merged


joined_over_warp, _summed_over_warp = _pairs_over_warp(_join), _pairs_over_warp(_two_sum)


@helper
def norm_of(units: Any, squares: Any, count: Any) -> tuple[Any, Any]:
    """The parts of a norm put together: (unit, square) for all threads of a block of the usual size."""
    shared_units = cuda.shared.array(WARPS, units.dtype)
    shared_squares = cuda.shared.array(WARPS, units.dtype)
    thread = np.uint32(cuda.threadIdx.x)
    unit, square = least_of(units[np.uint32(0)]), units.dtype.type(0)
    for part in steps(thread, count, np.uint32(BLOCK)):
        unit, square = _join(unit, square, ldg(units, part), ldg(squares, part))
    unit, square = joined_over_warp(unit, square)
    cuda.syncthreads()  # until all have read what an earlier call left
    if thread % np.uint32(WARP) == np.uint32(0):
        shared_units[np.uint32(thread // np.uint32(WARP))] = unit
        shared_squares[np.uint32(thread // np.uint32(WARP))] = square
    cuda.syncthreads()
    unit, square = shared_units[np.uint32(0)], shared_squares[np.uint32(0)]
    for warp in range(1, WARPS):
        unit, square = _join(unit, square, shared_units[warp], shared_squares[warp])
    return unit, square


@helper
def sum_of(like: Any, total: Any, rest: Any) -> Any:
    """Σ of pairs (a sum, its rounding errors) for all threads of a block of the usual size; once in a kernel."""
    totals = cuda.shared.array(WARPS, like.dtype)
    rests = cuda.shared.array(WARPS, like.dtype)
    thread = np.uint32(cuda.threadIdx.x)
    total, rest = _summed_over_warp(total, rest)
    if thread % np.uint32(WARP) == np.uint32(0):
        totals[np.uint32(thread // np.uint32(WARP))] = total
        rests[np.uint32(thread // np.uint32(WARP))] = rest
    cuda.syncthreads()
    total, rest = totals[0], rests[0]
    for warp in range(1, WARPS):
        total, rest = _two_sum(total, rest, totals[warp], rests[warp])
    return _settled(total, rest)
