"""Convolution in any number of dimensions, and both gradients, as products that gather from the image as they go.

Three arrays and two tables. A pixel of the output and a tap of the filters meet at a value of the image, whose place is
the sum of what two tables say; the same tables say where the pixel lies in the output, and the tap in the filters. So
forward is output = filters · image, and the weight gradient filters = output · imageᵀ. The input gradient is forward
once more, with the output's gradient in the place of the image, and other tables. With strides there are several
phases of it: input pixels that leave another rest when divided by the stride meet other taps.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from minigrad.kernels.cuda._numba import QUAD
from minigrad.kernels.cuda.array import Array, Shape, cast, contiguous, empty, row_major
from minigrad.kernels.cuda.gemm import HEAD, ROWS, TILES, Plan, Side, plan, tiled
from minigrad.kernels.cuda.launch import helper

# In the layout: the number of groups; steps from filter to filter, channel to channel of the output, image to image,
# output to output; from group to group in all three; guards and extents; then the phases; then the tables.
_GROUPS, _FILTER, _CHANNEL, _IMAGE, _OUT = HEAD, HEAD + 1, HEAD + 2, HEAD + 3, HEAD + 4
_FILTER_GROUP, _IMAGE_GROUP, _OUT_GROUP, _GUARD, _EXTENTS = HEAD + 5, HEAD + 6, HEAD + 7, HEAD + 8, HEAD + 9
_PHASES = HEAD + 10
_PHASE = 7  # words: columns and depth of the product; pixels of an image, with their `_reciprocal`; where tables begin
_ENTRY = 3  # words: place in the image, packed coordinates there, place in the output or in the filters

# In registers: the same of the block's phase, and where its group begins in the three arrays.
_PIXELS, _MAGIC, _SHIFT, _FIRST_PIXEL, _FIRST_TAP, _FILTERS_AT, _IMAGE_AT, _OUT_AT, _S_GUARD, _S_EXTENTS = range(4, 14)


@helper
def _begin(layout: Any, z: Any) -> Any:
    phase = np.uint32(z // layout[_GROUPS])
    group = np.uint32(z - np.uint32(phase * layout[_GROUPS]))
    at = np.uint32(np.uint32(phase * np.uint32(_PHASE)) + np.uint32(_PHASES))
    return (
        layout[ROWS], layout[at], layout[at + np.uint32(1)], np.uint32(group * layout[ROWS]),
        layout[at + np.uint32(2)], layout[at + np.uint32(3)], layout[at + np.uint32(4)],
        layout[at + np.uint32(5)], layout[at + np.uint32(6)],
        np.uint32(group * layout[_FILTER_GROUP]), np.uint32(group * layout[_IMAGE_GROUP]),
        np.uint32(group * layout[_OUT_GROUP]), layout[_GUARD], layout[_EXTENTS],
    )  # fmt: skip


@helper
def _pixel(s: Any, j: Any) -> Any:
    """Of pixel j of all images, the image and the table's entry."""
    high = np.uint64(j) * np.uint64(s[_MAGIC]) >> np.uint64(32)
    image = np.uint32((high + np.uint64(j)) >> np.uint64(s[_SHIFT]))
    pixel = np.uint32(j - np.uint32(image * s[_PIXELS]))
    return image, np.uint32(s[_FIRST_PIXEL] + np.uint32(pixel * np.uint32(_ENTRY)))


@helper
def _tap(s: Any, k: Any) -> Any:
    return np.uint32(s[_FIRST_TAP] + np.uint32(k * np.uint32(_ENTRY)))


@helper
def _image_pixel(layout: Any, s: Any, j: Any) -> Any:
    image, at = _pixel(s, j)
    place = np.uint32(np.uint32(s[_IMAGE_AT] + np.uint32(image * layout[_IMAGE])) + layout[at])
    return place, layout[np.uint32(at + np.uint32(1))]


@helper
def _image_tap(layout: Any, s: Any, k: Any) -> Any:
    at = _tap(s, k)
    return layout[at], layout[np.uint32(at + np.uint32(1))]


@helper
def _inside(s: Any, outer: Any, u: Any, inner: Any) -> Any:
    """Is every coordinate 0 or above, and below the image's extent?

    All coordinates are packed in one number, in fields whose highest bit is set from 0 on (`_fields`). With the extents
    subtracted, it must be clear.
    """
    coordinates = np.uint32(outer[u, 1] + inner[1])
    beyond = np.uint32(coordinates - s[_S_EXTENTS])
    return coordinates & (beyond ^ s[_S_GUARD]) & s[_S_GUARD] == s[_S_GUARD]


@helper
def _filter_row(layout: Any, s: Any, i: Any) -> Any:
    return (np.uint32(s[_FILTERS_AT] + np.uint32(i * layout[_FILTER])),)


@helper
def _filter_tap(layout: Any, s: Any, k: Any) -> Any:
    return (layout[np.uint32(_tap(s, k) + np.uint32(2))],)


@helper
def _out_row(layout: Any, s: Any, i: Any) -> Any:
    return (np.uint32(s[_OUT_AT] + np.uint32(i * layout[_CHANNEL])),)


@helper
def _out_pixel(layout: Any, s: Any, j: Any) -> Any:
    image, at = _pixel(s, j)
    return (np.uint32(np.uint32(image * layout[_OUT]) + layout[np.uint32(at + np.uint32(2))]),)


_FILTERS = Side(_filter_row, _filter_tap, along=True)
_COLUMNS = Side(_image_pixel, _image_tap, along=False, words=2, inside=_inside)
_UPSTREAM = Side(_out_row, _out_pixel, along=True)
_ROWS = Side(_image_tap, _image_pixel, along=True, words=2, inside=_inside)

_KERNELS = {
    (use, tile, quads): tiled(
        f"{use}.{tile.rows}x{tile.columns}{'.quads' * quads}", tile.floats, tile, _begin,
        a._replace(quads=quads), b, row, column, bias_per_row=True,
    )
    for use, a, b, row, column in (
        ("conv", _FILTERS, _COLUMNS, _out_row, _out_pixel),
        ("conv_weight_grad", _UPSTREAM, _ROWS, _filter_row, _filter_tap),
    )
    for tile, quads in itertools.product(TILES, (False, True))
}  # fmt: skip


# Where pixels and taps meet ------------------------------------------------------------------------------------------


class _Sizes(NamedTuple):
    """Of a convolution x ⋆ w; filters and channels are those of one group."""

    images: int
    filters: int
    channels: int
    space: Shape
    output: Shape
    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int


class _Axis(NamedTuple):
    """In one dimension, the numbers of pixels and taps, and the two terms of where in the image they meet."""

    pixels: Any
    pixels_at: Any
    taps: Any
    taps_at: Any


def _forward(space: int, output: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Axis]:
    """Output pixel o meets tap t at input pixel (stride · o − padding) + dilation · t."""
    o, t = np.arange(output), np.arange(kernel)
    return [_Axis(o, stride * o - padding, t, dilation * t)]


def _adjoint(space: int, output: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Axis]:
    """Input pixel i meets tap t at output pixel (i + padding − dilation · t) / stride, if the two leave one rest."""
    i, t = np.arange(space) + padding, np.arange(kernel) * dilation
    met = [((i % stride == rest).nonzero()[0], (t % stride == rest).nonzero()[0]) for rest in range(stride)]
    return [_Axis(p, i[p] // stride, k, -(t[k] // stride)) for p, k in met]


def _reciprocal(n: int) -> tuple[int, int]:
    """(m, s) with j // n = ((j · m >> 32) + j) >> s for 0 ≤ j < 2³². Granlund and Montgomery, PLDI 1994, figure 4.1."""
    shift = (n - 1).bit_length()
    return ((1 << shift) - n << 32) // n + 1, shift


def _sums(terms: Any, factors: Any) -> Any:
    """Σ terms[d][i_d] · factors[d] for all indices i, in the order of memory."""
    total = np.zeros(1, np.int64)
    for term, factor in zip(terms, factors, strict=True):
        total = (total[:, None] + term * factor).ravel()
    return total


def _fields(axes: list[list[_Axis]], extents: Shape) -> tuple[list[int], int, int]:
    """Packed coordinates: what a unit of each is worth; zero in all of them; the image's extents.

    A field of w bits holds a coordinate + 2ʷ⁻¹, also less the image's extent.
    """
    units, zero, packed, unit = [], 0, 0, 1
    for phases, extent in zip(axes, extents, strict=True):
        met = [(axis.pixels_at, axis.taps_at) for axis in phases if axis.pixels.size and axis.taps.size]
        lowest = min((int(p.min() + t.min()) for p, t in met), default=0)
        highest = max((int(p.max() + t.max()) for p, t in met), default=0)
        half = 1 << max(highest, extent - lowest).bit_length()
        units.append(unit)
        zero += half * unit
        packed += extent * unit
        unit *= 2 * half
    if unit > 1 << 32:
        raise ValueError(f"convolution on device 'cuda': images of extents {extents}, padded, have too many pixels")
    return units, zero, packed


@functools.lru_cache(maxsize=1024)
def _plan(use: str, sizes: _Sizes, dtype: Any, biased: bool, aligned: bool) -> Plan:
    images, filters, channels, space, output, kernel, *steps, groups = sizes
    taps = math.prod(kernel)
    if adjoint := use == "conv_input_grad":
        rows, depth, image, out, row_step, channel_step = channels, filters, output, space, taps, channels * taps
    else:
        rows, depth, image, out, row_step, channel_step = filters, channels, space, output, channels * taps, taps
    along = zip(space, output, kernel, *steps, strict=True)
    axes = [_adjoint(*numbers) if adjoint else _forward(*numbers) for numbers in along]
    units, zero, extents = _fields(axes, image)
    phases = list(itertools.product(*axes))
    to_image, to_out, to_tap = row_major(image), row_major(out), row_major(kernel)
    area, channel = math.prod(image), np.arange(depth)[:, None]
    records, tables, end = [], [], _PHASES + _PHASE * len(phases)
    for phase in phases:
        pixel, pixel_at, tap, tap_at = zip(*phase, strict=True)
        pixels = _sums(pixel_at, to_image), zero + _sums(pixel_at, units), _sums(pixel, to_out)
        places, numbers = channel * area + _sums(tap_at, to_image), channel * channel_step + _sums(tap, to_tap)
        met = places, np.broadcast_to(_sums(tap_at, units), places.shape), numbers
        count = pixels[0].size
        reciprocal = _reciprocal(max(1, count))
        records.append([images * count, places.size, count, *reciprocal, end, end + _ENTRY * count])
        tables += [np.stack(pixels, -1).ravel(), np.stack(met, -1).ravel()]
        end += sum(table.size for table in tables[-2:])
    if use == "conv_weight_grad":
        records = [[inner, columns, *rest] for columns, inner, *rest in records]
    group = filters * channels * taps, depth * area, rows * math.prod(out)
    head = groups, row_step, math.prod(out), groups * group[1], groups * group[2], *group, zero, extents
    rest = np.concatenate([head, np.ravel(records), *tables]).astype(np.uint32)
    columns, inner = (max(record[word] for record in records) for word in (0, 1))
    arrays = groups * group[0], groups * images * group[1], groups * images * group[2]
    made = arrays[0 if use == "conv_weight_grad" else 2]
    run = taps * channels if use == "conv" else math.prod(output)  # neighbours along k in the filters, or in the output
    quads = aligned and not adjoint and run % QUAD == 0
    kernels = {tile: _KERNELS["conv" if adjoint else use, tile, quads] for tile in TILES}
    return plan(kernels, rows, columns, inner, groups * len(phases), made, max(arrays), dtype, biased, rest)


# The convolution and its adjoints ------------------------------------------------------------------------------------


def conv(x: Array, w: Array, b: Array | None, stride: Shape, padding: Shape, dilation: Shape, groups: int) -> Array:
    """out[n, k] = b[k] + Σ_c x[n, c] ⋆ w[k, c]: x (N, C, *S), w (K, C/groups, *k), b (K,) or None → (N, K, *O)."""
    every = zip(x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    output = tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in every)
    out = x.shape[0], w.shape[0], *output
    return _made("conv", out, w, x, b, (x.shape, out, w.shape), (stride, padding, dilation, groups))


def conv_input_grad(
    g: Array, w: Array, input_shape: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int
) -> Array:
    """The adjoint of `conv` in x: g (N, K, *O), w (K, C/groups, *k) → (N, C, *input_shape)."""
    out = g.shape[0], w.shape[1] * groups, *input_shape
    return _made("conv_input_grad", out, w, g, None, (out, g.shape, w.shape), (stride, padding, dilation, groups))


def conv_weight_grad(
    g: Array, x: Array, kernel_shape: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int
) -> Array:
    """The adjoint of `conv` in w: g (N, K, *O), x (N, C, *S) → (K, C/groups, *kernel_shape)."""
    out = g.shape[1], x.shape[1] // groups, *kernel_shape
    return _made("conv_weight_grad", out, g, x, None, (x.shape, g.shape, out), (stride, padding, dilation, groups))


def _made(use: str, out: Shape, a: Array, b: Array, bias: Array | None, shapes: Any, steps: Any) -> Array:
    """The product of a and b that a use asks for; `shapes` of image, output and filters."""
    image, output, filters = shapes
    sizes = _Sizes(image[0], filters[0] // steps[-1], filters[1], image[2:], output[2:], filters[2:], *steps)
    dtype = np.dtype(np.float32) if a.dtype == np.float16 else a.dtype
    ready = [contiguous(cast(x, dtype)) for x in (a, b, bias) if x is not None]
    launch = _plan(use, sizes, dtype, bias is not None, ready[0].is_aligned)
    return cast(launch(empty(out, dtype), *ready), a.dtype)
