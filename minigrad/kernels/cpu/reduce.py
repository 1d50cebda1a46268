"""Reductions: sums with float64 block totals, extrema with their places, scans.

`dims` are sorted, non-negative and not empty. Float32 sums run in blocks of 16: inside a block in float32, at most 15
roundings of 2⁻²⁴; over the blocks in float64. That keeps the error below 1e-6 of Σ|x| at any size. The order is written
out and nothing may change it (no fast math), so that the serial and the parallel variant give the same bits.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import Kernel, helper, jit
from minigrad.kernels.cpu._layout import in_order
from minigrad.kernels.cpu.array import Array, cast

Dims = tuple[int, ...]
_PARALLEL_FROM, _ROWS_PARALLEL_FROM = 1 << 17, 1 << 15
_BLOCK, _LANES, _STRIP, _JOB, _SHORT, _FEW = 16, 64, 256, 1 << 14, 128, 16


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


class _Fold(NamedTuple):
    """Two kernels, of rows (M, N) and of columns (L, N, M): each makes one number of `share` that follow each other.

    What they leave of several pieces, in float64 if it is `wide`, is folded by `rest`, or else by the same ones.
    """

    rows: Kernel
    columns: Kernel
    wide: bool
    rest: Any = None


def _fold_of(merge: Any, term: Any, of_rows: Any, wide: bool, rest: Any = None) -> _Fold:
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

    return _Fold(rows, columns, wide, rest)


def _sum_of(term: Any, rest: Any = None) -> _Fold:
    @helper
    def total(row: Array, lanes: Array) -> Any:
        """Of a row. `lanes` (64 float64) are its columns, in lines of 64: a block is 16 lines of a column."""
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


def _plain_fold(merge: Any, wide: bool) -> _Fold:
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


_VALUES = _sum_of(_itself)
_SQUARES = _sum_of(_squared, _VALUES)
_FACTORS = _plain_fold(_product_of_two, wide=True)
_LARGEST, _SMALLEST = _plain_fold(_larger, wide=False), _plain_fold(_smaller, wide=False)


class _Run(NamedTuple):
    """The first run of adjacent dims to be folded: extents before, in and behind it, and what is left after it."""

    cube: tuple[int, int, int]
    ends: bool  # with it, the array
    rest: Dims
    left: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _run(shape: tuple[int, ...], dims: Dims) -> _Run:
    first = 1
    while first < len(dims) and dims[first] == dims[first - 1] + 1:
        first += 1
    start, stop = dims[0], dims[first - 1] + 1
    cube = math.prod(shape[:start]), math.prod(shape[start:stop]), math.prod(shape[stop:])
    rest = tuple(d - (stop - start) for d in dims[first:])
    return _Run(cube, stop == len(shape), rest, shape[:start] + shape[stop:])


def _folded(of: _Fold, x: Array, dims: Dims, keepdim: bool, dtype: Any) -> Array:
    """x is not empty."""
    shape = _reduced(x.shape, dims, keepdim)
    run = _run(x.shape, dims)
    if run.ends or not x.flags.c_contiguous:
        rows = _rows(x, dims)
        out = np.empty(shape, dtype)
        _launch(of, of.rows, rows, out.reshape(len(rows), 1))
        return out
    partial = np.float64 if of.wide else x.dtype
    out = np.empty(run.left, partial) if run.rest else np.empty(shape, dtype)
    _launch(of, of.columns, x.reshape(run.cube), out.reshape(run.cube[0], 1, run.cube[2]))
    return _folded(of.rest or of, out, run.rest, False, dtype).reshape(shape) if run.rest else out


def _launch(of: _Fold, kernel: Kernel, x: Array, out: Array) -> None:
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


def sum(x: Array, dims: Dims, keepdim: bool) -> Array:
    if x.dtype.kind != "f":
        return np.asarray(np.sum(x, axis=dims, keepdims=keepdim, dtype=np.int64))
    work = _wide(x)
    return cast(_sum(_VALUES, work, dims, keepdim, work.dtype), x.dtype)


def _sum(of: _Fold, x: Array, dims: Dims, keepdim: bool, dtype: Any) -> Array:
    return _folded(of, x, dims, keepdim, dtype) if x.size else np.zeros(_reduced(x.shape, dims, keepdim), dtype)


def prod(x: Array, dims: Dims, keepdim: bool) -> Array:
    """In float64, rounded once."""
    if x.dtype.kind != "f" or not x.size:
        dtype = x.dtype if x.dtype.kind == "f" else np.int64
        return np.asarray(np.prod(x, axis=dims, keepdims=keepdim, dtype=dtype))
    work = _wide(x)
    return cast(_folded(_FACTORS, work, dims, keepdim, work.dtype), x.dtype)


def amax(x: Array, dims: Dims, keepdim: bool) -> Array:
    return _extremes(_LARGEST, np.max, x, dims, keepdim)


def amin(x: Array, dims: Dims, keepdim: bool) -> Array:
    return _extremes(_SMALLEST, np.min, x, dims, keepdim)


def _extremes(of: _Fold, of_others: Any, x: Array, dims: Dims, keepdim: bool) -> Array:
    if x.dtype == np.float16 or not x.size:
        return np.asarray(of_others(x, axis=dims, keepdims=keepdim))
    return _folded(of, x, dims, keepdim, x.dtype)


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
    outer, n, inner = _run(x.shape, (dim,)).cube
    if x.dtype == np.float16 or not x.size or not x.flags.c_contiguous or (inner == 1 and n >= _SHORT):
        return np.asarray(of_others(x, axis=dim, keepdims=keepdim), np.int64)
    out = np.empty(_reduced(x.shape, (dim,), keepdim), np.int64)
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
    cube = _run(x.shape, (dim,)).cube
    if cube[2] == 1:
        _running_rows.only(work.reshape(cube[:2]), out.reshape(cube[:2]))
    else:
        _running_columns.only(work.reshape(cube), out.reshape(cube))
    return cast(out, x.dtype)


def norm(x: Array, dims: Dims, keepdim: bool) -> Array:
    """Euclidean norm. Float64 is squared over the power of two next to max|x|: no square overflows or vanishes."""
    if x.dtype != np.float64:
        return np.asarray(cast(np.sqrt(_sum(_SQUARES, _wide(x), dims, keepdim, np.float64)), x.dtype))
    total = _sum(_SQUARES, x, dims, keepdim, x.dtype)
    if np.all((total > 2.0**-900) & (total < math.inf)):  # beside such a total, what has vanished does not count
        return np.sqrt(total)
    with np.errstate(all="ignore"):
        peak = np.max(np.abs(x), axis=dims, keepdims=True, initial=0)
        scale = np.ldexp(1.0, np.where(np.isfinite(peak), np.frexp(peak)[1] - 1, 0))
        root = np.sqrt(_sum(_SQUARES, x / scale, dims, True, np.float64)) * scale
        return root.reshape(_reduced(x.shape, dims, keepdim))


def _wide(x: Array) -> Array:
    """Float16 as float32, to compute in."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _rows(x: Array, dims: Dims) -> Array:
    """A contiguous matrix whose rows run over `dims`."""
    run = _run(x.shape, dims)
    if run.ends:
        return in_order(x).reshape(run.cube[:2])
    kept = [d for d in range(x.ndim) if d not in dims]
    return in_order(x.transpose(*kept, *dims)).reshape(-1, math.prod([x.shape[d] for d in dims]))


@functools.lru_cache(maxsize=256)
def _reduced(shape: tuple[int, ...], dims: Dims, keepdim: bool) -> tuple[int, ...]:
    if keepdim:
        return tuple(1 if d in dims else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in dims)
