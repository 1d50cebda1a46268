"""Where the elements of up to three arrays of one shape lie: a table made on the host, and how kernels read it.

A GPU divides by some twenty instructions, so the table has what to multiply by. Most walks have one dimension or two,
once all that is one run of memory is one dimension. These are read without a loop: the compiler then looks the table up
once for a thread, and not for each of its elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import divided, divisor, ldg
from minigrad.kernels.cuda.launch import helper

Shape = tuple[int, ...]


def merged(shape: Shape, operands: list[Shape]) -> list[tuple[int, Shape]]:
    """(extent, stride in each operand) of as few dimensions as describe the same walk; none of extent 1."""
    runs: list[tuple[int, Shape]] = []
    for n, *steps in zip(shape, *operands, strict=True):
        if n == 1:
            continue
        if runs and all(outer == n * inner for outer, inner in zip(runs[-1][1], steps, strict=True)):
            runs[-1] = runs[-1][0] * n, tuple(steps)
        else:
            runs.append((n, tuple(steps)))
    return runs


def geometry_table(shape: Shape, *operands: Shape) -> Any:
    """The way from the number of an element to its place in each of up to three operands.

    uint32: the number of dimensions; the place of element 0 in the three operands, and their strides in the outermost
    dimension; then, from the innermost dimension out, for each of the others its extent, its `divisor`, and its three
    strides. Negative strides work as sums wrap at 2³².
    """
    operands += ((0,) * len(shape),) * (3 - len(operands))
    runs = [] if 0 in shape else merged(shape, list(operands))  # where no element is, nobody asks
    runs = runs or [(1, (0, 0, 0))]
    first = [-sum((n - 1) * min(steps[k], 0) for n, steps in runs) for k in range(3)]
    others = [number for n, steps in reversed(runs[1:]) for number in (n, *divisor(n), *steps)]
    return np.array([len(runs), *first, *runs[0][1], *others], np.int64).astype(np.uint32)


@helper
def _first(table: Any, at: Any) -> tuple[Any, Any, Any]:
    """The places of element 0."""
    a, b, c = np.uint32(at + np.uint32(1)), np.uint32(at + np.uint32(2)), np.uint32(at + np.uint32(3))
    return ldg(table, a), ldg(table, b), ldg(table, c)


@helper
def _along(table: Any, at: Any, a: Any, b: Any, c: Any, i: Any) -> tuple[Any, Any, Any, Any]:
    """Places moved along the innermost dimension of those left; and the number of the element in those farther out."""
    outer = divided(i, ldg(table, np.uint32(at + np.uint32(1))), ldg(table, np.uint32(at + np.uint32(2))))
    inner = np.uint32(i - np.uint32(outer * ldg(table, at)))
    a = np.uint32(a + np.uint32(inner * ldg(table, np.uint32(at + np.uint32(3)))))
    b = np.uint32(b + np.uint32(inner * ldg(table, np.uint32(at + np.uint32(4)))))
    c = np.uint32(c + np.uint32(inner * ldg(table, np.uint32(at + np.uint32(5)))))
    return a, b, c, outer


@helper
def _outermost(table: Any, at: Any, a: Any, b: Any, c: Any, i: Any) -> tuple[Any, Any, Any]:
    """Places moved along the last dimension that is left."""
    a = np.uint32(a + np.uint32(i * ldg(table, np.uint32(at + np.uint32(4)))))
    b = np.uint32(b + np.uint32(i * ldg(table, np.uint32(at + np.uint32(5)))))
    c = np.uint32(c + np.uint32(i * ldg(table, np.uint32(at + np.uint32(6)))))
    return a, b, c


@helper
def places_from(table: Any, at: Any, i: Any) -> tuple[Any, Any, Any]:
    """Where element i lies in the three operands of a geometry, which begins at `at` in a larger table."""
    rank, rest, walk = ldg(table, at), np.uint32(i), np.uint32(at + np.uint32(7))
    a, b, c = _first(table, at)
    while rank > np.uint32(1):
        a, b, c, rest = _along(table, walk, a, b, c, rest)
        walk, rank = np.uint32(walk + np.uint32(6)), np.uint32(rank - np.uint32(1))
    return _outermost(table, at, a, b, c, rest)


@helper
def places_along(geometry: Any, i: Any) -> tuple[Any, Any, Any]:
    """The same for a geometry that has but one dimension."""
    a, b, c = _first(geometry, np.uint32(0))
    return _outermost(geometry, np.uint32(0), a, b, c, np.uint32(i))


@helper
def places(geometry: Any, i: Any) -> tuple[Any, Any, Any]:
    """Where element i lies in the three operands of a geometry, or of `_as_numbered`."""
    at, i = np.uint32(0), np.uint32(i)
    rank = ldg(geometry, at)
    if rank == np.uint32(2):  # without a loop: the compiler moves what is looked up out of its caller's
        a, b, c = _first(geometry, at)
        a, b, c, rest = _along(geometry, np.uint32(7), a, b, c, i)
        return _outermost(geometry, at, a, b, c, rest)
    if rank == np.uint32(0):
        return i, i, i
    return places_from(geometry, at, i)
