"""Pooling by windows of two by two pixels, side by side: one thread for each, which needs no intervals.

The lines of all planes follow one another, an even number of them to a plane. So block p, in line L of lines of `width`
blocks, begins at pixel 2 (p + L · width).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import divided, divisor, ldg
from minigrad.kernels.cuda.launch import FLOATS, helper, items, kernel
from minigrad.kernels.cuda.reduce import _settled, _two_sum
from minigrad.kernels.windows import Extents, are_blocks

Numbers = tuple[int, ...]


def cover(space: Extents, kernel: Extents, stride: Extents, padding: Extents) -> bool:
    """Are the kernels of this file for these windows? They divide by numbers of blocks, and `divided` not by 1."""
    return are_blocks(space, kernel, stride, padding) and min(space) > 2


def lines(output: Extents) -> Numbers:
    """What the kernels ask of the planes' blocks: how many there are to a line, and what `divided` wants for that."""
    return output[1], *divisor(output[1])


def planes(output: Extents) -> Numbers:
    """The same, and for lines to a plane."""
    return *lines(output), output[0], *divisor(output[0])


@helper
def _corner(block: Any, line: Any, width: Any) -> Any:
    """The first of its pixels."""
    return np.uint32(np.uint32(2) * np.uint32(block + np.uint32(line * width)))


@kernel("u4 T[] T[] u4 u4 u4 T", T=FLOATS)
def sum_blocks(size: Any, out: Any, x: Any, width: Any, factor: Any, shift: Any, number: Any) -> None:
    """out[p] = Σ of block p / number."""
    for i in items(size):
        a = _corner(np.uint32(i), divided(np.uint32(i), factor, shift), width)
        b = np.uint32(a + np.uint32(np.uint32(2) * width))
        zero, one = x.dtype.type(0), np.uint32(1)
        total, rest = _two_sum(ldg(x, a), zero, ldg(x, np.uint32(a + one)), zero)
        total, rest = _two_sum(total, rest, ldg(x, b), zero)
        total, rest = _two_sum(total, rest, ldg(x, np.uint32(b + one)), zero)
        out[i] = _settled(total, rest) / number


@kernel("u4 T[] T[] u4 u4 u4 T", T=FLOATS)
def deal_blocks(size: Any, x: Any, g: Any, width: Any, factor: Any, shift: Any, number: Any) -> None:
    """The adjoint of `sum_blocks`, into x."""
    for i in items(size):
        a = _corner(np.uint32(i), divided(np.uint32(i), factor, shift), width)
        b = np.uint32(a + np.uint32(np.uint32(2) * width))
        share = ldg(g, i) / number
        x[a], x[np.uint32(a + np.uint32(1))] = share, share
        x[b], x[np.uint32(b + np.uint32(1))] = share, share


@helper
def _before(line: Any, across: Any, height: Any, factor: Any, shift: Any) -> Any:
    """The pixels before the plane of a line of blocks."""
    plane = divided(line, factor, shift)
    return np.uint32(np.uint32(plane * height) * np.uint32(np.uint32(2) * across))


@helper
def _larger(best: Any, place: Any, value: Any, there: Any) -> tuple[Any, Any]:
    """The first of equals, a NaN before any number."""
    return (value, there) if value > best or value != value else (best, place)


@kernel("u4 T[] i8[] T[] u4 u4 u4 u4 u4 u4", T=FLOATS)
def max_blocks(
    size: Any, values: Any, indices: Any, x: Any, width: Any, factor: Any, shift: Any, height: Any, tall_factor: Any,
    tall_shift: Any,
) -> None:  # fmt: skip
    """The largest value of each block, and its place in the plane."""
    for i in items(size):
        line, across = divided(np.uint32(i), factor, shift), np.uint32(np.uint32(2) * width)
        a = _corner(np.uint32(i), line, width)
        b, one = np.uint32(a + across), np.uint32(1)
        best, at = _larger(ldg(x, a), np.uint32(0), ldg(x, np.uint32(a + one)), one)
        best, at = _larger(best, at, ldg(x, b), across)
        best, at = _larger(best, at, ldg(x, np.uint32(b + one)), np.uint32(across + one))
        before = _before(line, across, height, tall_factor, tall_shift)
        values[i], indices[i] = best, np.uint32(np.uint32(a - before) + at)


@kernel("u4 T[] T[] i8[] u4 u4 u4 u4 u4 u4", T=FLOATS)
def put_back_blocks(
    size: Any, out: Any, g: Any, indices: Any, width: Any, factor: Any, shift: Any, height: Any, tall_factor: Any,
    tall_shift: Any,
) -> None:  # fmt: skip
    """To the pixel of each block that its index names, g; to the others 0."""
    for i in items(size):
        line, across = divided(np.uint32(i), factor, shift), np.uint32(np.uint32(2) * width)
        a = _corner(np.uint32(i), line, width)
        before = _before(line, across, height, tall_factor, tall_shift)
        named = np.uint32(np.uint32(ldg(indices, i)) - np.uint32(a - before))
        b, one, value, zero = np.uint32(a + across), np.uint32(1), ldg(g, i), g.dtype.type(0)
        out[a] = value if named == np.uint32(0) else zero
        out[np.uint32(a + one)] = value if named == one else zero
        out[b] = value if named == across else zero
        out[np.uint32(b + one)] = value if named == np.uint32(across + one) else zero
