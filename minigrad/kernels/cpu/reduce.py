"""Reductions: sums with float64 block totals, extrema with their places, scans.

`dims` are sorted, non-negative and not empty. Float32 sums run in blocks of 16: inside a block in float32, at most 15
roundings of 2⁻²⁴; over the blocks in float64. That keeps the error below 1e-6 of Σ|x| at any size. The order is written
out and nothing may change it (no fast math), so that the serial and the parallel variant give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import jit
from minigrad.kernels.cpu.array import Array, cast

Dims = tuple[int, ...]
_PARALLEL_FROM = 1 << 16
_BLOCK, _STRIP, _PIECE = 16, 256, 4096


@jit(_PARALLEL_FROM)
def _sum_rows(x: Array, out: Array) -> None:
    """Sum over the last axis of a contiguous matrix. Blocks of a length known to the compiler are summed abreast."""
    n = x.shape[1]
    whole = n // _BLOCK * _BLOCK
    for i in prange(x.shape[0]):
        row = x[i]
        total = 0.0
        for start in range(0, whole, _BLOCK):
            part = row[start]
            for j in range(1, _BLOCK):
                part += row[start + j]
            total += part
        part = x.dtype.type(0)
        for j in range(whole, n):
            part += row[j]
        out[i] = total + part


@jit(_PARALLEL_FROM)
def _sum_columns(x: Array, out: Array) -> None:
    """Sum over the middle axis of a contiguous array of three; the last axis is worked in strips that stay in cache."""
    outer, n, inner = x.shape
    strips = (inner + _STRIP - 1) // _STRIP
    for job in prange(outer * strips):
        i, first = job // strips, job % strips * _STRIP
        width = min(_STRIP, inner - first)
        total = np.zeros(width)
        for j in range(n):
            row = x[i, j, first : first + width]
            for c in range(width):
                total[c] += row[c]
        for c in range(width):
            out[i, first + c] = total[c]


def sum(x: Array, dims: Dims, keepdim: bool) -> Array:
    shape = _reduced(x.shape, dims, keepdim)
    if x.dtype.kind != "f":
        return np.asarray(np.sum(x, axis=dims, keepdims=keepdim, dtype=np.int64))
    if x.size == 0:
        return np.zeros(shape, x.dtype)
    work = x.astype(np.float32) if x.dtype == np.float16 else x
    adjacent = dims == tuple(range(dims[0], dims[-1] + 1))
    if adjacent and dims[-1] < x.ndim - 1 and work.flags.c_contiguous:
        cube = work.reshape(_size(x.shape[: dims[0]]), _size(x.shape[dims[0] : dims[-1] + 1]), -1)
        out = np.empty((cube.shape[0], cube.shape[2]), work.dtype)
        _sum_columns(cube, out)
    else:
        rows = _rows(work, dims)
        if rows.shape[0] == 1 and rows.shape[1] > _PIECE:  # two levels of the same sum, so that all cores have work
            rows, tail = _split(rows)
            parts = np.empty(rows.shape[0])
            _sum_rows(rows, parts)
            out = np.empty(1)
            with np.errstate(all="ignore"):
                parts = np.append(parts, tail.sum(dtype=np.float64))
            _sum_rows(parts.reshape(1, -1), out)
        else:
            out = np.empty(rows.shape[0], work.dtype)
            _sum_rows(rows, out)
    return cast(out.reshape(shape), x.dtype)


def _split(row: Array) -> tuple[Array, Array]:
    """A long row as equal pieces, and the rest."""
    whole = row.shape[1] // _PIECE * _PIECE
    return row[0, :whole].reshape(-1, _PIECE), row[0, whole:]


def amax(x: Array, dims: Dims, keepdim: bool) -> Array:
    return np.asarray(np.max(x, axis=dims, keepdims=keepdim))


def amin(x: Array, dims: Dims, keepdim: bool) -> Array:
    return np.asarray(np.min(x, axis=dims, keepdims=keepdim))


def argmax(x: Array, dim: int, keepdim: bool) -> Array:
    return np.asarray(np.argmax(x, axis=dim, keepdims=keepdim), np.int64)


def argmin(x: Array, dim: int, keepdim: bool) -> Array:
    return np.asarray(np.argmin(x, axis=dim, keepdims=keepdim), np.int64)


def any(x: Array, dims: Dims, keepdim: bool) -> Array:
    return np.asarray(np.any(x, axis=dims, keepdims=keepdim))


def all(x: Array, dims: Dims, keepdim: bool) -> Array:
    return np.asarray(np.all(x, axis=dims, keepdims=keepdim))


def cumsum(x: Array, dim: int) -> Array:
    """Running sums, carried in float64."""
    with np.errstate(all="ignore"):
        return np.cumsum(x, axis=dim, dtype=np.float64 if x.dtype.kind == "f" else np.int64).astype(
            x.dtype if x.dtype.kind == "f" else np.int64, copy=False
        )


def norm(x: Array, dims: Dims, keepdim: bool) -> Array:
    """Euclidean norm, of x over the power of two next to max|x|: no square overflows or vanishes."""
    with np.errstate(all="ignore"):
        work = x.astype(np.float32) if x.dtype == np.float16 else x
        peak = np.max(np.abs(work), axis=dims, keepdims=True, initial=0)
        scale = np.ldexp(work.dtype.type(1), np.where(np.isfinite(peak), np.frexp(peak)[1] - 1, 0))
        root = np.sqrt(sum(np.square(work / scale), dims, True)) * scale
        return root.reshape(_reduced(x.shape, dims, keepdim)).astype(x.dtype, copy=False)


def _rows(x: Array, dims: Dims) -> Array:
    """A contiguous matrix whose rows run over `dims`."""
    kept = [d for d in range(x.ndim) if d not in dims]
    return np.ascontiguousarray(x.transpose(*kept, *dims)).reshape(-1, _size([x.shape[d] for d in dims]))


def _reduced(shape: tuple[int, ...], dims: Dims, keepdim: bool) -> tuple[int, ...]:
    if keepdim:
        return tuple(1 if d in dims else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in dims)


def _size(extents: Any) -> int:
    return int(np.prod(extents, dtype=np.int64))
