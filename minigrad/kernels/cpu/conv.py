"""Convolution in any number of dimensions, its input gradient and its weight gradient: columns times filters.

Inside, an image is channels-last and already padded, so that the values under one row of a filter are contiguous and
no border is ever tested. Where output pixels, filter taps and input pixels lie in it are three tables of offsets
(`_geometry`): they are all that the number of dimensions, strides, padding and dilation amount to.
The multiplications are BLAS's, on a few MiB of columns at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import jit

Extents = tuple[int, ...]

#: Columns made at a time, in numbers: 8 MiB of float32. BLAS and the kernels hand over once per chunk, which costs
#: about 0.3 ms on few cores; more columns than this fall out of the cache.
_CHUNK = 2**21
#: Fewest columns worth a matrix product.
_FEWEST = 256
#: Numbers from which a second thread pays, though it may have to wake up while BLAS's threads still spin.
_PARALLEL_FROM = 2**18
#: Channels and pixels that change places at a time. Planes of a power of two in size put all channels of a pixel in one
#: set of the cache, which has room for at least eight.
_CHANNELS, _PIXELS = 8, 64
#: Channels that one thread folds at a time.
_BAND = 64


class _Geometry(NamedTuple):
    image: Extents  # the padded image, channels last
    output: Extents
    inside: Any  # of each input pixel, its offset in the padded image
    pixels: Any  # of each output pixel, the offset of its first input value
    taps: Any  # of each filter tap, its offset from there
    spans: Any  # the same for runs of taps whose values are contiguous


@functools.lru_cache(maxsize=32)
def _geometry(
    space: Extents, kernel: Extents, stride: Extents, padding: Extents, dilation: Extents, channels: int, groups: int
) -> _Geometry:
    padded = tuple(s + 2 * p for s, p in zip(space, padding, strict=True))
    output = tuple((s - d * (k - 1) - 1) // t + 1 for s, k, t, d in zip(padded, kernel, stride, dilation, strict=True))
    pitch = [math.prod(padded[axis + 1 :]) * channels for axis in range(len(space))]
    taps = _offsets(kernel, [d * step for d, step in zip(dilation, pitch, strict=True)])
    return _Geometry(
        (*padded, channels),
        output,
        _offsets(space, pitch) + sum(p * step for p, step in zip(padding, pitch, strict=True)),
        _offsets(output, [t * step for t, step in zip(stride, pitch, strict=True)]),
        taps,
        taps[:: kernel[-1]].copy() if dilation[-1] == groups == 1 else taps,
    )


def _offsets(counts: Extents, steps: list[int]) -> Any:
    """Σ iₐ·stepₐ of all indices i below `counts`, in the order of memory."""
    offsets = np.zeros(1, np.int64)
    for count, step in zip(counts, steps, strict=True):
        offsets = (offsets[:, None] + np.arange(count) * step).ravel()
    return offsets


# In the kernels an open slice such as `images[n, offset:]` tells the compiler that the indices from there on are not
# negative: the loop over it becomes a vector copy, five times faster than with the offset inside the index.


@jit(_PARALLEL_FROM)
def _channels_last(x: Any, images: Any, inside: Any) -> None:
    """images[n, inside[s] + c] = x[n, c, s], by tiles that stay in the nearest cache."""
    count, channels, size = x.shape
    tiles = (size + _PIXELS - 1) // _PIXELS
    for i in prange(count * tiles):
        n, start = np.int64(i) // tiles, np.int64(i) % tiles * _PIXELS
        for first in range(0, channels, _CHANNELS):
            for s in range(start, min(start + _PIXELS, size)):
                pixel = images[n, inside[s] :]
                for c in range(first, min(first + _CHANNELS, channels)):
                    pixel[c] = x[n, c, s]


@jit(_PARALLEL_FROM)
def _channels_first(x: Any, images: Any, inside: Any) -> None:
    """x[n, c, s] = images[n, inside[s] + c], by the same tiles."""
    count, channels, size = x.shape
    tiles = (size + _PIXELS - 1) // _PIXELS
    for i in prange(count * tiles):
        n, start = np.int64(i) // tiles, np.int64(i) % tiles * _PIXELS
        for first in range(0, channels, _CHANNELS):
            for s in range(start, min(start + _PIXELS, size)):
                pixel = images[n, inside[s] :]
                for c in range(first, min(first + _CHANNELS, channels)):
                    x[n, c, s] = pixel[c]


@jit(_PARALLEL_FROM)
def _unfold(columns: Any, images: Any, pixels: Any, spans: Any, channels: int) -> None:
    """columns[group, n, p, t, :] = the values of the group's channels under span t of the filter at output pixel p."""
    groups, count, size, _, width = columns.shape
    for i in prange(count * size):
        n, p = np.int64(i) // size, np.int64(i) % size
        for group in range(groups):
            for t in range(spans.size):
                values = images[n, pixels[p] + spans[t] + group * channels :]
                for e in range(width):
                    columns[group, n, p, t, e] = values[e]


@jit(_PARALLEL_FROM)
def _fold(columns: Any, images: Any, pixels: Any, taps: Any) -> None:
    """The adjoint of `_unfold`, added to images. No two threads share an image's channel, and the order is fixed."""
    groups, count, size, _, channels = columns.shape
    tiles = (channels + _BAND - 1) // _BAND
    for i in prange(count * groups * tiles):
        n, group, first = np.int64(i) // tiles // groups, np.int64(i) // tiles % groups, np.int64(i) % tiles * _BAND
        for p in range(size):
            for t in range(taps.size):
                values = images[n, pixels[p] + taps[t] + group * channels + first :]
                column = columns[group, n, p, t, first:]
                for c in range(min(_BAND, channels - first)):
                    values[c] += column[c]


@jit(_PARALLEL_FROM)
def _place(product: Any, bias: Any, out: Any, first_image: int, first_pixel: int) -> None:
    """out[n, k, p] = product[k, n, p] + bias[k], for the images and pixels of one chunk."""
    filters, count, size = product.shape
    for i in prange(count * filters):
        n, k = np.int64(i) // filters, np.int64(i) % filters
        row = out[first_image + n, k, first_pixel:]
        for p in range(size):
            row[p] = product[k, n, p] + bias[k]


class _Scratch:
    """Memory that one call uses again for every chunk, since fresh pages are slow. The first chunk is the largest."""

    def __init__(self, dtype: Any):
        self._dtype = dtype
        self._memory: Any = None

    def __call__(self, *shape: int) -> Any:
        if self._memory is None:
            self._memory = np.zeros(math.prod(shape), self._dtype)
        return self._memory[: math.prod(shape)].reshape(shape)


def _chunks(count: int, size: int, height: int) -> Iterator[tuple[slice, slice]]:
    """Cut `count` images of `size` output pixels, each worth `height` numbers: (images, pixels) of each chunk."""
    images = max(1, _CHUNK // (size * height))
    pixels = size if size * height <= _CHUNK else max(_FEWEST, _CHUNK // height)
    for n in range(0, count, images):
        for p in range(0, size, pixels):
            yield slice(n, min(n + images, count)), slice(p, min(p + pixels, size))


@np.errstate(all="ignore")
def conv(x: Any, w: Any, b: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int) -> Any:
    """out[n, k] = b[k] + Σ_c x[n, c] ⋆ w[k, c]: x (N, C, *S), w (K, C/groups, *k), b (K,) or None → (N, K, *O)."""
    dtype, x, w = x.dtype, _ready(x), _ready(w)
    b = np.zeros(len(w), x.dtype) if b is None else _ready(b)
    geometry = _geometry(x.shape[2:], w.shape[2:], stride, padding, dilation, x.shape[1], groups)
    out = np.empty((len(x), len(w), geometry.pixels.size), x.dtype)
    rows, scratch = _rows(w, groups), _Scratch(x.dtype)
    for images, pixels, columns in _columns(x, geometry, groups, len(w)):
        product = scratch(groups, len(w) // groups, columns.shape[1])
        np.matmul(rows, columns.transpose(0, 2, 1), out=product)
        _place(product.reshape(len(w), images.stop - images.start, -1), b, out, images.start, pixels.start)
    return out.reshape(*out.shape[:2], *geometry.output).astype(dtype, copy=False)


@np.errstate(all="ignore")
def conv_input_grad(
    g: Any, w: Any, input_shape: Extents, stride: Extents, padding: Extents, dilation: Extents, groups: int
) -> Any:
    """The adjoint of `conv` in x: g (N, K, *O), w (K, C/groups, *k) → (N, C, *input_shape)."""
    dtype, g, w = g.dtype, _ready(g), _ready(w)
    count, filters, channels = len(g), len(w), w.shape[1] * groups
    geometry = _geometry(input_shape, w.shape[2:], stride, padding, dilation, channels, groups)
    size, taps = geometry.pixels.size, geometry.taps
    g = g.reshape(count, filters, size)
    out = np.empty((count, channels, geometry.inside.size), g.dtype)
    rows, border, upstream, scratch = _rows(w, groups), *(_Scratch(g.dtype) for _ in range(3))
    for images, pixels in _chunks(count, size, groups * rows.shape[2] + filters):
        if pixels.start == 0:
            padded = border(images.stop - images.start, math.prod(geometry.image))
            padded.fill(0)
        left = _upstream(g[images, :, pixels], groups, upstream)
        columns = scratch(groups, left.shape[2], rows.shape[2])
        np.matmul(left.transpose(0, 2, 1), rows, out=columns)
        columns = columns.reshape(groups, len(padded), -1, taps.size, w.shape[1])
        _fold(columns, padded, geometry.pixels[pixels], taps)
        if pixels.stop == size:
            _channels_first(out[images], padded, geometry.inside)
    return out.reshape(count, channels, *input_shape).astype(dtype, copy=False)


@np.errstate(all="ignore")
def conv_weight_grad(
    g: Any, x: Any, kernel_shape: Extents, stride: Extents, padding: Extents, dilation: Extents, groups: int
) -> Any:
    """The adjoint of `conv` in w: g (N, K, *O), x (N, C, *S) → (K, C/groups, *kernel_shape)."""
    dtype, g, x = g.dtype, _ready(g), _ready(x)
    filters, channels = g.shape[1], x.shape[1] // groups
    geometry = _geometry(x.shape[2:], kernel_shape, stride, padding, dilation, x.shape[1], groups)
    g = g.reshape(len(g), filters, geometry.pixels.size)
    total = np.zeros((groups, filters // groups, geometry.taps.size * channels), g.dtype)
    upstream = _Scratch(g.dtype)
    for images, pixels, columns in _columns(x, geometry, groups, filters):
        total += np.matmul(_upstream(g[images, :, pixels], groups, upstream), columns)
    total = total.reshape(filters, -1, channels).transpose(0, 2, 1)
    return np.array(total, dtype, order="C").reshape(filters, channels, *kernel_shape)


def _ready(x: Any) -> Any:
    """Contiguous, and in a dtype that can be computed in."""
    return np.ascontiguousarray(x, np.float32 if x.dtype == np.float16 else x.dtype)


def _rows(w: Any, groups: int) -> Any:
    """The filters as matrices (groups, K/groups, taps · C/groups), channels last as in the columns."""
    return np.ascontiguousarray(np.moveaxis(w, 1, -1)).reshape(groups, len(w) // groups, -1)


def _upstream(g: Any, groups: int, scratch: _Scratch) -> Any:
    """One chunk of g (n, K, p) as matrices (groups, K/groups, n · p)."""
    count, filters, size = g.shape
    turned = scratch(filters, count, size)
    np.copyto(turned, g.transpose(1, 0, 2))
    return turned.reshape(groups, filters // groups, -1)


def _columns(x: Any, geometry: _Geometry, groups: int, filters: int) -> Iterator[tuple[slice, slice, Any]]:
    """For each chunk its images, its pixels and its columns (groups, images · pixels, taps · C/groups)."""
    channels, spans, size = x.shape[1] // groups, geometry.spans, geometry.pixels.size
    height = geometry.taps.size * channels
    x = x.reshape(*x.shape[:2], geometry.inside.size)
    border, scratch = _Scratch(x.dtype), _Scratch(x.dtype)
    for images, pixels in _chunks(len(x), size, groups * height + filters):
        if pixels.start == 0:
            padded = border(images.stop - images.start, math.prod(geometry.image))
            _channels_last(x[images], padded, geometry.inside)
        where = geometry.pixels[pixels]
        columns = scratch(groups, len(padded), where.size, spans.size, height // spans.size)
        _unfold(columns, padded, where, spans, channels)
        yield images, pixels, columns.reshape(groups, -1, height)
