"""Batch normalization: two sums over each channel, and then one combination of g and x; channels in float64.

All that is asked of a channel are Σ a and Σ a (x − x₀), with its first element x₀ in the place of the mean: a = x − x₀
gives the statistics in one reading of x, a = g the gradients. That costs few digits if x₀ is far from the mean, which
it is by √n standard deviations at most (Samuelson's inequality).

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
_COLUMNS = 1024  # summed together, at least: what a job reads of an image should be some KiB
_LANES = 8
_SHORT = 16  # pixels: shorter lines are worked through together


@helper
def _add(
    total: Array, along: Array, g: Array, x: Array, other_g: Array, other_x: Array, two: bool, x0: Array, centred: bool
) -> None:
    """Σ a and Σ a (x − x₀), a line or `two` on: the sums are read and written for every second line only."""
    for j in range(total.size):
        here, there = x[j] - x0[j], other_x[j] - x0[j]
        a, b = (here, there) if centred else (np.float64(g[j]), np.float64(other_g[j]))
        total[j] += a + (b if two else 0.0)
        along[j] += a * here + (b * there if two else 0.0)


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


@jit(_PARALLEL_FROM)
def _moments(g: Array, x: Array, pixels: int, x0: Array, centred: bool, sums: Array) -> None:
    """Σ a and Σ a (x − x₀) of each channel; a is x − x₀ if `centred`, else g."""
    channels, share = x0.size, max(1, _COLUMNS // max(1, pixels))
    for job in prange((channels + share - 1) // share):
        c, d = job * share, min(channels, (job + 1) * share)
        a, b = c * pixels, d * pixels
        total, along, origin = np.zeros(b - a), np.zeros(b - a), np.empty(b - a)
        for k in range(c, d):
            origin[(k - c) * pixels : (k - c + 1) * pixels] = x0[k]
        for i in range(0, len(x), 2):
            k = min(i + 1, len(x) - 1)
            _add(total, along, g[i, a:b], x[i, a:b], g[k, a:b], x[k, a:b], k > i, origin, centred)
        _fold(total, sums[0, c:d])
        _fold(along, sums[1, c:d])


@helper
def _combine_line(
    out: Array, g: Array, x: Array, both: bool, of_g: float, of_x: float, mean: float, constant: float
) -> None:
    for j in range(out.size):
        out[j] = (of_g * g[j] if both else 0.0) + of_x * (x[j] - mean) + constant


@helper
def _combine_columns(
    out: Array, g: Array, x: Array, both: bool, of_g: Array, of_x: Array, mean: Array, constant: Array
) -> None:
    for j in range(out.size):
        out[j] = (of_g[j] * g[j] if both else 0.0) + of_x[j] * (x[j] - mean[j]) + constant[j]


@jit(_PARALLEL_FROM)
def _combine(out: Array, g: Array, x: Array, both: bool, pixels: int, table: Array) -> None:
    """of_g · g + of_x · (x − mean) + constant, the rows of the table; a column of it is for so many pixels.

    Unless `both`, without g, which may be infinite.
    """
    for i in prange(len(out)):
        if pixels == 1:
            _combine_columns(out[i], g[i], x[i], both, table[0], table[1], table[2], table[3])
        else:
            for c in range(table.shape[1]):
                a, b = c * pixels, (c + 1) * pixels
                of_g, of_x, mean, constant = table[0, c], table[1, c], table[2, c], table[3, c]
                _combine_line(out[i, a:b], g[i, a:b], x[i, a:b], both, of_g, of_x, mean, constant)


@np.errstate(all="ignore")
def batch_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """(x − mean) / √(var + eps) · weight + bias for x (N, C, …), and mean and var (C,) in float64."""
    lines, n = _lines(x), _count(x)
    x0 = _origins(lines, x)
    total, along = _sums(lines, lines, x0, True)
    shift = total / n
    mean, var = x0 + shift, np.maximum(along / n - shift * shift, 0)  # below 0 by rounding
    scale = _wide(weight, 1, x0.size) / np.sqrt(var + eps)
    return _combined(None, lines, (scale, mean, _wide(bias, 0, x0.size)), x), mean, var


def channel_affine(x: Array, scale: Array, mean: Array | None, bias: Array | None) -> Array:
    """(x − mean) · scale + bias for x (N, C, …), the others (C,) in float64."""
    return _combined(None, _lines(x), (scale, _wide(mean, 0, scale.size), _wide(bias, 0, scale.size)), x)


@np.errstate(all="ignore")
def batch_norm_sums(g: Array, x: Array, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """Σ g and Σ g x̂ over each channel, (2, C) in x's dtype and in float64."""
    lines = _lines(x)
    x0 = _origins(lines, x)
    sums = _sums(_lines(g), lines, x0, False)
    sums[1] = (sums[1] - sums[0] * (mean - x0)) / np.sqrt(var + eps)
    return sums.astype(x.dtype), sums


@np.errstate(all="ignore")
def batch_norm_input_grad(
    g: Array, x: Array, weight: Array | None, mean: Array, var: Array, sums: Array, eps: float
) -> Array:
    """weight · rstd · (g − ⟨g⟩ − x̂ ⟨g x̂⟩), ⟨·⟩ the mean over a channel, of `batch_norm_sums`."""
    rstd, (level, slope) = 1 / np.sqrt(var + eps), sums / _count(x)
    scale = _wide(weight, 1, x.shape[1]) * rstd
    return _combined(_lines(g), _lines(x), (scale, -scale * rstd * slope, mean, -scale * level), x)


def _pixels(x: Array) -> int:
    return math.prod(x.shape[2:])


def _count(x: Array) -> int:
    """How many elements a channel has."""
    return x.shape[0] * _pixels(x)


def _lines(x: Array) -> Array:
    """(N, C, …) as (N, C · pixels), in float32 at least."""
    dtype = np.float32 if x.dtype == np.float16 else x.dtype
    return np.ascontiguousarray(x, dtype).reshape(x.shape[0], math.prod(x.shape[1:]))


def _origins(lines: Array, x: Array) -> Array:
    """x₀ of each channel; 0 where that is infinite or NaN, as the mean's own value then is to come out."""
    if not x.size:
        return np.zeros(x.shape[1])
    first = lines[0, :: _pixels(x)].astype(np.float64)
    return np.where(np.isfinite(first), first, 0)


def _sums(g: Array, lines: Array, x0: Array, centred: bool) -> Array:
    sums = np.zeros((2, x0.size))
    _moments(g, lines, lines.shape[1] // max(1, x0.size), x0, centred, sums)
    return sums


def _combined(g: Array | None, lines: Array, table: tuple[Array, ...], x: Array) -> Array:
    pixels, coefficients = _pixels(x), np.stack(table if g is not None else (table[0], *table))
    if pixels < _SHORT:
        pixels, coefficients = 1, coefficients.repeat(pixels, 1)
    out = np.empty(x.shape, lines.dtype)
    _combine(_lines(out), lines if g is None else g, lines, g is not None, pixels, coefficients)
    return cast(out, x.dtype)


def _wide(channels: Array | None, default: float, size: int) -> Array:
    return np.full(size, float(default)) if channels is None else channels.astype(np.float64)
