"""Pooling and upsampling: every output element is gathered by one thread, from a box of the input.

A window is a product of intervals, one for each dimension, and so are the windows that a pixel lies in: one kernel,
given the intervals, is the average of windows and its adjoint. There are up to three dimensions of windows. Windows of
two by two pixels side by side need no intervals (`_blocks`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from minigrad.kernels.cuda import _blocks
from minigrad.kernels.cuda._numba import ldg, steps
from minigrad.kernels.cuda.array import Array, cast, constant, contiguous, copy, empty
from minigrad.kernels.cuda.elementwise import _wide, div
from minigrad.kernels.cuda.index import gather
from minigrad.kernels.cuda.launch import FLOATS, helper, items, kernel
from minigrad.kernels.cuda.reduce import _settled, _two_sum, sum as _sum
from minigrad.kernels.windows import Extents, Windows, counts


def _intervals(extent: int, kernel: int, stride: int, padding: int) -> tuple[Any, Any]:
    """Where each window begins and ends, without its padding."""
    starts = np.arange((extent + 2 * padding - kernel) // stride + 1) * stride - padding
    return starts.clip(0, extent), (starts + kernel).clip(0, extent)


@functools.lru_cache(maxsize=256)
def _boxes(space: Extents, windows: Windows, adjoint: bool) -> Any:
    """A device array for `_box`, of the windows, or for each pixel of those it lies in.

    The three extents of the output and of the input; then where intervals start, one dimension after another, and end.
    """
    axes = [_intervals(*axis) for axis in zip(space, *windows, strict=True)]
    count = counts(space, *windows)
    source, target = (count, space) if adjoint else (space, count)
    if adjoint:  # window i holds pixel j if starts[i] ≤ j < ends[i], and both ascend
        axes = [
            (np.searchsorted(ends, np.arange(n), "right"), np.searchsorted(starts, np.arange(n), "right"))
            for n, (starts, ends) in zip(space, axes, strict=True)
        ]
    none = (1,) * (3 - len(space))
    table = [*none, *target, *none, *source]
    for value, bounds in enumerate(zip(*axes, strict=True)):
        table += [value for _ in none] + [n for axis in bounds for n in axis]
    return constant(np.asarray(table, np.uint32))


@helper
def _box(boxes: Any, i: Any) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
    """For output element i: where its plane of the input begins; start and end in each dimension."""
    depth, height, width = ldg(boxes, np.uint32(0)), ldg(boxes, np.uint32(1)), ldg(boxes, np.uint32(2))
    row = np.uint32(np.uint32(i) // width)
    sheet = np.uint32(row // height)
    plane = np.uint32(sheet // depth)
    size = np.uint32(np.uint32(ldg(boxes, np.uint32(3)) * ldg(boxes, np.uint32(4))) * ldg(boxes, np.uint32(5)))
    a = np.uint32(np.uint32(sheet - np.uint32(plane * depth)) + np.uint32(6))
    b = np.uint32(np.uint32(row - np.uint32(sheet * height)) + np.uint32(depth + np.uint32(6)))
    c = np.uint32(np.uint32(np.uint32(i) - np.uint32(row * width)) + np.uint32(depth + height + np.uint32(6)))
    ends = np.uint32(depth + height + width)
    return (
        np.uint32(plane * size),
        ldg(boxes, a), ldg(boxes, np.uint32(a + ends)),
        ldg(boxes, b), ldg(boxes, np.uint32(b + ends)),
        ldg(boxes, c), ldg(boxes, np.uint32(c + ends)),
    )  # fmt: skip


@helper
def _pixel(boxes: Any, a: Any, b: Any, c: Any) -> Any:
    """The flat index in a plane of the input."""
    row = np.uint32(np.uint32(np.uint32(a) * ldg(boxes, np.uint32(4))) + np.uint32(b))
    return np.uint32(np.uint32(row * ldg(boxes, np.uint32(5))) + np.uint32(c))


@kernel("u4 T[] T[] u4[] T", T=FLOATS)
def _mean(size: Any, out: Any, x: Any, boxes: Any, divisor: Any) -> None:
    """Σ of each box / divisor."""
    for i in items(size):
        base, a0, a1, b0, b1, c0, c1 = _box(boxes, i)
        total, rest = x.dtype.type(0), x.dtype.type(0)
        for a in steps(a0, a1, np.uint32(1)):
            for b in steps(b0, b1, np.uint32(1)):
                for c in steps(c0, c1, np.uint32(1)):
                    value = ldg(x, np.uint32(base + _pixel(boxes, a, b, c)))
                    total, rest = _two_sum(total, rest, value, x.dtype.type(0))
        out[i] = _settled(total, rest) / divisor


@kernel("u4 T[] i8[] T[] u4[]", T=FLOATS)
def _max(size: Any, values: Any, indices: Any, x: Any, boxes: Any) -> None:
    """The largest value of each box and where it is: the first of equals, a NaN before any number."""
    for i in items(size):
        base, a0, a1, b0, b1, c0, c1 = _box(boxes, i)
        place = _pixel(boxes, a0, b0, c0)
        best = ldg(x, np.uint32(base + place))
        for a in steps(a0, a1, np.uint32(1)):
            for b in steps(b0, b1, np.uint32(1)):
                for c in steps(c0, c1, np.uint32(1)):
                    pixel = _pixel(boxes, a, b, c)
                    value = ldg(x, np.uint32(base + pixel))
                    if value > best or value != value:
                        best, place = value, pixel
        values[i], indices[i] = best, place


@kernel("u4 T[] T[] i8[] u4[]", T=FLOATS)
def _put_back(size: Any, out: Any, g: Any, indices: Any, boxes: Any) -> None:
    """Each pixel gets g from those of its windows that name it."""
    for i in items(size):
        base, a0, a1, b0, b1, c0, c1 = _box(boxes, i)
        plane = np.uint32(np.uint32(ldg(boxes, np.uint32(0)) * ldg(boxes, np.uint32(1))) * ldg(boxes, np.uint32(2)))
        here = np.uint32(np.uint32(i) % plane)
        total = g.dtype.type(0)
        for a in steps(a0, a1, np.uint32(1)):
            for b in steps(b0, b1, np.uint32(1)):
                for c in steps(c0, c1, np.uint32(1)):
                    at = np.uint32(base + _pixel(boxes, a, b, c))
                    if np.uint32(ldg(indices, at)) == here:
                        total += ldg(g, at)
        out[i] = total


def max_pool(x: Array, kernel: Extents, stride: Extents, padding: Extents) -> tuple[Array, Array]:
    """x (N, C, *S) → the largest value of each window and its flat index in the plane, both (N, C, *O)."""
    space, windows = x.shape[2:], (kernel, stride, padding)
    output = counts(space, *windows)
    planes = contiguous(_wide(x))
    values, indices = empty(x.shape[:2] + output, planes.dtype), empty(x.shape[:2] + output, np.int64)
    if _blocks.cover(space, *windows):
        _blocks.max_blocks.each(values.size, values, indices, planes, *_blocks.planes(output))
    else:
        _max.each(values.size, values, indices, planes, _boxes(space, windows, False))
    return cast(values, x.dtype), indices


def pool_gather(x: Array, indices: Array) -> Array:
    """out[n, c, p] = x[n, c, indices[n, c, p]], with flat indices into each plane."""
    return gather(_planes(x), 2, _planes(indices)).reshape(indices.shape)


def pool_scatter(g: Array, indices: Array, input_shape: Extents, windows: Windows) -> Array:
    """The adjoint of `pool_gather`: zeros of the planes `input_shape`, with every g[n, c, p] added at its index."""
    wide, places = contiguous(_wide(g)), contiguous(indices)
    out = empty(g.shape[:2] + input_shape, wide.dtype)
    if _blocks.cover(input_shape, *windows):
        _blocks.put_back_blocks.each(wide.size, out, wide, places, *_blocks.planes(g.shape[2:]))
    else:
        _put_back.each(out.size, out, wide, places, _boxes(input_shape, windows, True))
    return cast(out, g.dtype)


def avg_pool(x: Array, kernel: Extents, stride: Extents, padding: Extents, count_include_pad: bool) -> Array:
    """x (N, C, *S) → the mean of each window (N, C, *O), padding counted as zeros or not at all."""
    space, windows = x.shape[2:], (kernel, stride, padding)
    if _blocks.cover(space, *windows):
        return _summed(x, counts(space, *windows), 4)
    planes = contiguous(_wide(x))
    out = empty(x.shape[:2] + counts(space, *windows), planes.dtype)
    boxes = _boxes(space, windows, False)
    _mean.each(out.size, out, planes, boxes, math.prod(kernel) if count_include_pad else 1)
    return cast(out if count_include_pad else div(out, _counts(space, windows, out.dtype)), x.dtype)


def avg_pool_grad(
    g: Array, input_shape: Extents, kernel: Extents, stride: Extents, padding: Extents, count_include_pad: bool
) -> Array:
    """The adjoint of `avg_pool`: g (N, C, *O) → (N, C, *input_shape)."""
    windows = kernel, stride, padding
    if _blocks.cover(input_shape, *windows):
        return _dealt(g, input_shape, 4)
    wide = _wide(g)
    if not count_include_pad:
        wide = div(wide, _counts(input_shape, windows, wide.dtype))
    out = empty(g.shape[:2] + input_shape, wide.dtype)
    boxes = _boxes(input_shape, windows, True)
    _mean.each(out.size, out, contiguous(wide), boxes, math.prod(kernel) if count_include_pad else 1)
    return cast(out, g.dtype)


def upsample_nearest(x: Array, scale: Extents) -> Array:
    """x (N, C, *S) → (N, C, *S·scale): every pixel becomes a block, which is a copy of a stretched view."""
    output = tuple(s * f for s, f in zip(x.shape[2:], scale, strict=True))
    if _blocks.cover(output, scale, scale, (0,) * len(scale)):
        return _dealt(x, output, 1)
    split = x.view(_interleaved(x.shape, (1,) * len(scale)), _interleaved(x.strides, (0,) * len(scale)))
    return copy(split.expand(_interleaved(x.shape, scale))).reshape(x.shape[:2] + output)


def upsample_nearest_grad(g: Array, scale: Extents) -> Array:
    """The adjoint of `upsample_nearest`: the sum of each block."""
    space = tuple(s // f for s, f in zip(g.shape[2:], scale, strict=True))
    if _blocks.cover(g.shape[2:], scale, scale, (0,) * len(scale)):
        return _summed(g, space, 1)
    blocks = g.reshape(_interleaved(g.shape[:2] + space, scale))
    return _sum(blocks, tuple(range(3, blocks.ndim, 2)), False)


def _summed(x: Array, output: Extents, number: int) -> Array:
    """Of each block of two by two pixels Σ / number."""
    wide = contiguous(_wide(x))
    out = empty(x.shape[:2] + output, wide.dtype)
    _blocks.sum_blocks.each(out.size, out, wide, *_blocks.lines(output), number)
    return cast(out, x.dtype)


def _dealt(g: Array, space: Extents, number: int) -> Array:
    """The adjoint of `_summed`."""
    wide = contiguous(_wide(g))
    out = empty(g.shape[:2] + space, wide.dtype)
    _blocks.deal_blocks.each(wide.size, out, wide, *_blocks.lines(g.shape[2:]), number)
    return cast(out, g.dtype)


def _interleaved(shape: Extents, scale: Extents) -> Extents:
    """(N, C, S₁, f₁, S₂, f₂, …)."""
    return (*shape[:2], *(n for pair in zip(shape[2:], scale, strict=True) for n in pair))


def _planes(x: Array) -> Array:
    return x.reshape((*x.shape[:2], math.prod(x.shape[2:])))


@functools.lru_cache(maxsize=256)
def _counts(space: Extents, windows: Windows, dtype: Any) -> Array:
    """How many pixels each window holds, without the padding."""
    axes = [ends - starts for starts, ends in map(_intervals, space, *windows)]
    return constant(np.asarray(functools.reduce(np.multiply.outer, axes), dtype))
