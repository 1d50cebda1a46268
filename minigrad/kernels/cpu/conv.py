"""Convolution in any number of dimensions, its input gradient and its weight gradient: three products of matrices.

All three run on one micro-kernel (`_tile`), which takes the left matrix from where two tables of offsets point, one
for its rows and one for its columns. An image that lies channels-last, with its padding, is such a matrix as it is: its
columns, which overlap, are never written out. The right matrix lies in panels as wide as a tile.

- Convolution: rows are output pixels, columns are (tap, channel); on the right stand the filters.
- Input gradient: the same for each phase, the input pixels of equal index modulo the stride, with the image of the
  output gradient and those taps that reach the phase.
- Weight gradient: rows are (tap, channel), columns are output pixels; on the right stands the output gradient.

What the number of dimensions, strides, padding and dilation amount to is in the tables alone (`_Tables`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _scratch, _tile
from minigrad.kernels.cpu._jit import helper, jit, num_threads

Extents = tuple[int, ...]

#: Bytes of images and sums that a thread works on at a time: they stay in its own cache, beside a panel of filters.
_NEAR = 160 * 2**10
#: The same where all threads share the images.
_SHARED = 640 * 2**10
#: Columns multiplied at a time, for the same reason; sums of blocks are also more accurate.
_DEPTH = 1024
#: Numbers in the output, for the weight gradient in the upstream one, from which a second thread pays.
_PARALLEL_FROM = 2**14


class _Tables(NamedTuple):
    """Where products of matrices find and leave their numbers, for as many images as are laid out at a time."""

    image: int  # numbers in a padded image, channels last
    inside: Any  # of each pixel, its offset in the padded image
    rows: Any  # of each row, its offset in the images: (tiles, rows of a tile)
    columns: Any  # of each column, its offset from there
    parts: Any  # of the products, in turn: (first tile, behind the last one, first column, behind the last one)
    place: Any  # of each pixel of each image, where its row of the product begins
    right: Any  # of each number of a filter or pixel of an output, where its row of the right matrix begins


def _all_sums(terms: Iterable[Any]) -> Any:
    """The sums of one element of each of some vectors, in the order of memory."""
    return functools.reduce(lambda sums, term: (sums[:, None] + term).ravel(), terms, np.zeros(1, np.int64))


def _pitches(extents: Iterable[int], channels: int = 1) -> list[int]:
    """Along each axis, from one pixel to the next: how many numbers."""
    return [math.prod(rest) * channels for rest in _tails(tuple(extents))]


def _tails(extents: Extents) -> list[Extents]:
    return [extents[axis + 1 :] for axis in range(len(extents))]


def _tables(count: int, image: int, inside: Any, products: Any, channels: int, bits: int) -> _Tables:
    """Tables for products given as (pixels, their offsets, taps, their offsets), each pixel and tap in one of them."""
    height, width = _tile.shape(bits)
    pixels = sum(len(where) for where, *_ in products)
    images = max(1, min(count, _NEAR * 8 // bits // (image + pixels * width)))
    images = math.ceil(count / math.ceil(count / images))
    rows, columns, parts, filters = [], [], [], np.empty(sum(len(taps) for *_, taps, _ in products), np.int64)
    place, tiles, depth = np.empty((images, pixels), np.int64), 0, 0
    for where, starts, taps, steps in products:
        found = _all_sums([np.arange(images) * image, starts])
        place[:, where] = (tiles * height + np.arange(found.size).reshape(images, -1)) * width
        rows.append(_whole_tiles(found, height))
        columns.append(_all_sums([steps, np.arange(channels)]))
        filters[taps] = (depth + np.arange(len(taps)) * channels) * width
        bottom, end = tiles + len(rows[-1]), depth + columns[-1].size
        parts += [(tiles, bottom, k, min(k + _DEPTH, end)) for k in range(depth, end, _DEPTH)]
        tiles, depth = bottom, end
    every = np.array(parts, np.int64).reshape(-1, 4)
    return _Tables(image, inside, np.concatenate(rows), np.concatenate(columns), every, place, filters)


def _whole_tiles(rows: Any, height: int) -> Any:
    """(tiles, height): the last tile goes on with its last row, whose sums nobody looks at."""
    return rows[np.minimum(np.arange(rows.size + -rows.size % height), rows.size - 1)].reshape(-1, height)


def _windows(
    channels: int, space: Extents, kernel: Extents, stride: Extents, padding: Extents, dilation: Extents
) -> tuple[int, Any, Any, Any]:
    """Numbers in the padded image; in it the offsets of the pixels, of the windows, and of the taps in a window."""
    padded = tuple(s + 2 * p for s, p in zip(space, padding, strict=True))
    pitches = _pitches(padded, channels)
    every = list(zip(space, padded, kernel, stride, padding, dilation, pitches, strict=True))
    return (
        math.prod(padded) * channels,
        _all_sums((p + np.arange(s)) * pitch for s, _, _, _, p, _, pitch in every),
        _all_sums(np.arange(0, size - d * (k - 1), t) * pitch for _, size, k, t, _, d, pitch in every),
        _all_sums(np.arange(k) * d * pitch for _, _, k, _, _, d, pitch in every),
    )


@functools.lru_cache(maxsize=64)
def _forward(count: int, channels: int, groups: int, bits: int, *layout: Extents) -> _Tables:
    """Of the convolution."""
    image, inside, windows, taps = _windows(channels, *layout)
    product = np.arange(windows.size), windows, np.arange(taps.size), taps
    tables = _tables(count, image, inside, [product], channels // groups, bits)
    each_channel = np.arange(channels // groups)[:, None] * _tile.shape(bits)[1]
    return tables._replace(right=(tables.right + each_channel).ravel())


@functools.lru_cache(maxsize=64)
def _backward(count: int, filters: int, groups: int, bits: int, *layout: Extents) -> _Tables:
    """Of the input gradient.

    Along an axis, output o reaches by tap t the input i for which i + p = s·o + d·t. The taps of phase (i + p) mod s
    are those of the same d·t mod s, and o = ⌊(i + p)/s⌋ − ⌊d·t/s⌋. There are zeros around the output where o leaves it.
    """
    axes, before, extents, insides = [], [], [], []
    for size, k, s, p, d in zip(*layout, strict=True):
        at, step = np.arange(size) + p, np.arange(k) * d
        output, reach = (size + 2 * p - step[-1] - 1) // s + 1, step[-1] // s
        before.append(max(0, reach - p // s))
        insides.append(before[-1] + np.arange(output))
        extents.append(max(before[-1] + output, before[-1] + at[-1] // s + 1))
        axes.append([
            (i, at[i] // s + before[-1] - reach, t, reach - step[t] // s)
            for i, t in ((np.flatnonzero(at % s == r), np.flatnonzero(step % s == r)) for r in range(s))
        ])  # fmt: skip
    pitches = [_pitches(e, c) for e, c in ((layout[0], 1), (extents, filters), (layout[1], 1), (extents, filters))]
    phases = itertools.product(*axes)
    products = [
        tuple(
            _all_sums(a * pitch for a, pitch in zip(along, steps, strict=True))
            for along, steps in zip(zip(*phase, strict=True), pitches, strict=True)
        )
        for phase in phases
    ]
    inside = _all_sums(a * pitch for a, pitch in zip(insides, pitches[1], strict=True))
    return _tables(count, math.prod(extents) * filters, inside, products, filters // groups, bits)


@functools.lru_cache(maxsize=64)
def _across(count: int, channels: int, groups: int, bits: int, *layout: Extents) -> _Tables:
    """Of the weight gradient. The rows are sorted by tap: those of a tile lie next to each other."""
    height, width = _tile.shape(bits)
    image, inside, windows, taps = _windows(channels, *layout)
    images = max(1, min(count, _SHARED * 8 // bits // image))
    rows = _all_sums([taps, np.arange(channels // groups)])
    place = np.arange(rows.size).reshape(taps.size, -1).T.ravel() * width
    columns = _all_sums([np.arange(images) * image, windows])
    rows = _whole_tiles(rows, height)
    parts = np.array([(0, len(rows), k, min(k + _DEPTH, columns.size)) for k in range(0, columns.size, _DEPTH)])
    return _Tables(image, inside, rows, columns, parts, place[None], np.arange(windows.size) * width)


@helper
def _channels_last(x: Any, image: Any, inside: Any, planes: Any) -> None:
    """image[inside[s] + c] = x[c, s], by squares that stay in registers and, at the borders, one by one."""
    channels, size = x.shape
    side = planes.size
    right, bottom = size - size % side, channels - channels % side
    for c in range(0, bottom, side):
        for s in range(0, right, side):
            _tile.turn(image[c:], inside[s:], x[c, s:], planes, side)
    for s in range(size):
        pixel = image[inside[s] :]
        for c in range(bottom if s < right else 0, channels):
            pixel[c] = x[c, s]


@helper
def _channels_first(product: Any, place: Any, x: Any, planes: Any) -> None:
    """x[c, s] = product[place[s] + c], by the same squares."""
    channels, size = x.shape
    side = planes.size
    right, bottom = size - size % side, channels - channels % side
    for c in range(0, bottom, side):
        for s in range(0, right, side):
            _tile.turn(x[c, s:], planes, product[c:], place[s:], side)
    for s in range(size):
        row = product[place[s] :]
        for c in range(bottom if s < right else 0, channels):
            x[c, s] = row[c]


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _panels(panels: Any, w: Any, inside: Any, planes: Any) -> None:
    """Panels of each group of filters w (groups, images, filters, pixels): the filters are their channels."""
    groups, images, filters, _ = w.shape
    width, each = panels.shape[2], len(panels) // groups
    for i in prange(len(panels)):
        group, first = np.int64(i) // each, np.int64(i) % each * width
        if first + width > filters:
            panels[i] = 0
        for n in range(images):
            some = w[group, n, first : min(first + width, filters)]
            _channels_last(some, panels[i, n:].reshape(-1), inside, planes[0])


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _multiply(
    out: Any, x: Any, panels: Any, bias: Any, images: Any, products: Any,
    image: int, inside: Any, rows: Any, columns: Any, parts: Any, place: Any, planes: Any, groups: int,
) -> None:  # fmt: skip
    """out[n, k] = bias[k] + the product of x[n] and panel k. Each thread has images and products of its own."""
    count, channels, filters = len(x), x.shape[1] // groups, out.shape[1] // groups
    height, width = rows.shape[1], panels.shape[2]
    each, together = len(panels) // groups, len(place)
    tasks = (count + together - 1) // together * len(panels)
    for thread in prange(len(images)):
        laid, product, sums = images[thread], products[thread], products[thread].reshape(-1, width)
        laid[:] = 0
        first = -1
        for task in range(tasks * thread // len(images), tasks * (thread + 1) // len(images)):
            if first != task // len(panels) * together:
                first = task // len(panels) * together
                for n in range(first, min(first + together, count)):
                    _channels_last(x[n], laid[(n - first) * image :], inside, planes[0])
            panel = task % len(panels)
            group, start = panel // each, panel % each * width
            for i in range(len(sums)):
                for j in range(width):
                    sums[i, j] = bias[panel, j]
            left = laid[group * channels :]
            for part in range(len(parts)):
                steps, right = columns[parts[part, 2] : parts[part, 3]], panels[panel, parts[part, 2] :]
                for i in range(parts[part, 0], parts[part, 1]):
                    if 2 * (filters - start) > width:
                        _tile.tile(sums[i * height :], left, rows[i], steps, right)
                    else:
                        _tile.narrow_tile(sums[i * height :], left, rows[i], steps, right)
            for n in range(first, min(first + together, count)):
                made = out[n, group * filters + start : group * filters + min(start + width, filters)]
                _channels_first(product, place[n - first], made, planes[1])


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _correlate(
    g: Any, x: Any, out: Any, images: Any, panels: Any, products: Any,
    image: int, inside: Any, rows: Any, columns: Any, parts: Any, place: Any, right: Any, planes: Any,
    groups: int, threads: int,
) -> None:  # fmt: skip
    """out[k] = Σ_n the product of x[n] and g[n, k]. Images are laid out by all threads, then used by all."""
    count, channels, filters = len(x), x.shape[1] // groups, g.shape[1] // groups
    height, width, side = rows.shape[1], panels.shape[2], planes.shape[1]
    each, together = len(panels) // groups, columns.size // right.size
    bands, tiles = (x.shape[1] + side - 1) // side, len(panels) * len(rows)
    for first in range(0, count, together):
        here = min(together, count - first)
        for i in prange(here * (bands + len(panels))):
            n, band = np.int64(i) // (bands + len(panels)), np.int64(i) % (bands + len(panels))
            if band < bands:
                some = x[first + n, band * side : min((band + 1) * side, x.shape[1])]
                _channels_last(some, images[n * image + band * side :], inside, planes[0])
            else:
                panel = band - bands
                start = panel // each * filters + panel % each * width
                some = g[first + n, start : min(start + width, (panel // each + 1) * filters)]
                _channels_last(some, panels[panel, n * right.size :].reshape(-1), right, planes[1])
        for thread in prange(threads):
            for part in range(len(parts)):
                k = parts[part, 2]
                steps = columns[k : max(k, min(parts[part, 3], here * right.size))]
                for i in range(tiles * thread // threads, tiles * (thread + 1) // threads):
                    panel, t = i // len(rows), i % len(rows)
                    left = images[panel // each * channels :]
                    if first == k == 0:
                        products[panel, t * height : (t + 1) * height] = 0
                    if 2 * (filters - panel % each * width) > width:
                        _tile.tile(products[panel, t * height :], left, rows[t], steps, panels[panel, k:])
                    else:
                        _tile.narrow_tile(products[panel, t * height :], left, rows[t], steps, panels[panel, k:])
    for i in prange(len(panels)):
        start = np.int64(i) // each * filters + np.int64(i) % each * width
        some = out[start : min(start + width, (np.int64(i) // each + 1) * filters)]
        _channels_first(products[i].reshape(-1), place[0], some, planes[2])


@np.errstate(all="ignore")
def conv(x: Any, w: Any, b: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int) -> Any:
    """out[n, k] = b[k] + Σ_c x[n, c] ⋆ w[k, c]: x (N, C, *S), w (K, C/groups, *k), b (K,) or None → (N, K, *O)."""
    layout = x.shape[2:], w.shape[2:], stride, padding, dilation
    output = tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in zip(*layout, strict=True))
    return _product(_forward, x, w, b, w.shape[0], output, layout, groups, transposed=False)


@np.errstate(all="ignore")
def conv_input_grad(
    g: Any, w: Any, input_shape: Extents, stride: Extents, padding: Extents, dilation: Extents, groups: int
) -> Any:
    """The adjoint of `conv` in x: g (N, K, *O), w (K, C/groups, *k) → (N, C, *input_shape)."""
    layout = tuple(input_shape), w.shape[2:], stride, padding, dilation
    return _product(_backward, g, w, None, w.shape[1] * groups, input_shape, layout, groups, transposed=True)


def _product(
    tables: Any, x: Any, w: Any, b: Any, filters: int, space: Extents, layout: Any, groups: int, transposed: bool
) -> Any:
    """One of the two that multiply by filters, which are those of w or, transposed, its channels."""
    dtype, x, w = x.dtype, _ready(x), _ready(w)
    out = np.empty((len(x), filters, math.prod(space)), x.dtype)
    if out.size:
        bits, width = 8 * x.itemsize, _tile.shape(8 * x.itemsize)[1]
        tables = tables(len(x), x.shape[1], groups, bits, *layout)
        inner, outer, taps = x.shape[1] // groups, filters // groups, math.prod(w.shape[2:])
        panels = groups * math.ceil(outer / width)
        w = w.reshape(groups, *((inner, outer, taps) if transposed else (1, outer, inner * taps)))
        bias = np.zeros((groups, panels // groups * width), x.dtype)
        if b is not None:
            bias[:, :outer] = b.reshape(groups, outer)
        shapes = (
            (panels, taps * inner, width),
            (num_threads(), len(tables.place) * tables.image),
            (num_threads(), tables.rows.size * width),
        )
        with _scratch.Scratch(x.dtype, *shapes) as (filled, images, products):
            _panels(filled, w, tables.right, _planes(width // 2, w.shape[3]))
            x = x.reshape(*x.shape[:2], -1)
            _multiply(
                out, x, filled, bias.reshape(panels, width), images, products, *tables[:6],
                _planes(width // 2, x.shape[2], out.shape[2]), groups,
            )  # fmt: skip
    return out.reshape(*out.shape[:2], *space).astype(dtype, copy=False)


@np.errstate(all="ignore")
def conv_weight_grad(
    g: Any, x: Any, kernel_shape: Extents, stride: Extents, padding: Extents, dilation: Extents, groups: int
) -> Any:
    """The adjoint of `conv` in w: g (N, K, *O), x (N, C, *S) → (K, C/groups, *kernel_shape)."""
    dtype, g, x = g.dtype, _ready(g), _ready(x)
    filters, channels, taps = g.shape[1], x.shape[1] // groups, math.prod(kernel_shape)
    out = np.zeros((filters, channels * taps), g.dtype)
    if len(x):
        bits, width = 8 * x.itemsize, _tile.shape(8 * x.itemsize)[1]
        layout = x.shape[2:], tuple(kernel_shape), stride, padding, dilation
        tables = _across(len(x), x.shape[1], groups, bits, *layout)
        panels = groups * math.ceil(filters // groups / width)
        images = tables.columns.size // tables.right.size
        shapes = (
            (images * tables.image,),
            (panels, images * tables.right.size, width),
            (panels, tables.rows.size, width),
        )
        g, x = g.reshape(*g.shape[:2], -1), x.reshape(*x.shape[:2], -1)
        planes = _planes(width // 2, x.shape[2], g.shape[2], out.shape[1])
        with _scratch.Scratch(x.dtype, *shapes) as (laid, filled, products):
            laid.fill(0)  # the padding, and filters that are not there
            filled.fill(0)
            _correlate(g, x, out, laid, filled, products, *tables, planes, groups, num_threads())
    return out.reshape(filters, channels, *kernel_shape).astype(dtype, copy=False)


@functools.lru_cache(maxsize=64)
def _planes(side: int, *sizes: int) -> Any:
    """Where the planes of as many channels as a square has begin, for planes of these sizes."""
    return np.array(sizes)[:, None] * np.arange(side)


def _ready(x: Any) -> Any:
    """Contiguous, and in a dtype that can be computed in."""
    return np.ascontiguousarray(x, np.float32 if x.dtype == np.float16 else x.dtype)
