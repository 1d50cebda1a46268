"""Where the numbers of a convolution lie: all that its dimensions, strides, padding and dilation amount to.

Images lie channels-last, with their padding. There a value under a window is at the offset of the window, that of the
tap, and that of the channel: their sum is looked up in two tables, one for the rows of a product of matrices and one
for its columns (`_tile`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad.kernels.cpu import _tile

Extents = tuple[int, ...]

#: Bytes of images and sums that a thread works on at a time: they stay in its own cache, beside a panel of filters.
_NEAR = 160 * 2**10
#: The same where all threads share the images.
_SHARED = 640 * 2**10
#: Columns multiplied at a time, for the same reason; sums of blocks are also more accurate.
_DEPTH = 1024


class Tables(NamedTuple):
    """Where products of matrices find and leave their numbers, for as many images as are laid out at a time."""

    image: int  # numbers in a padded image, channels last
    inside: Any  # of each pixel, its offset in the padded image
    rows: Any  # of each row, its offset in the images: (tiles, rows of a tile)
    columns: Any  # of each column, its offset from there
    parts: Any  # of the products, in turn: (first tile, behind the last one, first column, behind the last one)
    place: Any  # of each pixel of each image, where its row of the product begins
    right: Any  # of each number of a filter or pixel of an output, where its row of the right matrix begins


def all_sums(terms: Iterable[Any]) -> Any:
    """The sums of one element of each of some vectors, in the order of memory."""
    return functools.reduce(lambda sums, term: (sums[:, None] + term).ravel(), terms, np.zeros(1, np.int64))


def pitches_of(extents: Sequence[int], channels: int = 1) -> list[int]:
    """Along each axis, from one pixel to the next: how many numbers."""
    return [math.prod(extents[axis + 1 :]) * channels for axis in range(len(extents))]


def _tables(count: int, image: int, inside: Any, products: Any, channels: int, bits: int) -> Tables:
    """Tables for products given as (pixels, their offsets, taps, their offsets), each pixel and tap in one of them."""
    height, width = _tile.shape(bits)
    pixels = sum(len(where) for where, *_ in products)
    images = max(1, min(count, _NEAR * 8 // bits // (image + pixels * width)))
    images = math.ceil(count / math.ceil(count / images))
    rows, columns, parts, filters = [], [], [], np.empty(sum(len(taps) for *_, taps, _ in products), np.int64)
    place, tiles, depth = np.empty((images, pixels), np.int64), 0, 0
    for where, starts, taps, steps in products:
        found = all_sums([np.arange(images) * image, starts])
        place[:, where] = (tiles * height + np.arange(found.size).reshape(images, -1)) * width
        rows.append(whole_tiles(found, height))
        columns.append(all_sums([steps, np.arange(channels)]))
        filters[taps] = (depth + np.arange(len(taps)) * channels) * width
        bottom, end = tiles + len(rows[-1]), depth + columns[-1].size
        parts += [(tiles, bottom, k, min(k + _DEPTH, end)) for k in range(depth, end, _DEPTH)]
        tiles, depth = bottom, end
    every = np.array(parts, np.int64).reshape(-1, 4)
    return Tables(image, inside, np.concatenate(rows), np.concatenate(columns), every, place, filters)


def whole_tiles(rows: Any, height: int) -> Any:
    """(tiles, height): the last tile goes on with its last row, whose sums nobody looks at."""
    return rows[np.minimum(np.arange(rows.size + -rows.size % height), rows.size - 1)].reshape(-1, height)


@functools.lru_cache(maxsize=64)
def windows(
    channels: int, space: Extents, kernel: Extents, stride: Extents, padding: Extents, dilation: Extents
) -> tuple[int, Any, Any, Any]:
    """Numbers in the padded image; in it the offsets of the pixels, of the windows, and of the taps in a window."""
    padded = tuple(s + 2 * p for s, p in zip(space, padding, strict=True))
    pitches = pitches_of(padded, channels)
    every = list(zip(space, padded, kernel, stride, padding, dilation, pitches, strict=True))
    return (
        math.prod(padded) * channels,
        all_sums((p + np.arange(s)) * pitch for s, _, _, _, p, _, pitch in every),
        all_sums(np.arange(0, size - d * (k - 1), t) * pitch for _, size, k, t, _, d, pitch in every),
        all_sums(np.arange(k) * d * pitch for _, _, k, _, _, d, pitch in every),
    )


@functools.lru_cache(maxsize=64)
def forward(count: int, channels: int, groups: int, bits: int, *layout: Extents) -> Tables:
    """Of a convolution of `count` images. Layout: the extents of the image, kernel, stride, padding and dilation."""
    image, inside, starts, taps = windows(channels, *layout)
    product = np.arange(starts.size), starts, np.arange(taps.size), taps
    tables = _tables(count, image, inside, [product], channels // groups, bits)
    each_channel = np.arange(channels // groups)[:, None] * _tile.shape(bits)[1]
    return tables._replace(right=(tables.right + each_channel).ravel())


@functools.lru_cache(maxsize=64)
def backward(count: int, filters: int, groups: int, bits: int, *layout: Extents) -> Tables:
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
    pitches = [pitches_of(e, c) for e, c in ((layout[0], 1), (extents, filters), (layout[1], 1), (extents, filters))]
    phases = itertools.product(*axes)
    products = [
        tuple(
            all_sums(a * pitch for a, pitch in zip(along, steps, strict=True))
            for along, steps in zip(zip(*phase, strict=True), pitches, strict=True)
        )
        for phase in phases
    ]
    inside = all_sums(a * pitch for a, pitch in zip(insides, pitches[1], strict=True))
    return _tables(count, math.prod(extents) * filters, inside, products, filters // groups, bits)


@functools.lru_cache(maxsize=64)
def across(count: int, channels: int, groups: int, bits: int, *layout: Extents) -> Tables:
    """Of the weight gradient. The rows are sorted by tap: those of a tile lie next to each other."""
    height, width = _tile.shape(bits)
    image, inside, starts, taps = windows(channels, *layout)
    images = max(1, min(count, _SHARED * 8 // bits // image))
    rows = all_sums([taps, np.arange(channels // groups)])
    place = np.arange(rows.size).reshape(taps.size, -1).T.ravel() * width
    columns = all_sums([np.arange(images) * image, starts])
    rows = whole_tiles(rows, height)
    parts = np.array([(0, len(rows), k, min(k + _DEPTH, columns.size)) for k in range(0, columns.size, _DEPTH)])
    return Tables(image, inside, rows, columns, parts, place[None], np.arange(starts.size) * width)
