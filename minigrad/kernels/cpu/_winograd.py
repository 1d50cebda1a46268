"""Convolution with 3×3 filters and stride 1, in float32, by Winograd's F(2×2, 3×3): 16 multiplications for 36.

Along one axis, two sums of three inputs each, out of four inputs d, with a filter f, are Aᵀ[(G f) ⊙ (Bᵀ d)] with

    Bᵀ = 1  0 −1  0      G = 1  0  0      Aᵀ = 1  1  1  0
         0  1  1  0          ½  ½  ½           0  1 −1 −1
         0 −1  1  0          ½ −½  ½
         0  1  0 −1          0  0  1

Along two axes rows are transformed, and then columns: 16 numbers of a patch of 4×4 pixels times 16 of a filter, summed
over channels, become four pixels. Each of the 16 sums is a product of matrices, (patches, channels) × (channels,
filters), on the micro-kernel (`_tile`). What an input gradient multiplies are turned filters, with their channels for
filters.

The error is that of the direct sum, 0.6 to 1.4 times as large in norm for normally distributed numbers; but it is
relative to the pixels of a patch, not to those under a filter alone. For the same reason an infinity would spread NaN
over its patch, and so sums that are not finite are reported, for the direct kernels to take over.

Source: Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308, section 4.1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from minigrad.kernels.cpu import _panels, _scratch, _tile
from minigrad.kernels.cpu._jit import helper, jit, num_threads

Extents = tuple[int, ...]

#: Bytes of transformed patches that a thread works on at a time: they stay in its own cache, beside those of filters.
_NEAR = 2**19
#: Numbers in the output from which a second thread pays.
_PARALLEL_FROM = 2**14
#: How many must share what is transformed for that to pay: filters a patch, channels a result, and patches a filter.
_CHANNELS, _PATCHES = 48, 128
#: Of 16 transformed numbers, the one that all four pixels take once: where the bias is added.
_MIDDLE = 5


def transform(map: Callable[..., list[Any]], size: int) -> Any:
    """out[i, j] = (M x Mᵀ)[i, j] for x of size × size vectors, half as long as a tile has columns.

    Element (i, j) begins at `at + i · line + j · step`, and likewise for x.
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, x = _tile.arrays(context, builder, signature, values)
        vectors = _tile.Vectors(context, builder, signature.args[0].dtype)

        def place(start: Any, i: int, j: int) -> Any:
            at, line, step = start
            return functools.reduce(builder.add, [at, *[line] * i, *[step] * j])

        rows = [[vectors.load(x.data, place(values[5:], i, j)) for j in range(size)] for i in range(size)]
        rows = [map(builder, *row) for row in rows]
        columns = [map(builder, *column) for column in zip(*rows, strict=True)]
        for j, column in enumerate(columns):
            for i, vector in enumerate(column):
                vectors.store(vector, out.data, place(values[1:4], i, j))
        return context.get_dummy_value()

    def transformed(
        context: Any, out: Any, at: Any, line: Any, step: Any, x: Any, x_at: Any, x_line: Any, x_step: Any
    ) -> Any:
        return types.void(out, *[types.int64] * 3, x, *[types.int64] * 3), codegen

    return intrinsic(transformed)


def _of_patch(b: Any, p: Any, q: Any, r: Any, s: Any) -> list[Any]:
    """Bᵀ."""
    return [b.fsub(p, r), b.fadd(q, r), b.fsub(r, q), b.fsub(q, s)]


def _of_filter(b: Any, p: Any, q: Any, r: Any) -> list[Any]:
    """G."""
    half = ir.Constant(p.type, [0.5] * p.type.count)
    ends, middle = b.fmul(half, b.fadd(p, r)), b.fmul(half, q)
    return [p, b.fadd(ends, middle), b.fsub(ends, middle), r]


def _of_product(b: Any, p: Any, q: Any, r: Any, s: Any) -> list[Any]:
    """Aᵀ."""
    return [b.fadd(p, b.fadd(q, r)), b.fsub(b.fsub(q, r), s)]


transform_patch, _transform_filters = transform(_of_patch, 4), transform(_of_filter, 3)
_back_to_pixels = transform(_of_product, 4)


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _filters(out: Any, panels: Any) -> None:
    """out[p, ξ, c] = the filters of panel p at channel c, transformed, for panels[p, (tap, c)]."""
    _, _, channels, width = out.shape
    step = channels * width
    for i in prange(len(out) * channels):
        made, given, at = out[i // channels].reshape(-1), panels[i // channels].reshape(-1), i % channels * width
        for j in range(at, at + width, width // 2):
            _transform_filters(made, j, 4 * step, step, given, j, 3 * step, step)


@functools.partial(helper, reassociate=True)
def is_finite(x: Any) -> bool:
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] * x.dtype.type(0)
    return bool(total == 0)


@jit(_PARALLEL_FROM, formula=_tile.tile)
def _multiply(
    out: Any, x: Any, filters: Any, bias: Any, images: Any, patches: Any, sums: Any, products: Any, finite: Any,
    image: int, line: int, inside: Any, corners: Any, borders: Any, place: Any, rows: Any, steps: Any, planes: Any,
) -> None:  # fmt: skip
    """out[n, k] = bias[k] + x[n] ⋆ filter k. Each thread has images, and what becomes of them, of its own.

    The work is cut into bands of some images, or of some lines of one, times the panels of filters.
    """
    count, channels, height, width = len(x), x.shape[1], rows.size, filters.shape[3]
    tiles, pitch, together, vector = patches.shape[2], patches.shape[3], len(place), width // 2
    panels, bands = len(filters), len(corners)
    tasks = (count + together - 1) // together * bands * panels
    for thread in prange(len(images)):
        laid, patch, total = images[thread], patches[thread].reshape(-1), sums[thread]
        product = products[thread].reshape(-1)
        laid[:] = 0
        patch[:] = 0
        last = last_first = -1
        for task in range(tasks * thread // len(images), tasks * (thread + 1) // len(images)):
            panel, band, first = task % panels, task // panels % bands, task // panels // bands * together
            here = min(together, count - first)
            if first != last_first:
                last_first = first
                for n in range(here):
                    _tile.transpose(laid[n * image :], inside, x[first + n], planes[0])
            if task // panels != last:
                last, step = task // panels, tiles * pitch
                for t in range(corners.shape[1]):
                    for c in range(0, pitch, vector):
                        at = corners[band, t] + c
                        transform_patch(patch, t * pitch + c, 4 * step, step, laid, at, line, channels)
            for i in range(tiles):
                for j in range(width):
                    total[_MIDDLE, i, j] = bias[panel, j]
            for k in range(16):
                for i in range(0, tiles, height):
                    left, right = patch[(k * tiles + i) * pitch :], filters[panel, k]
                    _tile.tile(total[k, i:], left, rows, steps, right, k == _MIDDLE)
            step = tiles * width
            for j in range(0, step, width):
                for c in range(j, j + width, vector):
                    _back_to_pixels(product, 3 * j + c, 2 * width, width, total.reshape(-1), c, 4 * step, step)
            finite[thread] &= is_finite(product)
            low, high = borders[band], borders[band + 1]
            for n in range(here):
                made = out[first + n, panel * width : (panel + 1) * width, low:high]
                _tile.channels_first(product, place[n], made, planes[1])


class Tables(NamedTuple):
    """Where patches and pixels lie, for as many images as are laid out at a time."""

    image: int  # numbers in a padded image, channels last
    line: int  # in a line of it
    inside: Any  # of each pixel, its offset in the padded image
    corners: Any  # (bands, patches): where each patch begins
    borders: Any  # pixels of the output at which the bands begin and end
    place: Any  # (images, pixels of a band): where each begins in a product


@functools.lru_cache(maxsize=64)
def tables(count: int, channels: int, space: Extents, padding: Extents, width: int, most: int) -> Tables:
    """For about so many bytes of patches. One that leaves the padded image finds zeros there."""
    made = [size + 2 * p - 2 for size, p in zip(space, padding, strict=True)]
    lines, columns = ((size + 1) // 2 for size in made)
    line = (2 * columns + 2) * channels
    image = (2 * lines + 2) * line
    y, x = (np.arange(size) + p for size, p in zip(space, padding, strict=True))
    inside = (y[:, None] * line + x * channels).ravel()
    near = max(1, most // (16 * 4 * channels * columns))  # lines of patches
    bands = math.ceil(lines / near)
    each, together = math.ceil(lines / bands), max(1, min(count, near // lines))
    together = math.ceil(count / math.ceil(count / together))
    first = np.minimum(np.arange(bands)[:, None] * each + np.arange(each), lines - 1) * 2 * line
    corners = np.arange(together)[:, None, None] * image + first[:, None, :, None] + np.arange(columns) * 2 * channels
    y, x = np.arange(2 * each)[:, None], np.arange(made[1])
    pixel = ((y // 2 * columns + x // 2) * 4 + y % 2 * 2 + x % 2).ravel()
    place = (np.arange(together)[:, None] * each * columns * 4 + pixel) * width
    borders = np.minimum(np.arange(bands + 1) * 2 * each, made[0]) * made[1]
    return Tables(image, line, inside, corners.reshape(bands, -1), borders, place)


def pays(out: Any, x: Any, kernel: Extents, stride: Extents, padding: Extents, dilation: Extents, groups: int) -> bool:
    """Is it a convolution that can be computed this way, and is that faster?"""
    if x.dtype != np.float32 or kernel != (3, 3) or {*stride, *dilation, groups} != {1} or max(padding) > 2:
        return False
    patches = math.prod((size + 1) // 2 for size in out.shape[2:])
    return (
        min(x.shape[1], out.shape[1]) >= _CHANNELS
        and len(x) * patches >= _PATCHES
        and 16 * patches <= 5 * math.prod(out.shape[2:])  # what patches compute outside of the image is lost
        and not _tile.PLAIN
    )


def _by_taps(w: Any, width: int, adjoint: bool) -> tuple[Any, Any]:
    """The filters as `_panels` takes them, and the places where steps of a panel are sorted by (tap, channel)."""
    if adjoint:  # turned by half a turn; their own filters are the channels
        return w.reshape(1, *w.shape[:2], 9), (8 - np.arange(9)) * len(w) * width
    channels = w.shape[1]
    return w.reshape(1, 1, len(w), -1), (np.arange(9) * channels + np.arange(channels)[:, None]).ravel() * width


def convolve(
    out: Any, x: Any, w: Any, b: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int,
    adjoint: bool = False,
) -> bool:  # fmt: skip
    """out[n, k] = b[k] + x[n] ⋆ w[k]; as `adjoint`, the input gradient `out` for the upstream gradient x.

    False, with anything in `out`, where another way is faster, or where a number in between was not finite.
    """
    if not pays(out, x, w.shape[2:], stride, padding, dilation, groups):
        return False
    count, channels, filters = len(x), x.shape[1], out.shape[1]
    height, width = _tile.shape(32)
    padding = tuple(2 - p for p in padding) if adjoint else padding
    panels, pitch = math.ceil(filters / width), channels + -channels % (width // 2)
    image, line, inside, corners, borders, place = tables(count, channels, x.shape[2:], padding, width, _NEAR)
    tiles, threads = corners.shape[1] + -corners.shape[1] % height, num_threads()
    bias = np.zeros((panels, width), x.dtype)
    if b is not None:
        bias.reshape(-1)[:filters] = b
    shapes = (
        (panels, 9 * channels, width),
        (panels, 16, channels, width),
        (threads, len(place) * image + width),
        (threads, 16, tiles, pitch),
        (threads, 16, tiles, width),
        (threads, 4 * tiles, width),
    )
    finite = np.ones(threads, bool)
    x, out = x.reshape(count, channels, -1), out.reshape(count, filters, -1)
    rows, steps = np.arange(height) * pitch, np.arange(channels)
    planes = _panels.planes(width // 2, x.shape[2], out.shape[2])
    with _scratch.Scratch(x.dtype, *shapes) as (right, transformed, images, patches, sums, products):
        _panels.fill(right, *_by_taps(w, width, adjoint))
        _filters(transformed, right)
        _multiply(
            out, x, transformed, bias, images, patches, sums, products, finite,
            image, line, inside, corners, borders, place, rows, steps, planes,
        )  # fmt: skip
    return bool(finite.all())
