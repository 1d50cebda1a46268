"""Spectral normalization: each result in as few passes over W as can be.

W is never moved. Its matrix M, of shape (m, n), has the axis `dim` of W as rows and all other axes as columns; in
memory it is w[p, i, q], p before that axis and q behind it: row i, column (p, q). Where nothing is behind the axis, w
is the plain matrix Mᵀ, and u and v change places.

Sums run in float64 over blocks whose borders depend on shapes alone. That keeps their digits, makes the serial and the
parallel variant agree to the bit, and leaves room for the square of a square of a float32 of any size. Only the
helpers, whose text is one for both variants, may reorder their arithmetic; the kernels around them may not.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import helper, jit
from minigrad.kernels.cpu._math import dot
from minigrad.kernels.cpu.array import cast

Array = Any
_PARALLEL_FROM = 1 << 16  # elements of W
_ROWS = 32  # rows to a block; a multiple of the four that are read side by side
_CACHED = 1 << 16  # elements that stay in a core's own cache from one product to the other
_COLUMNS = 512  # columns whose blocks are added up together
_FLAT = 1 << 13  # elements to a block, where rows do not matter
_SMALL = 1e-70  # σ whose fourth power is still a normal float64


# One pass over W ------------------------------------------------------------------------------------------------------


@helper
def _total(parts: Array) -> float:
    """Σ, which as `parts.sum()` the parallel variant would split by threads."""
    total = 0.0
    for part in parts:
        total += part
    return total


@functools.partial(helper, reassociate=True)
def _dots(slab: Array, i: int, x: Array) -> tuple[float, float, float, float]:
    """⟨W_i, x⟩ for four rows from i on; past the last row there are zeros."""
    last = len(slab) - 1
    i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
    s0 = s1 = s2 = s3 = 0.0
    for q in range(x.size):
        xq = np.float64(x[q])
        s0 += slab[i, q] * xq
        s1 += slab[i1, q] * xq
        s2 += slab[i2, q] * xq
        s3 += slab[i3, q] * xq
    return s0, s1 if i + 1 <= last else 0.0, s2 if i + 2 <= last else 0.0, s3 if i + 3 <= last else 0.0


@functools.partial(helper, reassociate=True)
def _add_rows(total: Array, slab: Array, i: int, t: Array) -> None:
    """total += Σ t_i W_i over four rows from i on, where t is 0 past the last row."""
    last = len(slab) - 1
    i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
    t0, t1, t2, t3 = t[i], t[i + 1], t[i + 2], t[i + 3]
    for q in range(total.size):
        total[q] += (t0 * slab[i, q] + t1 * slab[i1, q]) + (t2 * slab[i2, q] + t3 * slab[i3, q])


@helper
def _finish(t: Array, z: Array, first: Array, second: Array, eps: float) -> float:
    """first = t/‖t‖ and second = z/‖z‖, for z = Wᵀt or Wt; returns σ = ‖z‖/‖t‖.

    The clamp ‖·‖ ≥ eps is that of the problem scaled to σ = 1. Without a direction (‖t‖ or ‖z‖ is 0 or not finite) the
    vectors stay as they are.
    """
    norm_t = math.sqrt(dot(t, t))
    if not 0 < norm_t < math.inf:
        return norm_t
    norm_z = math.sqrt(dot(z, z))
    sigma = norm_z / norm_t
    if not 0 < norm_z < math.inf:  # z lacks one where only its squares vanish
        return sigma
    length = min(1.0, norm_t / (eps * sigma))  # of the first vector; less than 1 where the clamp bites
    other = min(1.0, length / eps)
    for i in range(first.size):
        first[i] = t[i] * (length / norm_t)
    for i in range(second.size):
        second[i] = z[i] * (other / norm_z)
    return sigma * length * other


@helper
def _begin(u: Array, v: Array, new_u: Array, new_v: Array) -> None:
    for i in range(u.size):
        new_u[i] = u[i]
    for i in range(v.size):
        new_v[i] = v[i]


@functools.partial(helper, reassociate=True)
def _multiply(t: Array, w: Array, x: Array, first: int, last: int) -> None:
    """t_i = ⟨W_i, x⟩ for rows first … last of w[p, i, q]; t is longer by three than there are rows."""
    for i in range(first, last, 4):
        t[i] = t[i + 1] = t[i + 2] = t[i + 3] = 0.0
        for p in range(len(w)):
            s0, s1, s2, s3 = _dots(w[p], i, x[p])
            t[i] += s0
            t[i + 1] += s1
            t[i + 2] += s2
            t[i + 3] += s3


@functools.partial(helper, reassociate=True)
def _gather(parts: Array, left: int, right: int) -> None:
    """Add the totals of all blocks to those of the first, over some columns."""
    for block in range(1, len(parts)):
        for q in range(left, right):
            parts[0, q] += parts[block, q]


@jit(_PARALLEL_FROM)
def _rows_first(w: Array, u: Array, v: Array, n: int, eps: float, new_u: Array, new_v: Array, sigma: Array) -> None:
    """n times u ← Mv/‖·‖, v ← Mᵀu/‖·‖, in one pass: z = Mᵀ(Mv) takes in each row while it is in cache from t = Mv."""
    a, m, b = w.shape
    blocks = -(-m // _ROWS)
    x, t, z = new_v.reshape(a, b), np.zeros(m + 3), np.empty((blocks, a, b))
    parts = z.reshape(blocks, a * b)
    rows = max(4, min(_ROWS, _CACHED // (a * b) // 4 * 4))
    _begin(u, v, new_u, new_v)
    for _ in range(n):
        for block in prange(blocks):
            z[block] = 0
            last = min(m, (block + 1) * _ROWS)
            for first in range(block * _ROWS, last, rows):
                end = min(last, first + rows)
                _multiply(t, w, x, first, end)
                for i in range(first, end, 4):
                    for p in range(a):
                        _add_rows(z[block, p], w[p], i, t)
        for piece in prange(-(-a * b // _COLUMNS)):
            _gather(parts, piece * _COLUMNS, min(a * b, (piece + 1) * _COLUMNS))
        sigma[0] = _finish(t[:m], parts[0], new_u, new_v, eps)


@jit(_PARALLEL_FROM)
def _columns_first(w: Array, u: Array, v: Array, n: int, eps: float, new_u: Array, new_v: Array, sigma: Array) -> None:
    """n times v ← Mᵀu/‖·‖, u ← Mv/‖·‖. Two passes along the rows are faster than one along the columns."""
    a, m, b = w.shape
    blocks = -(-m // _ROWS)
    x, t, z = np.zeros(m + 3), np.empty((blocks, a, b)), np.zeros(m + 3)
    parts = t.reshape(blocks, a * b)
    _begin(u, v, new_u, new_v)
    for _ in range(n):
        for i in range(m):
            x[i] = new_u[i]
        for block in prange(blocks):
            t[block] = 0
            for i in range(block * _ROWS, min(m, (block + 1) * _ROWS), 4):
                for p in range(a):
                    _add_rows(t[block, p], w[p], i, x)
        for piece in prange(-(-a * b // _COLUMNS)):
            _gather(parts, piece * _COLUMNS, min(a * b, (piece + 1) * _COLUMNS))
        for block in prange(blocks):
            _multiply(z, w, t[0], block * _ROWS, min(m, (block + 1) * _ROWS))
        sigma[0] = _finish(parts[0], z[:m], new_v, new_u, eps)


@jit(_PARALLEL_FROM)
def _bilinear(w: Array, u: Array, v: Array) -> float:
    """uᵀMv."""
    a, m, b = w.shape
    x = v.reshape(a, b)
    t = np.zeros(m + 3)
    for block in prange(-(-m // _ROWS)):
        _multiply(t, w, x, block * _ROWS, min(m, (block + 1) * _ROWS))
    return dot(t[:m], u)


# One pass to write ----------------------------------------------------------------------------------------------------


@jit(_PARALLEL_FROM)
def _scaled(w: Array, sigma: Array, out: Array) -> None:
    """W/σ, and 0 where σ is 0."""
    divisor = sigma[0]
    for i in prange(w.size):
        out[i] = w[i] / divisor if divisor != 0 else 0


@helper
def _pull_rows(out: Array, g: Array, slope: float, u: Array, x: Array, inverse: Any, first: int, last: int) -> None:
    for i in range(first, last):
        t = g.dtype.type(slope * u[i])
        for q in range(x.size):
            out[i, q] = (g[i, q] - t * x[q]) * inverse


@jit(_PARALLEL_FROM)
def _pulled_back(g: Array, w: Array, u: Array, v: Array, sigma: Array, out: Array) -> None:
    """(G − ⟨G, W/σ⟩ u vᵀ)/σ, and 0 where σ is 0."""
    a, m, b = g.shape
    divisor = np.float64(sigma[0])
    g_flat, w_flat = g.reshape(g.size), w.reshape(w.size)
    parts = np.zeros(-(-g.size // _FLAT))
    for block in prange(len(parts)):
        piece = slice(block * _FLAT, (block + 1) * _FLAT)
        parts[block] = dot(g_flat[piece], w_flat[piece])
    slope = _total(parts) / divisor
    x = v.reshape(a, b)
    inverse = g.dtype.type(1 / divisor)
    blocks = -(-m // _ROWS)
    for block in prange(a * blocks):
        p, first = block // blocks, block % blocks * _ROWS
        if divisor == 0:
            out[p, first : first + _ROWS] = 0
        else:
            _pull_rows(out[p], g[p], slope, u, x[p], inverse, first, min(m, first + _ROWS))


# What the ops call ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _extents(shape: tuple[int, ...], dim: int) -> tuple[tuple[int, int, int], bool]:
    """Those of w[p, i, q]; have rows and columns changed places?"""
    before, m, behind = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
    return ((1, before, m), True) if behind == 1 else ((before, m, behind), False)


def _arranged(w: Array, dim: int, u: Array, v: Array) -> tuple[Array, Array, Array, bool]:
    """w[p, i, q] in the dtype of the computation, the vectors of its rows and its columns; did they change places?"""
    extents, exchanged = _extents(w.shape, dim)
    w = np.ascontiguousarray(w, np.float32 if w.dtype == np.float16 else w.dtype).reshape(extents)
    return (w, v, u, True) if exchanged else (w, u, v, False)


def power_iteration(
    w: Array, u: Array, v: Array, n_power_iterations: int, eps: float, dim: int, order: str
) -> tuple[Array, Array, Array]:
    """New u and v after some sweeps, and σ = uᵀMv at them."""
    new_u, new_v, sigma = np.empty_like(u), np.empty_like(v), np.empty((), u.dtype)
    matrix, rows, columns, exchanged = _arranged(w, dim, np.ascontiguousarray(u), np.ascontiguousarray(v))
    new_rows, new_columns = (new_v, new_u) if exchanged else (new_u, new_v)
    sweep = _columns_first if (order == "uv") == exchanged else _rows_first
    launch = sweep if matrix.dtype == np.float64 else sweep.only
    launch(matrix, rows, columns, n_power_iterations, eps, new_rows, new_columns, sigma.reshape(1))
    if matrix.dtype == np.float64 and not _SMALL < sigma < 1 / _SMALL:  # bring the largest entry to 1
        exponent = int(np.frexp(np.abs(matrix).max())[1])
        if exponent:
            scaled = np.ldexp(matrix, -exponent).reshape(w.shape)
            new_u, new_v, sigma = power_iteration(scaled, u, v, n_power_iterations, eps, dim, order)
            with np.errstate(over="ignore"):
                sigma = np.ldexp(sigma, exponent)
    return new_u, new_v, np.asarray(sigma)


def spectral_sigma(w: Array, u: Array, v: Array, dim: int) -> Array:
    """σ = uᵀMv."""
    matrix, rows, columns, _ = _arranged(w, dim, np.ascontiguousarray(u), np.ascontiguousarray(v))
    return cast(np.asarray(_bilinear(matrix, rows, columns)), u.dtype)


def spectral_scale(w: Array, sigma: Array) -> Array:
    """W/σ, and 0 where σ is 0."""
    out = np.empty(w.shape, sigma.dtype)
    _scaled.only(np.ascontiguousarray(w, out.dtype).reshape(-1), sigma.reshape(1), out.reshape(-1))
    return cast(out, w.dtype)


def spectral_pullback(g: Array, w: Array, u: Array, v: Array, sigma: Array, dim: int) -> Array:
    """(G − ⟨G, W/σ⟩ u vᵀ)/σ, and 0 where σ is 0."""
    upstream, rows, columns, _ = _arranged(g, dim, np.ascontiguousarray(u), np.ascontiguousarray(v))
    out = np.empty(w.shape, upstream.dtype)
    weight = np.ascontiguousarray(w, out.dtype).reshape(upstream.shape)
    _pulled_back.only(upstream, weight, rows, columns, sigma.reshape(1), out.reshape(upstream.shape))
    return cast(out, w.dtype)


def rank_one(c: Array, u: Array, v: Array, shape: tuple[int, ...], dim: int, dtype: Any) -> Array:
    """c u vᵀ in the layout of W."""
    before = math.prod(shape[:dim])
    with np.errstate(all="ignore"):
        made = (c * u)[None, :, None] * v.reshape(before, 1, -1)
    return cast(made.reshape(shape), dtype)
