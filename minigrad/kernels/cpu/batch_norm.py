"""Batch normalization: per channel, statistics in float64, and everything else in one or two passes.

Every channel is summed by one thread, so that the bits do not depend on how many there are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import helper, jit
from minigrad.kernels.cpu.array import Array

_PARALLEL_FROM = 1 << 16
_LANES = 32  # sums run abreast, in an order that does not depend on the compiler


@helper
def _add(lanes: Array, row: Array) -> None:
    """lanes += the row, dealt out to them."""
    whole = row.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for j in range(_LANES):
            lanes[j] += row[start + j]
    for j in range(whole, row.size):
        lanes[j - whole] += row[j]


@helper
def _add_products(lanes: Array, row: Array, a: float, other: Array, b: float) -> None:
    """lanes += (row − a) · (other − b)."""
    whole = row.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for j in range(_LANES):
            lanes[j] += (row[start + j] - a) * (other[start + j] - b)
    for j in range(whole, row.size):
        lanes[j - whole] += (row[j] - a) * (other[j] - b)


@jit(_PARALLEL_FROM)
def _statistics(x: Array, mean: Array, var: Array) -> None:
    """The mean first and then the mean of (x − mean)², so that a large mean costs no digits."""
    count = x.shape[0] * x.shape[2]
    for c in prange(x.shape[1]):
        lanes = np.zeros(_LANES)
        for i in range(x.shape[0]):
            _add(lanes, x[i, c])
        center = lanes.sum() / count
        lanes[:] = 0
        for i in range(x.shape[0]):
            _add_products(lanes, x[i, c], center, x[i, c], center)
        mean[c], var[c] = center, lanes.sum() / count


@jit(_PARALLEL_FROM)
def _affine(x: Array, mean: Array, scale: Array, bias: Array, out: Array) -> None:
    for c in prange(x.shape[1]):
        for i in range(x.shape[0]):
            for j in range(x.shape[2]):
                out[i, c, j] = (x[i, c, j] - mean[c]) * scale[c] + bias[c]


@jit(_PARALLEL_FROM)
def _moments(g: Array, x: Array, mean: Array, total: Array, along: Array) -> None:
    """Σ g and Σ g (x − mean) over each channel."""
    for c in prange(x.shape[1]):
        plain, weighted = np.zeros(_LANES), np.zeros(_LANES)
        for i in range(x.shape[0]):
            _add(plain, g[i, c])
            _add_products(weighted, g[i, c], 0.0, x[i, c], mean[c])
        total[c], along[c] = plain.sum(), weighted.sum()


@jit(_PARALLEL_FROM)
def _project(g: Array, x: Array, mean: Array, scale: Array, total: Array, slope: Array, out: Array) -> None:
    for c in prange(x.shape[1]):
        for i in range(x.shape[0]):
            for j in range(x.shape[2]):
                out[i, c, j] = scale[c] * (g[i, c, j] - total[c] - (x[i, c, j] - mean[c]) * slope[c])


@np.errstate(all="ignore")
def batch_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """(x − mean) / √(var + eps) · weight + bias for x (N, C, …), and mean and var (C,) in float64."""
    flat = _flat(x)
    mean, var = np.empty((2, x.shape[1]))
    _statistics(flat, mean, var)
    scale, shift = _rstd(var, eps) * _channels(weight, 1.0), _channels(bias, 0.0) + np.zeros(x.shape[1])
    out = np.empty_like(flat)
    _affine(flat, mean, scale, shift, out)
    return _like(x, out), mean, var


@np.errstate(all="ignore")
def batch_norm_input_grad(g: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float) -> Array:
    """weight · rstd · (g − ⟨g⟩ − x̂ ⟨g x̂⟩), ⟨·⟩ the mean over a channel."""
    flat_g, flat, rstd = _flat(g), _flat(x), _rstd(var, eps)
    count = flat.shape[0] * flat.shape[2]
    total, along = np.empty((2, x.shape[1]))
    _moments(flat_g, flat, mean, total, along)
    out = np.empty_like(flat)
    _project(flat_g, flat, mean, rstd * _channels(weight, 1.0), total / count, rstd * rstd * along / count, out)
    return _like(x, out)


@np.errstate(all="ignore")
def batch_norm_weight_grad(g: Array, x: Array, mean: Array, var: Array, eps: float) -> Array:
    """Σ g x̂ over each channel."""
    total, along = np.empty((2, x.shape[1]))
    _moments(_flat(g), _flat(x), mean, total, along)
    return np.asarray(along * _rstd(var, eps)).astype(x.dtype)


def _flat(x: Array) -> Array:
    """(N, C, …) as (N, C, L), in float32 at least."""
    dtype = np.float32 if x.dtype == np.float16 else x.dtype
    return np.ascontiguousarray(x, dtype).reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _like(x: Array, flat: Array) -> Array:
    return flat.reshape(x.shape).astype(x.dtype, copy=False)


def _rstd(var: Array, eps: float) -> Array:
    return np.asarray(1 / np.sqrt(var + eps))


def _channels(x: Array | None, default: float) -> Any:
    return default if x is None else x.astype(np.float64)
