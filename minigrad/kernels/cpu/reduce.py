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
_BLOCK, _LANES, _STRIP, _PIECE, _JOB, _SHORT = 16, 64, 256, 4096, 1 << 14, 128


@helper
def _itself(x: Any) -> Any:
    return x


@helper
def _squared(x: Any) -> Any:
    """In float64, where no square of a smaller float overflows or vanishes."""
    return np.float64(x) * np.float64(x)


class _Sum(NamedTuple):
    """Kernels for Σ term(x): over the last axis of a contiguous matrix, over the middle axis of an array of three."""

    rows: Kernel
    columns: Kernel


def _sum_of(term: Any) -> _Sum:
    @helper
    def total(row: Array, lanes: Array) -> Any:
        """Of a row. `lanes` (64 float64) are its columns, in lines of 64: a block is 16 lines of a column."""
        tile = _BLOCK * _LANES
        whole = row.size // tile * tile
        lanes[:] = 0
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

    @jit(_ROWS_PARALLEL_FROM, formula=term)
    def rows(x: Array, out: Array) -> None:
        n = x.shape[1]
        share = max(1, _JOB // max(1, n))
        for job in prange((x.shape[0] + share - 1) // share):
            lanes = np.empty(_LANES)
            for i in range(job * share, min(x.shape[0], (job + 1) * share)):
                out[i] = total(x[i], lanes) if n >= _BLOCK * _LANES else short_total(x[i])

    @jit(_PARALLEL_FROM, formula=term)
    def columns(x: Array, out: Array) -> None:
        outer, n, inner = x.shape
        strips = (inner + _STRIP - 1) // _STRIP  # that stay in cache
        for job in prange(outer * strips):
            i, first = job // strips, job % strips * _STRIP
            width = min(_STRIP, inner - first)
            sums = np.zeros(width)
            for j in range(n):
                row = x[i, j, first : first + width]
                for c in range(width):
                    sums[c] += term(row[c])
            for c in range(width):
                out[i, first + c] = sums[c]

    return _Sum(rows, columns)


_VALUES, _SQUARES = _sum_of(_itself), _sum_of(_squared)


class _Run(NamedTuple):
    """The first run of adjacent dims to be summed: extents before, in and behind it, and what is left after its sum."""

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


def sum(x: Array, dims: Dims, keepdim: bool) -> Array:
    if x.dtype.kind != "f":
        return np.asarray(np.sum(x, axis=dims, keepdims=keepdim, dtype=np.int64))
    work = _wide(x)
    return cast(_sum(_VALUES, work, dims, keepdim, work.dtype), x.dtype)


def _sum(of: _Sum, x: Array, dims: Dims, keepdim: bool, dtype: Any) -> Array:
    shape = _reduced(x.shape, dims, keepdim)
    if x.size == 0:
        return np.zeros(shape, dtype)
    run = _run(x.shape, dims)
    if not run.ends and x.flags.c_contiguous:
        out = np.empty(run.left, np.float64) if run.rest else np.empty(shape, dtype)
        of.columns.only(x.reshape(run.cube), out.reshape(run.cube[0], run.cube[2]))
        if run.rest:
            out = _sum(_VALUES, out, run.rest, False, np.float64)
            out = out.reshape(shape) if keepdim else out  # and not a view, if it need not be one
    else:
        rows = _rows(x, dims)
        if rows.shape[0] == 1 and rows.shape[1] >= _PARALLEL_FROM:  # two levels, so that all cores have work
            rows, tail = _split(rows)
            parts = np.empty(rows.shape[0] + 1)
            of.rows(rows, parts[:-1])
            of.rows(tail, parts[-1:])
            rows, of = parts.reshape(1, -1), _VALUES
        out = np.empty(shape, dtype)
        of.rows.only(rows, out.reshape(-1))
    return out


def _split(row: Array) -> tuple[Array, Array]:
    """A long row as equal pieces, and the rest."""
    whole = row.shape[1] // _PIECE * _PIECE
    return row[0, :whole].reshape(-1, _PIECE), row[:, whole:]


@helper
def _larger(x: Any, y: Any) -> Any:
    """The larger of two; NaN before any number."""
    return x if x > y or x != x else y


@helper
def _smaller(x: Any, y: Any) -> Any:
    return x if x < y or x != x else y


def _extremes_by(better: Any) -> Kernel:
    @jit(_ROWS_PARALLEL_FROM, formula=better)
    def short_rows(x: Array, out: Array) -> None:
        """Over the last axis of a contiguous matrix: many rows side by side, as columns would be."""
        for job in prange((x.shape[0] + _STRIP - 1) // _STRIP):
            rows = x[job * _STRIP : (job + 1) * _STRIP]
            best = out[job * _STRIP : (job + 1) * _STRIP]
            for i in range(best.size):
                best[i] = rows[i, 0]
            for j in range(1, x.shape[1]):
                for i in range(best.size):
                    best[i] = better(rows[i, j], best[i])

    return short_rows


_LARGEST, _SMALLEST = _extremes_by(_larger), _extremes_by(_smaller)


def amax(x: Array, dims: Dims, keepdim: bool) -> Array:
    return _extremes(_LARGEST, np.max, x, dims, keepdim)


def amin(x: Array, dims: Dims, keepdim: bool) -> Array:
    return _extremes(_SMALLEST, np.min, x, dims, keepdim)


def _extremes(of_short_rows: Kernel, of_others: Any, x: Array, dims: Dims, keepdim: bool) -> Array:
    """By NumPy, unless rows are short: it takes them one by one, at 50 ns each."""
    run = _run(x.shape, dims)
    if x.dtype == np.float16 or not run.ends or run.cube[1] >= _SHORT or not x.flags.c_contiguous:
        return np.asarray(of_others(x, axis=dims, keepdims=keepdim))
    out = np.empty(_reduced(x.shape, dims, keepdim), x.dtype)
    of_short_rows.only(x.reshape(run.cube[:2]), out.reshape(-1))
    return out


def argmax(x: Array, dim: int, keepdim: bool) -> Array:
    return np.asarray(np.argmax(x, axis=dim, keepdims=keepdim), np.int64)


def argmin(x: Array, dim: int, keepdim: bool) -> Array:
    return np.asarray(np.argmin(x, axis=dim, keepdims=keepdim), np.int64)


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
