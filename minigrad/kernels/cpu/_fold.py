"""Folds: sums, products and extrema over any dimensions, one kernel for rows and one for columns.

Float32 sums run in blocks of 16: inside a block in float32, at most 15 roundings of 2⁻²⁴; over the blocks in float64.
That keeps the error below 1e-6 of Σ|x| at any size. The order is written out and nothing may change it (no fast math),
so that the serial and the parallel variant give the same bits: where a fold is cut into pieces, shapes alone say.

`dims` are sorted, non-negative and not empty.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import Kernel, helper, jit
from minigrad.kernels.cpu._layout import in_order

Array = np.ndarray[Any, Any]
Dims = tuple[int, ...]
_PARALLEL_FROM, _ROWS_PARALLEL_FROM = 1 << 17, 1 << 15
_BLOCK, _LANES, _STRIP, _JOB, _SHORT, _FEW = 16, 16, 256, 1 << 14, 128, 16


@helper
def _itself(x: Any) -> Any:
    return x


@helper
def _squared(x: Any) -> Any:
    """In float64, where no square of a smaller float overflows or vanishes."""
    return np.float64(x) * np.float64(x)


@helper
def _sum_of_two(x: Any, y: Any) -> Any:
    return x + y


@helper
def _product_of_two(x: Any, y: Any) -> Any:
    return x * y


@helper
def _larger(x: Any, y: Any) -> Any:
    """The larger of two; NaN before any number."""
    return x if x > y or x != x else y


@helper
def _smaller(x: Any, y: Any) -> Any:
    return x if x < y or x != x else y


@helper
def _doubles(size: int, like: Array) -> Array:
    return np.empty(size)


@helper
def _alike(size: int, like: Array) -> Array:
    return np.empty(size, like.dtype)


class Fold(NamedTuple):
    """Two kernels, of rows (M, N) and of columns (L, N, M): each makes one number of `share` that follow each other.

    What they leave of several pieces, in float64 if it is `wide`, is folded by `rest`, or else by the same ones.
    """

    rows: Kernel
    columns: Kernel
    wide: bool
    rest: Any = None


def _fold_of(merge: Any, term: Any, of_rows: Any, wide: bool, rest: Any = None) -> Fold:
    """`of_rows` folds a part of each of a few rows, for which it has room; what is merged are terms of x."""
    room, formula = _doubles if wide else _alike, merge if term is _itself else term

    @jit(_ROWS_PARALLEL_FROM, formula=formula)
    def rows(x: Array, out: Array, share: int) -> None:
        (m, n), pieces = x.shape, out.shape[1]
        group = _STRIP if n < _SHORT else (_JOB + n - 1) // n
        for number in prange((m + group - 1) // group * pieces):
            job = np.int64(number)
            piece, first = job % pieces, job // pieces * group
            some, made = x[first : first + group], out[first : first + group, piece]
            of_rows(some, piece * share, min(n, (piece + 1) * share), made, room(_STRIP, x))

    @jit(_PARALLEL_FROM, formula=formula)
    def columns(x: Array, out: Array, share: int) -> None:
        """In strips that stay in cache. Of narrow lines, several are taken as one."""
        (_, n, inner), pieces, flat = x.shape, out.shape[1], x.reshape(-1)
        strips, lines = (inner + _STRIP - 1) // _STRIP, max(1, _STRIP // inner)
        for number in prange(len(out) * pieces * strips):
            job = np.int64(number)
            i, piece, start = job // strips // pieces, job // strips % pieces, job % strips * _STRIP
            width, first, last = min(_STRIP, inner - start), piece * share, min(n, (piece + 1) * share)
            totals = room(min(lines, last - first) * width, x)
            for line in range(first, last, lines):
                at = (i * n + line) * inner + start
                row = flat[at : at + min(lines, last - line) * width]
                if line == first:
                    for c in range(row.size):
                        totals[c] = term(row[c])
                else:
                    for c in range(row.size):
                        totals[c] = merge(totals[c], term(row[c]))
            for other in range(width, totals.size, width):
                for c in range(width):
                    totals[c] = merge(totals[c], totals[other + c])
            for c in range(width):
                out[i, piece, start + c] = totals[c]

    return Fold(rows, columns, wide, rest)


def _sum_of(term: Any, rest: Any = None) -> Fold:
    @helper
    def total(row: Array, lanes: Array) -> Any:
        """Of a row. `lanes` (16 float64) are its columns, in lines of 16; a block is 16 lines of a column.

        A vector of such blocks is read in one go through memory. Of more lanes it was not, which took twice as long.
        """
        tile = _BLOCK * _LANES
        whole = row.size // tile * tile
        lanes[:_LANES] = 0
        for start in range(0, whole, tile):
            for j in range(_LANES):
                part = term(row[start + j])
                for line in range(1, _BLOCK):
                    part += term(row[start + line * _LANES + j])
                lanes[j] += part
        for start in range(whole, row.size, _LANES):
            for j in range(min(_LANES, row.size - start)):
                lanes[j] += term(row[start + j])
        half = _LANES // 2
        while half:
            for j in range(half):
                lanes[j] += lanes[half + j]
            half //= 2
        return lanes[0]

    @helper
    def short_total(row: Array) -> Any:
        """Of a row that is not worth many lanes: a block is 16 neighbours."""
        whole = row.size // _BLOCK * _BLOCK
        total = 0.0
        for start in range(0, whole, _BLOCK):
            part = term(row[start])
            for j in range(1, _BLOCK):
                part += term(row[start + j])
            total += part
        part = term(row.dtype.type(0))
        for j in range(whole, row.size):
            part += term(row[j])
        return total + part

    @helper
    def of_rows(x: Array, first: int, last: int, out: Array, lanes: Array) -> None:
        for i in range(len(x)):
            row = x[i, first:last]
            out[i] = total(row, lanes) if row.size >= _BLOCK * _LANES else short_total(row)

    return _fold_of(_sum_of_two, term, of_rows, True, rest)


def _plain_fold(merge: Any, wide: bool) -> Fold:
    @helper
    def of_rows(x: Array, first: int, last: int, out: Array, best: Array) -> None:
        """Of short rows many side by side, as columns would be; else row by row, in lanes."""
        m, n = x.shape
        if n < _SHORT:
            for i in range(m):
                best[i] = x[i, 0]
            for j in range(1, n):
                for i in range(m):
                    best[i] = merge(best[i], x[i, j])
            for i in range(m):
                out[i] = best[i]
        else:
            for i in range(m):
                row = x[i, first:last]
                lanes = min(_STRIP, row.size)
                for j in range(lanes):
                    best[j] = row[j]
                for start in range(lanes, row.size, lanes):
                    line = row[start : start + lanes]
                    for j in range(line.size):
                        best[j] = merge(best[j], line[j])
                while lanes > 1:
                    other = best[(lanes + 1) // 2 : lanes]
                    for j in range(other.size):
                        best[j] = merge(best[j], other[j])
                    lanes -= other.size
                out[i] = best[0]

    return _fold_of(merge, _itself, of_rows, wide)


VALUES = _sum_of(_itself)
SQUARES = _sum_of(_squared, VALUES)
FACTORS = _plain_fold(_product_of_two, wide=True)
LARGEST, SMALLEST = _plain_fold(_larger, wide=False), _plain_fold(_smaller, wide=False)


class _Run(NamedTuple):
    """The first run of adjacent dims to be folded: extents before, in and behind it, and what is left after it."""

    cube: tuple[int, int, int]
    ends: bool  # with it, the array
    rest: Dims
    left: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def run_of(shape: tuple[int, ...], dims: Dims) -> _Run:
    first = 1
    while first < len(dims) and dims[first] == dims[first - 1] + 1:
        first += 1
    start, stop = dims[0], dims[first - 1] + 1
    cube = math.prod(shape[:start]), math.prod(shape[start:stop]), math.prod(shape[stop:])
    rest = tuple(d - (stop - start) for d in dims[first:])
    return _Run(cube, stop == len(shape), rest, shape[:start] + shape[stop:])


def folded(of: Fold, x: Array, dims: Dims, keepdim: bool, dtype: Any) -> Array:
    """x is not empty."""
    shape = reduced(x.shape, dims, keepdim)
    run = run_of(x.shape, dims)
    if run.ends or not x.flags.c_contiguous:
        rows = _rows(x, dims)
        out = np.empty(shape, dtype)
        _launch(of, of.rows, rows, out.reshape(len(rows), 1))
        return out
    partial = np.float64 if of.wide else x.dtype
    out = np.empty(run.left, partial) if run.rest else np.empty(shape, dtype)
    _launch(of, of.columns, x.reshape(run.cube), out.reshape(run.cube[0], 1, run.cube[2]))
    return folded(of.rest or of, out, run.rest, False, dtype).reshape(shape) if run.rest else out


def _launch(of: Fold, kernel: Kernel, x: Array, out: Array) -> None:
    """In two steps, if there is much to fold into little, so that all cores have work."""
    m, n, inner = x.shape if x.ndim == 3 else (*x.shape, 1)
    share = n
    if x.size >= _PARALLEL_FROM and m * -(-inner // _STRIP) < _FEW:
        share = max(_BLOCK, _JOB // min(inner, _STRIP))
    if share < n:
        parts = np.empty((m, -(-n // share), *x.shape[2:]), np.float64 if of.wide else x.dtype)
        kernel.only(x, parts, share)
        of, x, share = of.rest or of, parts, parts.shape[1]
        kernel = of.columns if x.ndim == 3 else of.rows
    kernel.only(x, out, share)


def _rows(x: Array, dims: Dims) -> Array:
    """A contiguous matrix whose rows run over `dims`."""
    run = run_of(x.shape, dims)
    if run.ends:
        return in_order(x).reshape(run.cube[:2])
    kept = [d for d in range(x.ndim) if d not in dims]
    return in_order(x.transpose(*kept, *dims)).reshape(-1, math.prod([x.shape[d] for d in dims]))


@functools.lru_cache(maxsize=256)
def reduced(shape: tuple[int, ...], dims: Dims, keepdim: bool) -> tuple[int, ...]:
    if keepdim:
        return tuple(1 if d in dims else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in dims)
