"""Pooling and upsampling in any number of dimensions, over one table that says which input pixels each window holds.

Windows of two by two pixels side by side need no table (`_blocks`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _blocks
from minigrad.kernels.cpu._jit import jit
from minigrad.kernels.windows import Extents, Windows, counts

_PARALLEL_FROM = 2**16  # numbers


@functools.lru_cache(maxsize=64)
def _windows(space: Extents, kernel: Extents, stride: Extents, padding: Extents) -> Any:
    """(P, taps): the flat index of each input pixel of each window, −1 in the padding."""
    windows, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    output = counts(space, kernel, stride, padding)
    for extent, count, k, t, p in zip(space, output, kernel, stride, padding, strict=True):
        at = np.arange(count)[:, None] * t - p + np.arange(k)
        size = len(windows) * count, windows.shape[1] * k
        windows = (windows[:, None, :, None] * extent + at[None, :, None, :]).reshape(size)
        inside = (inside[:, None, :, None] & ((at >= 0) & (at < extent))[None, :, None, :]).reshape(size)
    return np.where(inside, windows, -1)


@jit(_PARALLEL_FROM)
def _max(x: Any, windows: Any, values: Any, indices: Any) -> None:
    """The largest value of each window and where it is: the first of equals, a NaN before any number."""
    for i in prange(len(x)):
        for p in range(len(windows)):
            best, at = -np.inf, -1
            for index in windows[p]:
                if index >= 0 and (at < 0 or x[i, index] > best or x[i, index] != x[i, index]):
                    best, at = x[i, index], index
            values[i, p], indices[i, p] = best, at


@jit(_PARALLEL_FROM)
def _collect(x: Any, windows: Any, divisors: Any, out: Any) -> None:
    """out[p] = Σ of window p / divisors[p], summed in float64."""
    for i in prange(len(x)):
        for p in range(len(windows)):
            total = 0.0
            for index in windows[p]:
                if index >= 0:
                    total += x[i, index]
            out[i, p] = total / divisors[p]


@jit(_PARALLEL_FROM)
def _spread(x: Any, windows: Any, divisors: Any, g: Any) -> None:
    """The adjoint of `_collect`, into x."""
    for i in prange(len(x)):
        x[i, :] = 0  # here, while it is in cache
        for p in range(len(windows)):
            share = g[i, p] / divisors[p]
            for index in windows[p]:
                if index >= 0:
                    x[i, index] += share


@jit(_PARALLEL_FROM)
def _scatter(x: Any, g: Any, indices: Any) -> None:
    """Zeros, and then x[indices[p]] += g[p] in each plane."""
    for i in prange(len(x)):
        x[i, :] = 0
        for p in range(g.shape[1]):
            x[i, indices[i, p]] += g[i, p]


def max_pool(x: Any, kernel: Extents, stride: Extents, padding: Extents) -> tuple[Any, Any]:
    """x (N, C, *S) → the largest value of each window and its flat index in the plane, both (N, C, *O)."""
    space, how = x.shape[2:], (kernel, stride, padding)
    shape = *x.shape[:2], *counts(space, *how)
    planes = _planes(x)
    values, indices = np.empty(shape, planes.dtype), np.empty(shape, np.int64)
    if _blocks.cover(space, *how):
        _blocks.max_blocks(_images(planes, space), *(_images(_planes(a), shape[2:]) for a in (values, indices)))
    else:
        _max(planes, _windows(space, *how), _planes(values), _planes(indices))
    return values.astype(x.dtype, copy=False), indices


def pool_gather(x: Any, indices: Any) -> Any:
    """out[n, c, p] = x[n, c, indices[n, c, p]], with flat indices into each plane."""
    planes, places = (a.reshape(*a.shape[:2], math.prod(a.shape[2:])) for a in (x, indices))
    return np.take_along_axis(planes, places, 2).reshape(indices.shape)


@np.errstate(all="ignore")
def pool_scatter(g: Any, indices: Any, input_shape: Extents, windows: Windows) -> Any:
    """The adjoint of `pool_gather`: zeros of the planes `input_shape`, with every g[n, c, p] added at its index.

    `windows` (kernel, stride, padding) say which g may belong to a pixel, for devices where each pixel looks for them.
    """
    planes = _planes(g)
    out = np.empty((*g.shape[:2], *input_shape), planes.dtype)
    _scatter(_planes(out), planes, np.ascontiguousarray(indices).reshape(planes.shape))
    return out.astype(g.dtype, copy=False)


def avg_pool(x: Any, kernel: Extents, stride: Extents, padding: Extents, count_include_pad: bool) -> Any:
    """x (N, C, *S) → the mean of each window (N, C, *O), padding counted as zeros or not at all."""
    return _pooled(x, (kernel, stride, padding), count_include_pad)


def avg_pool_grad(
    g: Any, input_shape: Extents, kernel: Extents, stride: Extents, padding: Extents, count_include_pad: bool
) -> Any:
    """The adjoint of `avg_pool`: g (N, C, *O) → (N, C, *input_shape)."""
    return _unpooled(g, input_shape, (kernel, stride, padding), count_include_pad)


def upsample_nearest(x: Any, scale: Extents) -> Any:
    """x (N, C, *S) → (N, C, *S·scale): every pixel becomes a block. The blocks are the windows of a pooling."""
    space = tuple(s * f for s, f in zip(x.shape[2:], scale, strict=True))
    return _unpooled(x, space, (scale, scale, (0,) * len(scale)), None)


def upsample_nearest_grad(g: Any, scale: Extents) -> Any:
    """The adjoint of `upsample_nearest`: the sum of each block."""
    return _pooled(g, (scale, scale, (0,) * len(scale)), None)


@np.errstate(all="ignore")
def _pooled(x: Any, how: Windows, count_include_pad: bool | None) -> Any:
    space = x.shape[2:]
    planes, output = _planes(x), counts(space, *how)
    out = np.empty((*x.shape[:2], *output), planes.dtype)
    if _blocks.cover(space, *how):
        divisor = 1.0 if count_include_pad is None else 4.0
        _blocks.sum_blocks(_images(planes, space), _images(_planes(out), output), divisor)
    else:
        windows = _windows(space, *how)
        _collect(planes, windows, _divisors(windows, count_include_pad), _planes(out))
    return out.astype(x.dtype, copy=False)


@np.errstate(all="ignore")
def _unpooled(g: Any, space: Extents, how: Windows, count_include_pad: bool | None) -> Any:
    planes = _planes(g)
    out = np.empty((*g.shape[:2], *space), planes.dtype)
    if _blocks.cover(space, *how):
        divisor = 1.0 if count_include_pad is None else 4.0
        _blocks.deal_blocks(_images(_planes(out), space), _images(planes, g.shape[2:]), divisor)
    else:
        windows = _windows(space, *how)
        _spread(_planes(out), windows, _divisors(windows, count_include_pad), planes)
    return out.astype(g.dtype, copy=False)


def _divisors(windows: Any, count_include_pad: bool | None) -> Any:
    """The number of pixels of each window, with its padding or without; None: 1."""
    if count_include_pad is None:
        return np.ones(len(windows))
    return (windows >= (-1 if count_include_pad else 0)).sum(1).astype(np.float64)


def _planes(x: Any) -> Any:
    """(N, C, *S) → (N·C, S), in a dtype that can be computed in."""
    dtype = np.float32 if x.dtype == np.float16 else x.dtype
    return np.ascontiguousarray(x, dtype).reshape(x.shape[0] * x.shape[1], math.prod(x.shape[2:]))


def _images(planes: Any, space: Extents) -> Any:
    return planes.reshape(len(planes), *space)
