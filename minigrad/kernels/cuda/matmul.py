"""Dense products of strided matrices, in any arrangement and with any batch: nothing is copied to be transposed."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np

from minigrad.kernels.cuda._places import geometry_table, places_from
from minigrad.kernels.cuda.array import Array, Shape, cast, contiguous, copy, empty
from minigrad.kernels.cuda.gemm import COLUMNS, DEPTH, HEAD, ROWS, S_COLUMNS, TILES, Plan, Side, in_quads, plan, tiled
from minigrad.kernels.cuda.launch import helper

_STRIDES = HEAD  # in the layout: of x along rows and k, of y along columns and k; then the geometry of the batch
_BATCH = HEAD + 4


@helper
def _begin(layout: Any, z: Any) -> Any:
    x, y, _ = places_from(layout, np.uint32(_BATCH), z)
    rows, columns, at = layout[ROWS], layout[COLUMNS], _STRIDES
    out = np.uint32(z * np.uint32(rows * columns))
    strides = layout[at], layout[at + 1], layout[at + 2], layout[at + 3]
    return (rows, columns, layout[DEPTH], np.uint32(0), x, y, out, *strides)


@helper
def _x_row(layout: Any, s: Any, i: Any) -> Any:
    return (np.uint32(s[4] + np.uint32(i * s[7])),)


@helper
def _x_inner(layout: Any, s: Any, k: Any) -> Any:
    return (np.uint32(k * s[8]),)


@helper
def _y_column(layout: Any, s: Any, j: Any) -> Any:
    return (np.uint32(s[5] + np.uint32(j * s[9])),)


@helper
def _y_inner(layout: Any, s: Any, k: Any) -> Any:
    return (np.uint32(k * s[10]),)


@helper
def _out_row(layout: Any, s: Any, i: Any) -> Any:
    return (np.uint32(s[6] + np.uint32(i * s[S_COLUMNS])),)


@helper
def _out_column(layout: Any, s: Any, j: Any) -> Any:
    return (j,)


_EITHER = False, True
_KERNELS = {
    (tile, x_along, y_along, quads): tiled(
        f"matmul.{tile.rows}x{tile.columns}{'.x' * x_along}{'.y' * y_along}{'.quads' * quads}",
        tile.floats if quads else tile.dtypes, tile, _begin,
        Side(_x_row, _x_inner, x_along, quads=quads), Side(_y_column, _y_inner, y_along, quads=quads),
        _out_row, _out_column, bias_per_row=False,
    )
    for tile, x_along, y_along, quads in itertools.product(TILES, _EITHER, _EITHER, _EITHER)
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plan(
    batch: Shape, x: Shape, y: Shape, x_strides: Shape, y_strides: Shape, dtype: Any, biased: bool, aligned: bool
) -> Plan:
    """The launch for x (…, m, k) times y (…, k, n), whose batches were stretched to one."""
    (m, k), n, count = x[-2:], y[-1], math.prod(batch)
    (x_outer, x_inner), (y_inner, y_outer) = x_strides[-2:], y_strides[-2:]
    x_along, y_along = _along(m, x_outer, k, x_inner), _along(n, y_outer, k, y_inner)
    strides = np.array([x_outer, x_inner, y_outer, y_inner], np.uint32)
    rest = np.concatenate([strides, geometry_table(batch, x_strides[:-2], y_strides[:-2])])
    x_quads = in_quads(x, x_strides, -1 if x_along else -2, dtype)
    y_quads = in_quads(y, y_strides, -2 if y_along else -1, dtype)
    kernels = {tile: _KERNELS[tile, x_along, y_along, aligned and x_quads and y_quads] for tile in TILES}
    spans = (sum((e - 1) * s for e, s in zip(*of, strict=True)) + 1 for of in ((x, x_strides), (y, y_strides)))
    return plan(kernels, m, n, k, count, count * m * n, max(spans), dtype, biased, rest)


def _along(outer_extent: int, outer_stride: int, inner_extent: int, inner_stride: int) -> bool:
    """Are neighbours along k closer in memory than neighbours in other rows (of y: columns)?"""
    return outer_extent == 1 or (inner_extent > 1 and inner_stride <= outer_stride)


def matmul(x: Array, y: Array) -> Array:
    """Batched product of matrices (…, m, k) and (…, k, n); float16 is multiplied in float32 and rounded once."""
    if x.ndim > 2 == y.ndim and x.is_contiguous:  # one taller matrix makes better tiles than many
        return _product(_flat(x), y, None).reshape((*x.shape[:-1], y.shape[-1]))
    return _product(x, y, None)


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x weightᵀ + bias for x (…, in), weight (out, in), bias (out)."""
    return _product(_flat(x), weight.permute((1, 0)), bias).reshape((*x.shape[:-1], weight.shape[0]))


def _flat(x: Array) -> Array:
    """(…, n) as (rows, n)."""
    return x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


#: What products are computed in, where it is not the dtype of the operands.
_COMPUTED_IN = {np.dtype(np.float16): np.dtype(np.float32), np.dtype(np.bool_): np.dtype(np.int64)}


def _product(x: Array, y: Array, bias: Array | None) -> Array:
    dtype = _COMPUTED_IN.get(x.dtype, x.dtype)
    left, right = _ready(x, dtype), _ready(y, dtype)
    batch = left.shape[:-2]
    if right.shape[:-2] != batch:
        batch = np.broadcast_shapes(batch, right.shape[:-2])
        left, right = left.expand((*batch, *left.shape[-2:])), right.expand((*batch, *right.shape[-2:]))
    aligned = left.is_aligned and right.is_aligned
    plan = _plan(batch, left.shape, right.shape, left.strides, right.strides, dtype, bias is not None, aligned)
    out = empty((*batch, left.shape[-2], right.shape[-1]), dtype)
    return cast(plan(out, left, right, None if bias is None else _ready(contiguous(bias), dtype)), x.dtype)


def _ready(x: Array, dtype: Any) -> Array:
    """In the dtype to compute in, and with no negative strides."""
    return copy(x) if min(x.strides, default=0) < 0 and x.dtype == dtype else cast(x, dtype)
