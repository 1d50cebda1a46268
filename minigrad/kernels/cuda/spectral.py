"""Spectral normalization on the GPU: each result in as few passes over W, and as few launches, as can be.

W is never moved. Its matrix M, of shape (m, n), has the axis `dim` of W as rows and all other axes as columns; in
memory it is w[p, i, q], p before that axis and q behind it: row i, column (p, q). Where nothing is behind the axis, w
is the plain matrix Mᵀ, and u and v change places. σ and λ stay on the device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.kernels.cuda._block import sum_of, unit_of
from minigrad.kernels.cuda._numba import SIMULATED, cuda, ldg, steps
from minigrad.kernels.cuda._sweep import Shape, by_columns, columns_first, finished, rows_first
from minigrad.kernels.cuda.array import Array, cast, contiguous, empty
from minigrad.kernels.cuda.elementwise import _wide
from minigrad.kernels.cuda.launch import BLOCK, FLOATS, helper, items, kernel
from minigrad.kernels.cuda.reduce import _two_sum

_FLAT = 2 * BLOCK if SIMULATED else 16 * BLOCK  # elements of a block, at least
_MOST_BLOCKS = 3 if SIMULATED else 1024


@helper
def _row_and_column(line: Any, q: Any, a: Any, m: Any, b: Any) -> tuple[Any, Any]:
    """Of w[p, i, q], whose p and i are one number: those of the matrix."""
    if a == np.uint32(1):
        return line, q
    p = np.uint32(line // m)
    return np.uint32(line - np.uint32(p * m)), np.uint32(q + np.uint32(p * b))


@kernel("T[] T[] T[] u4 u4", T=FLOATS)
def _inner(out: Any, parts: Any, u: Any, count: Any, m: Any) -> None:
    """⟨u, t⟩ for a t in parts; by one block."""
    total, rest = parts.dtype.type(0), parts.dtype.type(0)
    for i in steps(np.uint32(cuda.threadIdx.x), m, np.uint32(BLOCK)):
        for part in steps(np.uint32(0), count, np.uint32(1)):
            value = ldg(u, i) * ldg(parts, np.uint32(np.uint32(part * m) + i))
            total, rest = _two_sum(total, rest, value, parts.dtype.type(0))
    total = sum_of(parts, total, rest)
    if np.uint32(cuda.threadIdx.x) == np.uint32(0):
        out[np.uint32(0)] = total


# W̄ and its pullback ---------------------------------------------------------------------------------------------------


@kernel("u4 T[] T[] T[]", T=FLOATS)
def _scaled(size: Any, out: Any, w: Any, sigma: Any) -> None:
    divisor = sigma[np.uint32(0)]
    for i in items(size):
        out[i] = ldg(w, i) / divisor if divisor != w.dtype.type(0) else w.dtype.type(0)


@kernel("T[] T[] T[] T[] u4 u4", T=FLOATS)
def _inner_parts(totals: Any, g: Any, w: Any, sigma: Any, size: Any, width: Any) -> None:
    """⟨G, W⟩ in parts, one per block, W being measured by a power of two near to σ."""
    inverse = w.dtype.type(1) / unit_of(sigma[np.uint32(0)])
    total, rest = w.dtype.type(0), w.dtype.type(0)
    first = np.uint32(np.uint32(cuda.blockIdx.x) * width)
    last = np.uint32(min(np.uint32(first + width), size))
    for i in steps(np.uint32(first + np.uint32(cuda.threadIdx.x)), last, np.uint32(BLOCK)):
        total, rest = _two_sum(total, rest, ldg(g, i) * (ldg(w, i) * inverse), w.dtype.type(0))
    total = sum_of(w, total, rest)
    if np.uint32(cuda.threadIdx.x) == np.uint32(0):
        totals[np.uint32(cuda.blockIdx.x)] = total


@kernel("T[] T[] T[] T[] T[] T[] u4 u4 u4 u4 u4 u4", T=FLOATS)
def _pulled_back(
    out: Any, g: Any, u: Any, v: Any, sigma: Any, totals: Any, count: Any, size: Any, width: Any,
    a: Any, m: Any, b: Any,
) -> None:  # fmt: skip
    """(G − λ u vᵀ)/σ, for ⟨G, W⟩ in parts."""
    zero, thread = g.dtype.type(0), np.uint32(cuda.threadIdx.x)
    total, rest = zero, zero
    for part in steps(thread, count, np.uint32(BLOCK)):
        total, rest = _two_sum(total, rest, ldg(totals, part), zero)
    divisor = sigma[np.uint32(0)]
    slope = sum_of(g, total, rest) / (divisor / unit_of(divisor))
    inverse = g.dtype.type(1) / divisor
    first = np.uint32(np.uint32(cuda.blockIdx.x) * width)
    last = np.uint32(min(np.uint32(first + width), size))
    line, q = np.uint32(np.uint32(first + thread) // b), np.uint32(np.uint32(first + thread) % b)
    lines, qs = np.uint32(np.uint32(BLOCK) // b), np.uint32(np.uint32(BLOCK) % b)
    for at in steps(np.uint32(first + thread), last, np.uint32(BLOCK)):
        i, j = _row_and_column(line, q, a, m, b)
        out[at] = (ldg(g, at) - slope * ldg(u, i) * ldg(v, j)) * inverse if divisor != zero else zero
        line, q = np.uint32(line + lines), np.uint32(q + qs)
        if q >= b:
            line, q = np.uint32(line + np.uint32(1)), np.uint32(q - b)


@kernel("u4 T[] T[] T[] T[] u4 u4 u4", T=FLOATS)
def _outer(size: Any, out: Any, c: Any, u: Any, v: Any, a: Any, m: Any, b: Any) -> None:
    """c u vᵀ."""
    factor = ldg(c, np.uint32(0))
    for at in items(size):
        line = np.uint32(at // b)
        i, j = _row_and_column(line, np.uint32(at - np.uint32(line * b)), a, m, b)
        out[at] = factor * ldg(u, i) * ldg(v, j)


# What the ops call ----------------------------------------------------------------------------------------------------


def _arranged(shape: Shape, dim: int, u: Array, v: Array) -> tuple[Shape, Array, Array, bool]:
    """The extents of w[p, i, q], the vectors of its rows and its columns; did they change places?"""
    before, m, behind = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
    if before * m * behind >> 32:
        raise ValueError(f"a CUDA kernel: expected a weight of fewer than 2**32 elements; got shape {shape}")
    u, v = contiguous(u), contiguous(v)
    return ((1, before, m), v, u, True) if behind == 1 else ((before, m, behind), u, v, False)


def power_iteration(
    w: Array, u: Array, v: Array, n_power_iterations: int, eps: float, dim: int, order: str
) -> tuple[Array, Array, Array]:
    """New u and v after some sweeps, and σ = uᵀMv at them."""
    extents, rows, columns, exchanged = _arranged(w.shape, dim, u, v)
    w = contiguous(_wide(w))
    along = (order == "uv") != exchanged
    first, second = (rows, columns) if along else (columns, rows)
    for _ in range(n_power_iterations):
        t, z = (rows_first if along else columns_first)(w, extents, second)
        first, second, sigma = finished(t, z, first, second, eps)
    return (first, second, sigma) if order == "uv" else (second, first, sigma)


def spectral_sigma(w: Array, u: Array, v: Array, dim: int) -> Array:
    """σ = uᵀMv."""
    extents, rows, columns, _ = _arranged(w.shape, dim, u, v)
    parts = by_columns(contiguous(_wide(w)), extents, columns)
    sigma = empty((), u.dtype)
    _inner[1, BLOCK](sigma, parts, rows, *parts.shape)
    return sigma


def spectral_scale(w: Array, sigma: Array) -> Array:
    """W/σ, and 0 where σ is 0."""
    out = empty(w.shape, sigma.dtype)
    _scaled.each(out.size, out, contiguous(_wide(w)), sigma)
    return cast(out, w.dtype)


def spectral_pullback(g: Array, w: Array, u: Array, v: Array, sigma: Array, dim: int) -> Array:
    """(G − ⟨G, W/σ⟩ u vᵀ)/σ, and 0 where σ is 0."""
    extents, rows, columns, _ = _arranged(w.shape, dim, u, v)
    g, weight = contiguous(_wide(g)), contiguous(_wide(w))
    width = max(_FLAT, -(-w.size // _MOST_BLOCKS))
    blocks = -(-w.size // width)
    totals, out = empty((blocks,), g.dtype), empty(w.shape, g.dtype)
    _inner_parts[blocks, BLOCK](totals, g, weight, sigma, w.size, width)
    _pulled_back[blocks, BLOCK](out, g, rows, columns, sigma, totals, blocks, w.size, width, *extents)
    return cast(out, w.dtype)


def rank_one(c: Array, u: Array, v: Array, shape: tuple[int, ...], dim: int, dtype: Any) -> Array:
    """c u vᵀ in the layout of W."""
    extents, rows, columns, _ = _arranged(shape, dim, u, v)
    out = empty(shape, u.dtype)
    _outer.each(out.size, out, c, rows, columns, *extents)
    return cast(out, dtype)
