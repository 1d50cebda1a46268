"""Batch normalization in three launches, and four for its gradients: elements in x's dtype, channels in float64.

All that is asked of a channel are two sums, Σ a and Σ a (x − x₀), with its first element x₀ in the place of the mean:
a = x − x₀ gives the statistics in one reading of x, a = g the gradients. Blocks sum pieces of a channel and carry the
rounding errors of sums and products along, so that it costs few digits if x₀ is far from the mean, which it is by √n
standard deviations at most (Samuelson's inequality). A thread for each channel adds the pieces up.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import SIMULATED, cuda, divided, divisor, ldg, steps
from minigrad.kernels.cuda.array import Array, cast, contiguous, empty, full
from minigrad.kernels.cuda.elementwise import _wide
from minigrad.kernels.cuda.launch import BLOCK, FLOATS, helper, items, kernel
from minigrad.kernels.cuda.reduce import _settled, _two_sum

_PIECE = 2 * BLOCK if SIMULATED else 16 * BLOCK  # elements of a channel for a block, at least
_MOST_PIECES = 3 if SIMULATED else 128


@helper
def _origin(x: Any, at: Any) -> Any:
    """x₀ of a channel; 0 where that is infinite or NaN, as the mean's own value then is to come out."""
    first = ldg(x, at)
    return first if first - first == x.dtype.type(0) else x.dtype.type(0)


@kernel("T[] T[] T[] ? u4 u4 u4 u4 u4", T=FLOATS)
def _moments(
    sums: Any, g: Any, x: Any, centred: Any, channels: Any, length: Any, n: Any, width: Any, pieces: Any
) -> None:
    """Σ a and Σ a (x − x₀) of a piece of a channel, each in two numbers; a is x − x₀ if `centred`, else g."""
    cells = cuda.shared.array((4, BLOCK), x.dtype)
    job, thread = np.uint32(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x)
    channel = np.uint32(job // pieces)
    start = np.uint32(np.uint32(job - np.uint32(channel * pieces)) * width)
    first, last = np.uint32(start + thread), min(np.uint32(start + width), n)
    image, pixel = np.uint32(first // length), np.uint32(first % length)
    images, pixels = np.uint32(np.uint32(BLOCK) // length), np.uint32(np.uint32(BLOCK) % length)
    origin, zero = _origin(x, np.uint32(channel * length)), x.dtype.type(0)
    total, rest, along, along_rest = zero, zero, zero, zero
    for _ in steps(first, last, np.uint32(BLOCK)):
        at = np.uint32(np.uint32(np.uint32(np.uint32(image * channels) + channel) * length) + pixel)
        shifted = ldg(x, at) - origin
        a = shifted if centred else ldg(g, at)
        product = a * shifted
        total, rest = _two_sum(total, rest, a, zero)
        along, along_rest = _two_sum(along, along_rest, product, cuda.fma(a, shifted, -product))
        image, pixel = np.uint32(image + images), np.uint32(pixel + pixels)
        if pixel >= length:
            image, pixel = np.uint32(image + np.uint32(1)), np.uint32(pixel - length)
    cells[0, thread], cells[1, thread], cells[2, thread], cells[3, thread] = total, rest, along, along_rest
    half = np.uint32(BLOCK // 2)
    while half > np.uint32(0):
        cuda.syncthreads()
        if thread < half:
            other = np.uint32(thread + half)
            total, rest = _two_sum(cells[0, thread], cells[1, thread], cells[0, other], cells[1, other])
            along, along_rest = _two_sum(cells[2, thread], cells[3, thread], cells[2, other], cells[3, other])
            cells[0, thread], cells[1, thread], cells[2, thread], cells[3, thread] = total, rest, along, along_rest
        half = np.uint32(half >> np.uint32(1))
    cuda.syncthreads()
    for k in steps(thread, np.uint32(4), np.uint32(BLOCK)):
        sums[np.uint32(np.uint32(job * np.uint32(4)) + np.uint32(k))] = cells[k, 0]


@helper
def _added(sums: Any, channel: Any, pieces: Any) -> tuple[Any, Any]:
    """The two sums over a whole channel."""
    total, along = np.float64(0), np.float64(0)
    for piece in steps(np.uint32(0), pieces, np.uint32(1)):
        a = np.uint32(np.uint32(np.uint32(channel * pieces) + np.uint32(piece)) * np.uint32(4))
        b, c, d = np.uint32(a + np.uint32(1)), np.uint32(a + np.uint32(2)), np.uint32(a + np.uint32(3))
        total += _settled(np.float64(sums[a]), np.float64(sums[b]))
        along += _settled(np.float64(sums[c]), np.float64(sums[d]))
    return total, along


@helper
def _set(table: Any, channel: Any, of_g: Any, of_x: Any, mean: Any, constant: Any) -> None:
    """What `_combine` needs for of_g · g + of_x · (x − mean) + constant; the mean's rounding goes to the constant."""
    at = np.uint32(channel * np.uint32(4))
    table[at], table[np.uint32(at + np.uint32(1))], table[np.uint32(at + np.uint32(2))] = of_g, of_x, mean
    rounded = np.float64(table[np.uint32(at + np.uint32(2))])
    table[np.uint32(at + np.uint32(3))] = constant - of_x * (mean - rounded)


@kernel("u4 f8[] f8[] T[] T[] T[] T[] ? T[] ? f8 u4 u4 u4", T=FLOATS)
def _statistics(
    channels: Any, mean: Any, var: Any, table: Any, sums: Any, x: Any, weight: Any, weighted: Any, bias: Any,
    biased: Any, eps: Any, length: Any, n: Any, pieces: Any,
) -> None:  # fmt: skip
    for c in items(channels):
        total, along = _added(sums, np.uint32(c), pieces)
        shift = total / np.float64(n)
        spread = along / np.float64(n) - shift * shift
        if spread < np.float64(0):  # by rounding
            spread = np.float64(0)
        mean[c], var[c] = _origin(x, np.uint32(np.uint32(c) * length)) + shift, spread
        scale = np.float64(1) / math.sqrt(spread + eps)
        if weighted:
            scale *= np.float64(weight[c])
        _set(table, np.uint32(c), np.float64(0), scale, mean[c], np.float64(bias[c]) if biased else np.float64(0))


@kernel("u4 T[] f8[] T[] T[] f8[] f8[] f8 u4 u4", T=FLOATS)
def _totals(
    channels: Any, out: Any, wide: Any, sums: Any, x: Any, mean: Any, var: Any, eps: Any, length: Any, pieces: Any
) -> None:
    """Σ g and, behind those of all channels, Σ g x̂; in two dtypes."""
    for c in items(channels):
        total, along = _added(sums, np.uint32(c), pieces)
        along -= total * (mean[c] - _origin(x, np.uint32(np.uint32(c) * length)))
        along /= math.sqrt(var[c] + eps)
        behind = np.uint32(np.uint32(c) + channels)
        wide[c], wide[behind] = total, along
        out[c], out[behind] = total, along


@kernel("u4 T[] f8[] T[] ? f8[] f8[] f8 u4", T=FLOATS)
def _projection(
    channels: Any, table: Any, sums: Any, weight: Any, weighted: Any, mean: Any, var: Any, eps: Any, n: Any
) -> None:
    """weight · rstd · (g − ⟨g⟩ − (x − mean) rstd ⟨g x̂⟩) for `_combine`."""
    for c in items(channels):
        level, slope = sums[c] / np.float64(n), sums[np.uint32(np.uint32(c) + channels)] / np.float64(n)
        rstd = np.float64(1) / math.sqrt(var[c] + eps)
        scale = rstd * np.float64(weight[c]) if weighted else rstd
        _set(table, np.uint32(c), scale, -scale * rstd * slope, mean[c], -scale * level)


@helper
def _quotient(i: Any, n: Any, factor: Any, shift: Any) -> Any:
    """⌊i / n⌋, with what `divisor` says of n unless that is 1."""
    return divided(i, factor, shift) if n > np.uint32(1) else i


@kernel("u4 T[] f8[] f8[] f8[]", T=FLOATS)
def _given(channels: Any, table: Any, scale: Any, mean: Any, bias: Any) -> None:
    """(x − mean) · scale + bias for `_combine`."""
    for c in items(channels):
        _set(table, np.uint32(c), np.float64(0), scale[c], mean[c], bias[c])


@kernel("u4 T[] T[] ? T[] T[] u4 u4 u4 u4 u4 u4", T=FLOATS)
def _combine(
    size: Any, out: Any, g: Any, both: Any, x: Any, table: Any, length: Any, factor: Any, shift: Any, channels: Any,
    outer_factor: Any, outer_shift: Any,
) -> None:  # fmt: skip
    """of_g · g + of_x · (x − mean) + constant; without g, which may be infinite, unless `both`."""
    for i in items(size):
        line = _quotient(np.uint32(i), length, factor, shift)
        image = _quotient(line, channels, outer_factor, outer_shift)
        at = np.uint32(np.uint32(line - np.uint32(image * channels)) * np.uint32(4))
        of_x, mean = ldg(table, np.uint32(at + np.uint32(1))), ldg(table, np.uint32(at + np.uint32(2)))
        value = of_x * (ldg(x, i) - mean) + ldg(table, np.uint32(at + np.uint32(3)))
        if both:
            value += ldg(table, at) * ldg(g, i)
        out[i] = value


def batch_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """(x − mean) / √(var + eps) · weight + bias for x (N, C, …), and mean and var (C,) in float64."""
    flat = _flat(x)
    channels, length, n = _extents(flat)
    sums, pieces = _sums(flat, flat, True)
    mean, var, table = empty((channels,), np.float64), empty((channels,), np.float64), empty((channels, 4), flat.dtype)
    of_channels = *_or(weight, flat), *_or(bias, flat)
    _statistics.each(channels, mean, var, table, sums, flat, *of_channels, eps, length, n, pieces)
    return _combined(None, flat, table, x), mean, var


def channel_affine(x: Array, scale: Array, mean: Array | None, bias: Array | None) -> Array:
    """(x − mean) · scale + bias for x (N, C, …), the others (C,) in float64."""
    flat = _flat(x)
    table = empty((scale.size, 4), flat.dtype)
    others = (full(scale.shape, 0.0, scale.dtype) if t is None else contiguous(t) for t in (mean, bias))
    _given.each(scale.size, table, contiguous(scale), *others)
    return _combined(None, flat, table, x)


def batch_norm_sums(g: Array, x: Array, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """Σ g and Σ g x̂ over each channel, (2, C) in x's dtype and in float64."""
    flat = _flat(x)
    channels, length, _ = _extents(flat)
    sums, pieces = _sums(_flat(g), flat, False)
    out, wide = empty((2, channels), flat.dtype), empty((2, channels), np.float64)
    _totals.each(channels, out, wide, sums, flat, mean, var, eps, length, pieces)
    return cast(out, x.dtype), wide


def batch_norm_input_grad(
    g: Array, x: Array, weight: Array | None, mean: Array, var: Array, sums: Array, eps: float
) -> Array:
    """weight · rstd · (g − ⟨g⟩ − x̂ ⟨g x̂⟩), ⟨·⟩ the mean over a channel, of `batch_norm_sums`."""
    flat = _flat(x)
    channels, _, n = _extents(flat)
    table = empty((channels, 4), flat.dtype)
    _projection.each(channels, table, sums, *_or(weight, flat), mean, var, eps, n)
    return _combined(_flat(g), flat, table, x)


def _flat(x: Array) -> Array:
    """(N, C, …) contiguous, in float32 at least."""
    return contiguous(_wide(x))


def _extents(x: Array) -> tuple[int, int, int]:
    """How many channels, elements in a row of one, and in all of it."""
    length = math.prod(x.shape[2:])
    return x.shape[1], length, x.shape[0] * length


def _sums(g: Array, x: Array, centred: bool) -> tuple[Array, int]:
    """What `_moments` leaves, and in how many pieces."""
    channels, length, n = _extents(x)
    width = max(_PIECE, -(-n // _MOST_PIECES))
    pieces = -(-n // width)
    sums = empty((channels, pieces, 4), x.dtype)
    if sums.size:
        _moments[channels * pieces, BLOCK](sums, g, x, centred, channels, length, n, width, pieces)
    return sums, pieces


def _combined(g: Array | None, x: Array, table: Array, like: Array) -> Array:
    out = empty(x.shape, x.dtype)
    channels, length, _ = _extents(x)
    by = (number for n in (length, channels) for number in (n, *(divisor(n) if n > 1 else (0, 0))))
    _combine.each(out.size, out, *_or(g, x), x, table, *by)
    return cast(out, like.dtype)


def _or(x: Array | None, stand_in: Array) -> tuple[Array, bool]:
    """The channels' numbers and True, or False beside any array."""
    return (stand_in, False) if x is None else (contiguous(_wide(x)), True)
