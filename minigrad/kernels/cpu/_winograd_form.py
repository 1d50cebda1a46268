"""Winograd's F(2×2, r×r): 2×2 sums of r×r products each, in (r + 1)² multiplications instead of 4 r².

Along one axis, two neighbouring sums of r inputs each, out of r + 1 inputs d, with a filter f, are Aᵀ[(G f) ⊙ (Bᵀ d)].
For r = 3 (16 multiplications for 36) and for r = 2 (9 for 16):

    Bᵀ = 1  0 −1  0      G = 1  0  0      Aᵀ = 1  1  1  0        Bᵀ = 1 −1  0      G = 1  0      Aᵀ = 1  1  0
         0  1  1  0          ½  ½  ½           0  1 −1 −1             0  1  0          1  1           0  1  1
         0 −1  1  0          ½ −½  ½                                  0 −1  1          0  1
         0  1  0 −1          0  0  1

Along two axes rows are transformed, and then columns.

A filter of r·s taps that moves on by s, its stride, does the same in phases: input s q + f, of phase f, meets the taps
of phase f alone. Phases are side by side in a pixel as if they were channels, and then the stride is 1. Of the input
gradient each phase of pixels has sums of its own, of r taps.

Source: Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308, section 4.1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minigrad.kernels.cpu import _tile

Extents = tuple[int, ...]
Map = Callable[..., list[Any]]  # of some vectors: a matrix times them

# The transformations --------------------------------------------------------------------------------------------------


def _transform(map: Map, size: int) -> Any:
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


def _half(b: Any, x: Any) -> Any:
    return b.fmul(ir.Constant(x.type, [0.5] * x.type.count), x)


def _G3(b: Any, p: Any, q: Any, r: Any) -> list[Any]:
    ends, middle = _half(b, b.fadd(p, r)), _half(b, q)
    return [p, b.fadd(ends, middle), b.fsub(ends, middle), r]


def _G3_turned(b: Any, p: Any, q: Any, r: Any, s: Any) -> list[Any]:
    middle = _half(b, b.fadd(q, r))
    return [b.fadd(p, middle), _half(b, b.fsub(q, r)), b.fadd(middle, s)]


class Form:
    """F(2×2, taps×taps): what is done to patches, filters, and sums of their products, and on the way back."""

    def __init__(self, taps: int, patch: Map, filter: Map, product: Map, gradient: Map, sums: Map):
        self.__name__, self.taps, self.points = f"F{taps}", taps, taps + 1
        self.patch, self.filter = _transform(patch, taps + 1), _transform(filter, taps)  # Bᵀ, G
        self.product, self.gradient = _transform(product, taps + 1), _transform(gradient, 2)  # Aᵀ, A
        self.sums = _transform(sums, taps + 1)  # Gᵀ


FORMS = {
    3: Form(
        3,
        lambda b, p, q, r, s: [b.fsub(p, r), b.fadd(q, r), b.fsub(r, q), b.fsub(q, s)],
        _G3,
        lambda b, p, q, r, s: [b.fadd(p, b.fadd(q, r)), b.fsub(b.fsub(q, r), s)],
        lambda b, p, q: [p, b.fadd(p, q), b.fsub(p, q), b.fneg(q)],
        _G3_turned,
    ),
    2: Form(
        2,
        lambda b, p, q, r: [b.fsub(p, q), q, b.fsub(r, q)],
        lambda b, p, q: [p, b.fadd(p, q), q],
        lambda b, p, q, r: [b.fadd(p, q), b.fadd(q, r)],
        lambda b, p, q: [p, b.fadd(p, q), q],
        lambda b, p, q, r: [b.fadd(p, q), b.fadd(q, r)],
    ),
}

# Where their numbers lie ----------------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """Where patches and pixels lie, for as many images as are laid out at a time.

    Patches are counted for each phase of the output, and in a phase for each image; tiles are those of a phase, with
    such as fill up the last rows of a product.
    """

    image: int  # numbers in a padded image, channels last
    line: int  # in a line of it
    inside: Any  # of each pixel, its offset in the padded image
    corners: Any  # (bands, phases, patches): where each patch begins
    tiles: int  # for the patches of a phase
    borders: Any  # pixels of the output at which the bands begin and end
    place: Any  # (images, pixels of a band): where each begins in a product


class _Axis(NamedTuple):
    pixel: Any  # of each input: where it lies,
    phase: Any  # and in which phase
    phases: int
    first: Any  # of each phase of the output: where the first patch begins
    patches: int  # in a phase
    extent: int  # of the padded image


def _axis(size: int, made: int, taps: int, stride: int, padding: int, adjoint: bool) -> _Axis:
    """With p zeros in front, output o meets inputs s o … s (o + r) − 1, in s phases, from place o on.

    Gradient i, the a-th of its phase i mod s, comes from outputs a + ⌊(i mod s + p) / s⌋ − t, for t below r.
    """
    if adjoint:
        from_output = (np.arange(stride) + padding) // stride
        phases, at, first = 1, np.arange(size) + taps - 1 - from_output[0], from_output - from_output[0]
    else:
        phases, at, first = stride, np.arange(size) + padding, np.zeros(1, np.int64)
    patches = math.ceil(math.ceil(made / len(first)) / 2)
    extent = max(2 * patches + taps - 1 + first[-1], at[-1] // phases + 1)
    return _Axis(at // phases, at % phases, phases, first, patches, extent)


def _together(count: int, patches: int, most: int, parts: int, height: int) -> int:
    """How many images, of some patches each: so that threads end together, and few rows only fill up a tile.

    To read the filters takes about half as long as to multiply a tile.
    """

    def rows(images: int) -> tuple[float, int]:
        tiles = math.ceil(images * patches / height)
        return math.ceil(math.ceil(count / images) / parts) * (tiles + 0.5), -images

    return min(range(1, min(count, max(1, most)) + 1), key=rows)


@functools.lru_cache(maxsize=64)
def tables(
    taps: int, count: int, channels: int, space: Extents, made: Extents, stride: Extents, padding: Extents,
    adjoint: bool, parts: int, most: int,
) -> Tables:  # fmt: skip
    """For about so many bytes of patches, and at least so many parts of the work.

    A patch that leaves the padded image finds zeros there.
    """
    height, width = _tile.shape(32)
    y, x = (_axis(*axis, adjoint) for axis in zip(space, made, (taps, taps), stride, padding, strict=True))
    deep, phases = y.phases * x.phases * channels, len(y.first) * len(x.first)
    line = x.extent * deep
    image = y.extent * line
    inside = (y.pixel * line + y.phase * x.phases * channels)[:, None] + x.pixel * deep + x.phase * channels
    near = max(1, most // ((taps + 1) ** 2 * 4 * deep * phases * x.patches))  # lines of patches
    bands = max(math.ceil(y.patches / near), min(math.ceil(parts / count), y.patches))
    each = math.ceil(y.patches / bands)
    together = _together(count, each * x.patches, near // y.patches, parts, height) if bands == 1 else 1
    tiles = together * each * x.patches
    tiles += -tiles % height
    lines = np.minimum(np.arange(bands)[:, None] * each + np.arange(each), y.patches - 1) * 2  # (bands, lines)
    corners = (
        np.arange(together)[:, None, None] * image
        + (lines[:, None, None, None, :, None] + y.first[:, None, None, None, None]) * line
        + (np.arange(x.patches) * 2 + x.first[:, None, None, None]) * deep
    )  # (bands, phases of lines, phases of columns, images, lines, columns)
    i, j = np.arange(2 * each * len(y.first))[:, None], np.arange(made[1])
    phase = i % len(y.first) * len(x.first) + j % len(x.first)
    i, j = i // len(y.first), j // len(x.first)
    patch = np.arange(together)[:, None, None] * each * x.patches + i // 2 * x.patches + j // 2
    place = ((phase * tiles + patch) * 4 + i % 2 * 2 + j % 2) * width
    borders = np.minimum(np.arange(bands + 1) * 2 * each * len(y.first), made[0]) * made[1]
    corners, place = corners.reshape(bands, phases, -1), place.reshape(together, -1)
    return Tables(image, line, inside.ravel(), corners, tiles, borders, place)


@functools.lru_cache(maxsize=64)
def lines_of_taps(taps: int, stride: Extents, padding: Extents, channels: int, filters: int) -> tuple[Any, Any]:
    """Of each number of a filter (channels, taps, taps), its line of the product: by tap, phase and channel. And for
    the adjoint, whose taps are turned, of each tap the line of the first filter: by phase, tap and filter."""
    y, x = np.arange(taps * stride[0])[:, None], np.arange(taps * stride[1])
    tap, phase = y // stride[0] * taps + x // stride[1], y % stride[0] * stride[1] + x % stride[1]
    of_pixel = (y - padding[0]) % stride[0] * stride[1] + (x - padding[1]) % stride[1]
    lines = (tap * math.prod(stride) + phase).ravel() * channels + np.arange(channels)[:, None]
    return lines.ravel(), ((of_pixel + 1) * taps**2 - 1 - tap).ravel() * filters
