"""Copies in which elements lie in order, of arrays whose neighbours lie apart: transposed ones, in squares.

NumPy goes along the lines of what it writes, and reads from as many lines at once as there are columns, on one core. A
square of as many lines as a vector has lanes is turned in registers instead (`_tile`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _tile
from minigrad.kernels.cpu._jit import jit

Array = np.ndarray[Any, Any]
_PARALLEL_FROM = 1 << 15
_LARGE = 1 << 16  # elements, from which that is worth the questions below
_STRIP = 64  # lines of the copy that one thread makes
_MOVED_AS = {4: np.float32, 8: np.float64}


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _turn(x: Array, out: Array, step: int, places: Array, rows: Array) -> None:
    """out[b · step + places[s] + c] = x[b, c, s]."""
    strips = (x.shape[2] + _STRIP - 1) // _STRIP
    for job in prange(len(x) * strips):
        b, first = np.int64(job) // strips, np.int64(job) % strips * _STRIP
        last = min(first + _STRIP, x.shape[2])
        _tile.transpose(out[b * step :], places[first:last], x[b, :, first:last], rows)


def in_order(x: Array) -> Array:
    """x if its elements lie in order, else a copy in which they do."""
    made = None if x.flags.c_contiguous else _turned(x)
    return np.asarray(x, order="C") if made is None else made


def _turned(x: Array) -> Array | None:
    """A copy, if it is not the last dimension that lies together in memory, and at most one more is in the way."""
    if x.size < _LARGE or x.itemsize not in _MOVED_AS or not x.flags.aligned:
        return None
    runs = _runs(x)
    together = [run for run in runs[:-1] if run.stride == x.itemsize]
    if not together or len(runs) > 3:
        return None
    first, last = together[0], runs[-1]
    others = [run for run in runs[:-1] if run is not first] or [_Run(1, 0, 0)]
    order = others[0], last, first
    dtype, side = _MOVED_AS[x.itemsize], _tile.shape(8 * x.itemsize)[1] // 2
    given = np.lib.stride_tricks.as_strided(x, [run.extent for run in order], [run.stride for run in order])
    out = np.empty(x.shape, x.dtype)
    rows, places = np.arange(side) * (last.stride // x.itemsize), np.arange(first.extent) * first.step
    _turn(given.view(dtype), out.view(dtype).reshape(-1), others[0].step, places, rows)
    return out


class _Run(NamedTuple):
    """A dimension: its stride in memory, in bytes, and its step in a copy in order, in elements."""

    extent: int
    stride: int
    step: int


def _runs(x: Array) -> list[_Run]:
    """As few dimensions as describe the same walk, outermost first; none of extent 1."""
    runs: list[_Run] = []
    step = 1
    for n, stride in zip(reversed(x.shape), reversed(x.strides), strict=True):
        if runs and stride == runs[-1].extent * runs[-1].stride:
            runs[-1] = runs[-1]._replace(extent=runs[-1].extent * n)
        elif n > 1:
            runs.append(_Run(n, stride, step))
        step *= n
    return runs[::-1]
