"""The softmax family over one dimension, shifted by the maximum so that nothing overflows; sums in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu._jit import Kernel, helper, jit
from minigrad.kernels.cpu.array import Array, cast

_PARALLEL_FROM = 1 << 13


@helper
def _peak_and_total(row: Array) -> tuple[Any, Any]:
    """max x and Σ e^{x − max x}; NaN wins."""
    peak = row[0]
    for value in row:
        if value > peak or value != value:
            peak = value
    total = 0.0
    for value in row:
        total += math.exp(value - peak)
    return peak, total


@jit(_PARALLEL_FROM)
def _logsumexp_rows(x: Array, out: Array) -> None:
    for i in prange(x.shape[0]):
        peak, total = _peak_and_total(x[i])
        out[i] = peak if math.isinf(peak) else peak + math.log(total)


@jit(_PARALLEL_FROM)
def _softmax_rows(x: Array, out: Array) -> None:
    for i in prange(x.shape[0]):
        peak, total = _peak_and_total(x[i])
        for j in range(x.shape[1]):
            out[i, j] = math.exp(x[i, j] - peak) / total


@jit(_PARALLEL_FROM)
def _log_softmax_rows(x: Array, out: Array) -> None:
    for i in prange(x.shape[0]):
        peak, total = _peak_and_total(x[i])
        logarithm = math.log(total)
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] - peak) - logarithm


def _by_rows(x: Array, dim: int) -> tuple[Array, Array]:
    """x with `dim` last, and the same as a contiguous matrix in a dtype to compute in."""
    moved = np.moveaxis(x, dim, -1)
    dtype = np.float32 if x.dtype == np.float16 else x.dtype
    return moved, np.ascontiguousarray(moved, dtype).reshape(-1, x.shape[dim])


def logsumexp(x: Array, dim: int, keepdim: bool) -> Array:
    moved, rows = _by_rows(x, dim)
    out = np.empty(rows.shape[0], rows.dtype)
    _logsumexp_rows(rows, out)
    made = cast(out, x.dtype).reshape(moved.shape[:-1])
    return np.expand_dims(made, dim) if keepdim else made


def softmax(x: Array, dim: int) -> Array:
    return _same_shape(_softmax_rows, x, dim)


def log_softmax(x: Array, dim: int) -> Array:
    return _same_shape(_log_softmax_rows, x, dim)


def _same_shape(kernel: Kernel, x: Array, dim: int) -> Array:
    moved, rows = _by_rows(x, dim)
    out = np.empty(rows.shape, rows.dtype)
    kernel(rows, out)
    return np.ascontiguousarray(np.moveaxis(out.astype(x.dtype, copy=False).reshape(moved.shape), -1, dim))
