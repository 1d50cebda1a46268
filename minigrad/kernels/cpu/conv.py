"""Convolution in any number of dimensions, its input gradient and its weight gradient: three products of matrices.

All three run on one micro-kernel (`_tile`), which takes the left matrix from where two tables of offsets point, one
for its rows and one for its columns. An image that lies channels-last, with its padding, is such a matrix as it is: its
columns, which overlap, are never written out. The right matrix lies in panels as wide as a tile.

- Convolution: rows are output pixels, columns are (tap, channel); on the right stand the filters.
- Input gradient: the same for each phase, the input pixels of equal index modulo the stride, with the image of the
  output gradient and those taps that reach the phase. Where channels are few, a tile would be mostly empty: then rows
  are output pixels, columns are filters, (channel, tap) stand on the right, and the taps are added up after that.
- Weight gradient: rows are (tap, channel), columns are output pixels; on the right stands the output gradient.

All three go another way where that is faster: with few channels and filters to a group (`_depthwise`), and with filters
three times or twice as long as their stride (`_winograd`, `_winograd_weights`).

What the number of dimensions, strides, padding and dilation amount to is in the tables alone (`_conv_tables`).

Padding is multiplied like any pixel: with a filter of ±∞ or NaN, 0·∞ = NaN reaches the output at the borders, and the
input gradient there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _conv_tables, _depthwise, _panels, _scratch, _tile, _winograd, _winograd_weights
from minigrad.kernels.cpu._jit import jit, num_threads

Extents = tuple[int, ...]

#: Numbers of a product that waits to be added up: what is made by one kernel and used up by the next.
_WAITING = 2**21
#: Numbers in the output, for the weight gradient in the upstream one, from which a second thread pays.
_PARALLEL_FROM = 2**14


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
                    _tile.transpose(laid[(n - first) * image :], inside, x[n], planes[0])
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
                        _tile.tile(sums[i * height :], left, rows[i], steps, right, True)
                    else:
                        _tile.narrow_tile(sums[i * height :], left, rows[i], steps, right, True)
            for n in range(first, min(first + together, count)):
                made = out[n, group * filters + start : group * filters + min(start + width, filters)]
                _tile.channels_first(product, place[n - first], made, planes[1])


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
    for i in prange(together):
        images[np.int64(i) * image : (np.int64(i) + 1) * image] = 0  # the padding
    for first in range(0, count, together):
        here = min(together, count - first)
        for i in prange(here * (bands + len(panels))):
            n, band = np.int64(i) // (bands + len(panels)), np.int64(i) % (bands + len(panels))
            if band < bands:
                some = x[first + n, band * side : min((band + 1) * side, x.shape[1])]
                _tile.transpose(images[n * image + band * side :], inside, some, planes[0])
            else:
                panel = band - bands
                start = panel // each * filters + panel % each * width
                some = g[first + n, start : min(start + width, (panel // each + 1) * filters)]
                _tile.transpose(panels[panel, n * right.size :].reshape(-1), right, some, planes[1])
        for thread in prange(threads):
            for part in range(len(parts)):
                k = parts[part, 2]
                steps = columns[k : max(k, min(parts[part, 3], here * right.size))]
                for i in range(tiles * thread // threads, tiles * (thread + 1) // threads):
                    panel, t = i // len(rows), i % len(rows)
                    left = images[panel // each * channels :]
                    add = first > 0 or k > 0
                    if 2 * (filters - panel % each * width) > width:
                        _tile.tile(products[panel, t * height :], left, rows[t], steps, panels[panel, k:], add)
                    else:
                        _tile.narrow_tile(products[panel, t * height :], left, rows[t], steps, panels[panel, k:], add)
    for i in prange(len(panels)):
        start = np.int64(i) // each * filters + np.int64(i) % each * width
        some = out[start : min(start + width, (np.int64(i) // each + 1) * filters)]
        _tile.channels_first(products[i].reshape(-1), place[0], some, planes[2])


@jit(_PARALLEL_FROM)
def _fold(out: Any, product: Any, planes: Any, inside: Any, windows: Any, taps: Any) -> None:
    """out[n, c] = Σ_t product[n, (c, t)], shifted by tap t. Each thread has a padded plane of its own."""
    size = len(product) * out.shape[1]
    for thread in prange(len(planes)):
        plane = planes[thread]
        for i in range(size * thread // len(planes), size * (thread + 1) // len(planes)):
            n, c = i // out.shape[1], i % out.shape[1]
            plane[:] = 0
            for t in range(taps.size):
                shifted, values = plane[taps[t] :], product[n, c * taps.size + t]
                for p in range(windows.size):
                    shifted[windows[p]] += values[p]
            for s in range(inside.size):
                out[n, c, s] = plane[inside[s]]


@np.errstate(all="ignore")
def conv(x: Any, w: Any, b: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int) -> Any:
    """out[n, k] = b[k] + Σ_c x[n, c] ⋆ w[k, c]: x (N, C, *S), w (K, C/groups, *k), b (K,) or None → (N, K, *O)."""
    dtype, x, w = x.dtype, _ready(x), _ready(w)
    layout = x.shape[2:], w.shape[2:], stride, padding, dilation
    output = ((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in zip(*layout, strict=True))
    out = np.empty((len(x), len(w), *output), x.dtype)
    how = stride, padding, dilation, groups
    if not (_depthwise.convolve(out, x, w, b, *how) or _winograd.convolve(out, x, w, b, *how)):
        _product(out, x, w.reshape(groups, 1, len(w) // groups, -1), b, _conv_tables.forward, layout)
    return out.astype(dtype, copy=False)


@np.errstate(all="ignore")
def conv_input_grad(
    g: Any, w: Any, input_shape: Extents, stride: Extents, padding: Extents, dilation: Extents, groups: int
) -> Any:
    """The adjoint of `conv` in x: g (N, K, *O), w (K, C/groups, *k) → (N, C, *input_shape)."""
    dtype, g, w = g.dtype, _ready(g), _ready(w)
    filters, channels, taps = len(w) // groups, w.shape[1], math.prod(w.shape[2:])
    layout = input_shape, w.shape[2:], stride, padding, dilation
    out = np.empty((len(g), channels * groups, *input_shape), g.dtype)
    how = stride, padding, dilation, groups
    if _depthwise.convolve_back(out, g, w, *how) or _winograd.convolve(out, g, w, None, *how, adjoint=True):
        pass
    elif groups == 1 and channels * taps <= _tile.shape(8 * g.itemsize)[1] and 8 * channels <= filters:
        _few_channels(out, g, w, layout)
    else:
        _product(out, g, w.reshape(groups, filters, channels, taps), None, _conv_tables.backward, layout)
    return out.astype(dtype, copy=False)


def _few_channels(out: Any, g: Any, w: Any, layout: Any) -> None:
    """The input gradient by a product with all taps at once."""
    image, inside, windows, taps = _conv_tables.windows(1, *layout)
    g, w = g.reshape(*g.shape[:2], -1), np.ascontiguousarray(w.reshape(1, 1, len(w), -1).swapaxes(2, 3))
    images = max(num_threads(), _WAITING // (w.shape[2] * g.shape[2]))
    shapes = (min(images, len(g)), w.shape[2], g.shape[2]), (num_threads(), image)
    with _scratch.Scratch(g.dtype, *shapes) as (product, planes):
        for n in range(0, len(g), images):
            part = product[: len(g) - n]
            single = (1,), (1,), (0,), (1,)
            _product(part, g[n : n + images], w, None, _conv_tables.forward, (g.shape[2:], *single))
            _fold(out[n : n + images].reshape(*part.shape[:1], out.shape[1], -1), part, planes, inside, windows, taps)


def _product(out: Any, x: Any, w: Any, b: Any, make_tables: Any, layout: Any) -> None:
    """out[n] = b + the product of x[n] and the filters w, as `_panels` takes them."""
    if out.size:
        groups, filters, width = len(w), w.shape[2], _tile.shape(8 * x.itemsize)[1]
        tables = make_tables(len(x), x.shape[1], groups, 8 * x.itemsize, *layout)
        panels = groups * math.ceil(filters / width)
        bias = np.zeros((groups, panels // groups * width), x.dtype)
        if b is not None:
            bias[:, :filters] = b.reshape(groups, filters)
        shapes = (
            (panels, w.shape[1] * w.shape[3], width),
            (num_threads(), len(tables.place) * tables.image),
            (num_threads(), tables.rows.size * width),
        )
        x, out = x.reshape(*x.shape[:2], -1), out.reshape(*out.shape[:2], -1)
        with _scratch.Scratch(x.dtype, *shapes) as (right, images, products):
            _panels.fill(right, w, tables.right)
            _multiply(
                out, x, right, bias.reshape(panels, width), images, products, *tables[:6],
                _panels.planes(width // 2, x.shape[2], out.shape[2]), groups,
            )  # fmt: skip


@np.errstate(all="ignore")
def conv_weight_grad(
    g: Any, x: Any, kernel_shape: Extents, stride: Extents, padding: Extents, dilation: Extents, groups: int
) -> Any:
    """The adjoint of `conv` in w: g (N, K, *O), x (N, C, *S) → (K, C/groups, *kernel_shape)."""
    dtype, g, x = g.dtype, _ready(g), _ready(x)
    out = np.zeros((g.shape[1], x.shape[1] // groups, *kernel_shape), g.dtype)
    layout = stride, padding, dilation, groups
    if not (out.size and x.size and g.size):  # the sums are empty: no image, or no pixel in it
        pass
    elif not (_depthwise.correlate(out, g, x, *layout) or _winograd_weights.correlate(out, g, x, *layout)):
        _sums_of_images(out, g, x, *layout)
    return out.astype(dtype, copy=False)


def _sums_of_images(
    out: Any, g: Any, x: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int
) -> None:
    """out[k] = Σ_n the product of x[n] and g[n, k]."""
    filters, _, *kernel = out.shape
    bits, width = 8 * x.itemsize, _tile.shape(8 * x.itemsize)[1]
    layout = x.shape[2:], tuple(kernel), stride, padding, dilation
    tables = _conv_tables.across(len(x), x.shape[1], groups, bits, *layout)
    panels = groups * math.ceil(filters // groups / width)
    images = tables.columns.size // tables.right.size
    shapes = (
        (images * tables.image,),
        (panels, images * tables.right.size, width),
        (panels, tables.rows.size, width),
    )
    g, x, out = g.reshape(*g.shape[:2], -1), x.reshape(*x.shape[:2], -1), out.reshape(filters, -1)
    planes = _panels.planes(width // 2, x.shape[2], g.shape[2], out.shape[1])
    with _scratch.Scratch(x.dtype, *shapes) as (laid, filled, products):
        _correlate(g, x, out, laid, filled, products, *tables, planes, groups, num_threads())


def _ready(x: Any) -> Any:
    """Contiguous, and in a dtype that can be computed in."""
    return np.ascontiguousarray(x, np.float32 if x.dtype == np.float16 else x.dtype)
