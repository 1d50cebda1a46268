"""Reductions: sums, products and extrema (`_fold.py`), places of extrema, scans.

`dims` are sorted, non-negative and not empty.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu._fold import FACTORS, LARGEST, SMALLEST, SQUARES, VALUES, Dims, Fold, folded, reduced, run_of
from minigrad.kernels.cpu._jit import Kernel, helper, jit
from minigrad.kernels.cpu._layout import in_order
from minigrad.kernels.cpu.array import Array, cast

_PARALLEL_FROM, _ROWS_PARALLEL_FROM = 1 << 17, 1 << 15
_STRIP, _SHORT = 256, 128
_FLOATS = np.float32, np.float64  # of others NumPy finds extrema: kernels would take longer to compile than they save


def sum(x: Array, dims: Dims, keepdim: bool) -> Array:
    if x.dtype.kind != "f":
        return np.asarray(np.sum(x, axis=dims, keepdims=keepdim, dtype=np.int64))
    work = _wide(x)
    return cast(_sum(VALUES, work, dims, keepdim, work.dtype), x.dtype)


def _sum(of: Fold, x: Array, dims: Dims, keepdim: bool, dtype: Any) -> Array:
    return folded(of, x, dims, keepdim, dtype) if x.size else np.zeros(reduced(x.shape, dims, keepdim), dtype)


def prod(x: Array, dims: Dims, keepdim: bool) -> Array:
    """In float64, rounded once."""
    if x.dtype.kind != "f" or not x.size:
        dtype = x.dtype if x.dtype.kind == "f" else np.int64
        return np.asarray(np.prod(x, axis=dims, keepdims=keepdim, dtype=dtype))
    work = _wide(x)
    return cast(folded(FACTORS, work, dims, keepdim, work.dtype), x.dtype)


def amax(x: Array, dims: Dims, keepdim: bool) -> Array:
    return _extremes(LARGEST, np.max, x, dims, keepdim)


def amin(x: Array, dims: Dims, keepdim: bool) -> Array:
    return _extremes(SMALLEST, np.min, x, dims, keepdim)


def _extremes(of: Fold, of_others: Any, x: Array, dims: Dims, keepdim: bool) -> Array:
    if x.dtype not in _FLOATS or not x.size:
        return np.asarray(of_others(x, axis=dims, keepdims=keepdim))
    return folded(of, x, dims, keepdim, x.dtype)


@helper
def _above(x: Any, y: Any) -> Any:
    """Is x the larger of two? NaN is larger than any number."""
    return x > y or (x != x and y == y)


@helper
def _below(x: Any, y: Any) -> Any:
    return x < y or (x != x and y == y)


def _places_by(beats: Any) -> tuple[Kernel, Kernel]:
    """Of short rows (M, N), and of columns (L, N, M)."""

    @helper
    def places(x: Array, first: int, out: Array) -> None:
        """Of a strip of columns, from `first` on."""
        best, place = np.empty(out.size, x.dtype), np.zeros(out.size, np.int32)
        for c in range(out.size):
            best[c] = x[0, first + c]
        for j in range(1, len(x)):
            row = x[j, first : first + out.size]
            for c in range(out.size):
                found = beats(row[c], best[c])
                best[c], place[c] = row[c] if found else best[c], j if found else place[c]
        for c in range(out.size):
            out[c] = place[c]

    @jit(_ROWS_PARALLEL_FROM, formula=beats)
    def short_rows(x: Array, out: Array) -> None:
        for job in prange((len(x) + _STRIP - 1) // _STRIP):
            places(x.T, job * _STRIP, out[job * _STRIP : (job + 1) * _STRIP])

    @jit(_ROWS_PARALLEL_FROM, formula=beats)
    def columns(x: Array, out: Array) -> None:
        strips = (x.shape[2] + _STRIP - 1) // _STRIP
        for job in prange(len(x) * strips):
            i, first = job // strips, job % strips * _STRIP
            places(x[i], first, out[i, first : first + _STRIP])

    return short_rows, columns


_ARGMAX, _ARGMIN = _places_by(_above), _places_by(_below)


def argmax(x: Array, dim: int, keepdim: bool) -> Array:
    return _place(_ARGMAX, np.argmax, x, dim, keepdim)


def argmin(x: Array, dim: int, keepdim: bool) -> Array:
    return _place(_ARGMIN, np.argmin, x, dim, keepdim)


def _place(of: tuple[Kernel, Kernel], of_others: Any, x: Array, dim: int, keepdim: bool) -> Array:
    """By NumPy along what lies together, unless that is so short that it takes longer to begin than to look."""
    outer, n, inner = run_of(x.shape, (dim,)).cube
    if x.dtype not in _FLOATS or not x.size or not x.flags.c_contiguous or (inner == 1 and n >= _SHORT):
        return np.asarray(of_others(x, axis=dim, keepdims=keepdim), np.int64)
    out = np.empty(reduced(x.shape, (dim,), keepdim), np.int64)
    if inner == 1:
        of[0].only(x.reshape(outer, n), out.reshape(-1))
    else:
        of[1].only(x.reshape(outer, n, inner), out.reshape(outer, inner))
    return out


def any(x: Array, dims: Dims, keepdim: bool) -> Array:
    return np.asarray(np.any(x, axis=dims, keepdims=keepdim))


def all(x: Array, dims: Dims, keepdim: bool) -> Array:
    return np.asarray(np.all(x, axis=dims, keepdims=keepdim))


@jit(_ROWS_PARALLEL_FROM)
def _running_rows(x: Array, out: Array) -> None:
    """Along the last axis."""
    for i in prange(x.shape[0]):
        total = 0.0
        for j in range(x.shape[1]):
            total += x[i, j]
            out[i, j] = total


@jit(_PARALLEL_FROM)
def _running_columns(x: Array, out: Array) -> None:
    """Along the middle axis."""
    outer, n, inner = x.shape
    strips = (inner + _STRIP - 1) // _STRIP
    for job in prange(outer * strips):
        i, first = job // strips, job % strips * _STRIP
        total = np.zeros(min(_STRIP, inner - first))
        for j in range(n):
            row, sums = x[i, j, first : first + total.size], out[i, j, first : first + total.size]
            for c in range(total.size):
                total[c] += row[c]
                sums[c] = total[c]


def cumsum(x: Array, dim: int) -> Array:
    """Running sums, carried in float64."""
    if x.dtype.kind != "f":
        return np.cumsum(x, axis=dim, dtype=np.int64)
    work = in_order(_wide(x))
    out = np.empty(x.shape, work.dtype)
    cube = run_of(x.shape, (dim,)).cube
    if cube[2] == 1:
        _running_rows.only(work.reshape(cube[:2]), out.reshape(cube[:2]))
    else:
        _running_columns.only(work.reshape(cube), out.reshape(cube))
    return cast(out, x.dtype)


def norm(x: Array, dims: Dims, keepdim: bool) -> Array:
    """Euclidean norm. Float64 is squared over the power of two next to max|x|: no square overflows or vanishes."""
    if x.dtype != np.float64:
        return np.asarray(cast(np.sqrt(_sum(SQUARES, _wide(x), dims, keepdim, np.float64)), x.dtype))
    total = _sum(SQUARES, x, dims, keepdim, x.dtype)
    if np.all((total > 2.0**-900) & (total < math.inf)):  # beside such a total, what has vanished does not count
        return np.asarray(np.sqrt(total))
    with np.errstate(all="ignore"):
        peak = np.max(np.abs(x), axis=dims, keepdims=True, initial=0)
        scale = np.ldexp(1.0, np.where(np.isfinite(peak), np.frexp(peak)[1] - 1, 0))
        root = np.sqrt(_sum(SQUARES, x / scale, dims, True, np.float64)) * scale
        return root.reshape(reduced(x.shape, dims, keepdim))


def _wide(x: Array) -> Array:
    """Float16 as float32, to compute in."""
    return x.astype(np.float32) if x.dtype == np.float16 else x
