"""Batch normalization: statistics in float64, and all passes over a few channels while these are in cache.

An image is a line of columns, as many to a channel as it has pixels. Sums run down each column and then over those of a
channel, in an order that the shape alone decides: the bits do not depend on how many threads there are.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import helper, jit
from minigrad.kernels.cpu.array import Array, cast

_PARALLEL_FROM = 1 << 15
_COLUMNS = 512  # worked together, at least
_LANES = 8


@helper
def _fold(columns: Array, channels: Array) -> None:
    """channels[c] = Σ of its columns, dealt out to lanes."""
    pixels = columns.size // max(1, channels.size)
    for c in range(channels.size):
        line, lanes = columns[c * pixels : (c + 1) * pixels], np.zeros(_LANES)
        whole = pixels // _LANES * _LANES
        for start in range(0, whole, _LANES):
            for j in range(_LANES):
                lanes[j] += line[start + j]
        for j in range(whole, pixels):
            lanes[j - whole] += line[j]
        channels[c] = lanes.sum()


@helper
def _spread(channels: Array, columns: Array) -> Array:
    """The number of its channel in each column."""
    pixels = columns.size // max(1, channels.size)
    for c in range(channels.size):
        columns[c * pixels : (c + 1) * pixels] = channels[c]
    return columns


@helper
def _add(columns: Array, row: Array) -> None:
    for j in range(columns.size):
        columns[j] += row[j]


@helper
def _add_squares(columns: Array, row: Array, center: Array) -> None:
    for j in range(columns.size):
        columns[j] += (row[j] - center[j]) * (row[j] - center[j])


@helper
def _add_products(columns: Array, g: Array, row: Array, center: Array) -> None:
    for j in range(columns.size):
        columns[j] += g[j] * (row[j] - center[j])


@helper
def _jobs(channels: int, pixels: int) -> tuple[int, int]:
    """How many jobs of how many channels."""
    share = max(1, _COLUMNS // max(1, pixels))
    return (channels + share - 1) // share, share


@jit(_PARALLEL_FROM)
def _normalize(
    x: Array, pixels: int, weight: Array, bias: Array, eps: float, mean: Array, var: Array, out: Array
) -> None:
    """The mean first and then the mean of (x − mean)², so that a large mean costs no digits."""
    jobs, share = _jobs(mean.size, pixels)
    for job in prange(jobs):
        c, d = job * share, min(mean.size, (job + 1) * share)
        a, b = c * pixels, d * pixels
        columns, center = np.zeros(b - a), np.empty(b - a)
        for i in range(x.shape[0]):
            _add(columns, x[i, a:b])
        _fold(columns, mean[c:d])
        for k in range(c, d):
            mean[k] /= x.shape[0] * pixels
        _spread(mean[c:d], center)
        columns[:] = 0
        for i in range(x.shape[0]):
            _add_squares(columns, x[i, a:b], center)
        _fold(columns, var[c:d])
        scale = np.empty(d - c)
        for k in range(c, d):
            var[k] /= x.shape[0] * pixels
            scale[k - c] = weight[k] / math.sqrt(var[k] + eps)
        slope, shift = _spread(scale, columns), _spread(bias[c:d], np.empty(b - a))
        for i in range(x.shape[0]):
            row, made = x[i, a:b], out[i, a:b]
            for j in range(b - a):
                made[j] = (row[j] - center[j]) * slope[j] + shift[j]


@jit(_PARALLEL_FROM)
def _project(g: Array, x: Array, pixels: int, mean: Array, rstd: Array, weight: Array, out: Array) -> None:
    """weight · rstd · (g − ⟨g⟩ − x̂ ⟨g x̂⟩)."""
    jobs, share = _jobs(mean.size, pixels)
    for job in prange(jobs):
        c, d = job * share, min(mean.size, (job + 1) * share)
        a, b = c * pixels, d * pixels
        center, total, along = _spread(mean[c:d], np.empty(b - a)), np.zeros(b - a), np.zeros(b - a)
        for i in range(x.shape[0]):
            _add(total, g[i, a:b])
            _add_products(along, g[i, a:b], x[i, a:b], center)
        totals, alongs, scale = np.empty(d - c), np.empty(d - c), np.empty(d - c)
        _fold(total, totals)
        _fold(along, alongs)
        for k in range(c, d):
            scale[k - c] = weight[k] * rstd[k]
            totals[k - c] /= x.shape[0] * pixels
            alongs[k - c] *= rstd[k] * rstd[k] / (x.shape[0] * pixels)
        level, slope, scales = _spread(totals, total), _spread(alongs, along), _spread(scale, np.empty(b - a))
        for i in range(x.shape[0]):
            up, row, made = g[i, a:b], x[i, a:b], out[i, a:b]
            for j in range(b - a):
                made[j] = scales[j] * (up[j] - level[j] - (row[j] - center[j]) * slope[j])


@jit(_PARALLEL_FROM)
def _along(g: Array, x: Array, pixels: int, mean: Array, out: Array) -> None:
    """Σ g (x − mean) over each channel."""
    jobs, share = _jobs(mean.size, pixels)
    for job in prange(jobs):
        c, d = job * share, min(mean.size, (job + 1) * share)
        a, b = c * pixels, d * pixels
        center, along = _spread(mean[c:d], np.empty(b - a)), np.zeros(b - a)
        for i in range(x.shape[0]):
            _add_products(along, g[i, a:b], x[i, a:b], center)
        _fold(along, out[c:d])


@np.errstate(all="ignore")
def batch_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """(x − mean) / √(var + eps) · weight + bias for x (N, C, …), and mean and var (C,) in float64."""
    lines, channels = _lines(x), x.shape[1]
    mean, var, out = np.empty(channels), np.empty(channels), np.empty(x.shape, lines.dtype)
    _normalize(lines, _pixels(x), _wide(weight, 1, channels), _wide(bias, 0, channels), eps, mean, var, _lines(out))
    return cast(out, x.dtype), mean, var


@np.errstate(all="ignore")
def batch_norm_input_grad(g: Array, x: Array, weight: Array | None, mean: Array, var: Array, eps: float) -> Array:
    """weight · rstd · (g − ⟨g⟩ − x̂ ⟨g x̂⟩), ⟨·⟩ the mean over a channel."""
    lines, rstd = _lines(x), _rstd(var, eps)
    out = np.empty(x.shape, lines.dtype)
    _project(_lines(g), lines, _pixels(x), mean, rstd, _wide(weight, 1, x.shape[1]), _lines(out))
    return cast(out, x.dtype)


@np.errstate(all="ignore")
def batch_norm_weight_grad(g: Array, x: Array, mean: Array, var: Array, eps: float) -> Array:
    """Σ g x̂ over each channel."""
    along = np.empty(x.shape[1])
    _along(_lines(g), _lines(x), _pixels(x), mean, along)
    return np.asarray(along * _rstd(var, eps)).astype(x.dtype)


def _pixels(x: Array) -> int:
    return math.prod(x.shape[2:])


def _lines(x: Array) -> Array:
    """(N, C, …) as (N, C · pixels), in float32 at least."""
    dtype = np.float32 if x.dtype == np.float16 else x.dtype
    return np.ascontiguousarray(x, dtype).reshape(x.shape[0], math.prod(x.shape[1:]))


def _rstd(var: Array, eps: float) -> Array:
    return np.asarray(1 / np.sqrt(var + eps))


def _wide(channels: Array | None, default: float, size: int) -> Array:
    return np.full(size, float(default)) if channels is None else channels.astype(np.float64)
