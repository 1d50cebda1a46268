"""The softmax family over one dimension, shifted by the maximum so that nothing overflows; sums in float64.

A row is dealt out to lanes, which are folded in the end: maximum and sum vectorize, in an order that is written out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _math
from minigrad.kernels.cpu._jit import Kernel, helper, jit
from minigrad.kernels.cpu.array import Array, cast

_PARALLEL_FROM = 1 << 14
_LANES, _TILE, _JOB = 32, 128, 1 << 12


@helper
def _peak(row: Array, lanes: Array) -> Any:
    """max x, unless there is a NaN, which then will be in the sum."""
    whole = row.size // _TILE * _TILE
    lanes[:] = row[0]
    for start in range(0, whole, _TILE):
        for j in range(_LANES):
            best = lanes[j]
            for at in range(start + j, start + j + _TILE, _LANES):
                best = row[at] if row[at] > best else best
            lanes[j] = best
    peak = row[0]
    for value in lanes[: whole and _LANES]:
        peak = value if value > peak else peak
    for j in range(whole, row.size):
        peak = row[j] if row[j] > peak else peak
    return peak


@helper
def _total(row: Array, lanes: Array) -> Any:
    """Σ row."""
    whole = row.size // _TILE * _TILE
    lanes[:] = 0
    for start in range(0, whole, _TILE):
        for j in range(_LANES):
            total = lanes[j]
            for at in range(start + j, start + j + _TILE, _LANES):
                total += row[at]
            lanes[j] = total
    total = 0.0
    for value in lanes[: whole and _LANES]:
        total += value
    for j in range(whole, row.size):
        total += row[j]
    return total


@helper
def _powers(row: Array, out: Array, peaks: Array, lanes: Array) -> tuple[Any, Any]:
    """max x and Σ e^{x − max x}; its terms go to `out`."""
    peak = _peak(row, peaks)
    for j in range(row.size):
        out[j] = _math.exp_negative(row[j] - peak)
    return peak, _total(out, lanes)


@helper
def _jobs(x: Array) -> tuple[int, int]:
    """How many jobs of how many rows."""
    share = max(1, _JOB // x.shape[1])
    return (x.shape[0] + share - 1) // share, share


@jit(_PARALLEL_FROM)
def _logsumexp_rows(x: Array, out: Array) -> None:
    jobs, share = _jobs(x)
    for job in prange(jobs):
        terms, peaks, lanes = np.empty(x.shape[1], x.dtype), np.empty(_LANES, x.dtype), np.empty(_LANES)
        for i in range(job * share, min(x.shape[0], (job + 1) * share)):
            peak, total = _powers(x[i], terms, peaks, lanes)
            out[i] = peak + math.log(total)
            if math.isinf(peak):  # ∞ − ∞ is in the sum, and perhaps a NaN
                out[i] = peak
                for value in x[i]:
                    if value != value:
                        out[i] = value


@jit(_PARALLEL_FROM)
def _softmax_rows(x: Array, out: Array) -> None:
    jobs, share = _jobs(x)
    for job in prange(jobs):
        peaks, lanes = np.empty(_LANES, x.dtype), np.empty(_LANES)
        for i in range(job * share, min(x.shape[0], (job + 1) * share)):
            row = out[i]
            total = x.dtype.type(_powers(x[i], row, peaks, lanes)[1])
            inverse = x.dtype.type(1) / total
            for j in range(row.size):
                row[j] = _math.quotient(row[j], total, inverse)


@jit(_PARALLEL_FROM)
def _log_softmax_rows(x: Array, out: Array) -> None:
    jobs, share = _jobs(x)
    for job in prange(jobs):
        peaks, lanes = np.empty(_LANES, x.dtype), np.empty(_LANES)
        for i in range(job * share, min(x.shape[0], (job + 1) * share)):
            given, row = x[i], out[i]
            peak, total = _powers(given, row, peaks, lanes)
            logarithm = math.log(total)
            for j in range(row.size):
                row[j] = (given[j] - peak) - logarithm


@jit(_PARALLEL_FROM)
def _softmax_vjp_rows(g: Array, y: Array, out: Array) -> None:
    jobs, share = _jobs(y)
    for job in prange(jobs):
        for i in range(job * share, min(y.shape[0], (job + 1) * share)):
            up, given, row = g[i], y[i], out[i]
            mean = y.dtype.type(_math.dot(up, given))
            for j in range(row.size):
                row[j] = given[j] * (up[j] - mean)


@jit(_PARALLEL_FROM)
def _log_softmax_vjp_rows(g: Array, y: Array, out: Array) -> None:
    jobs, share = _jobs(y)
    for job in prange(jobs):
        lanes = np.empty(_LANES)
        for i in range(job * share, min(y.shape[0], (job + 1) * share)):
            up, given, row = g[i], y[i], out[i]
            total = y.dtype.type(_total(up, lanes))
            for j in range(row.size):
                row[j] = up[j] - _math.exp_negative(given[j]) * total


def _by_rows(x: Array, dim: int) -> Array:
    """x with `dim` last, as a contiguous matrix in a dtype to compute in."""
    moved = x if dim == x.ndim - 1 else np.moveaxis(x, dim, -1)
    dtype = np.float32 if x.dtype == np.float16 else x.dtype
    return np.ascontiguousarray(moved, dtype).reshape(math.prod(moved.shape[:-1]), x.shape[dim])


def logsumexp(x: Array, dim: int, keepdim: bool) -> Array:
    rows = _by_rows(x, dim)
    out = np.empty(rows.shape[0], rows.dtype)
    _logsumexp_rows.only(rows, out)
    made = cast(out, x.dtype).reshape(x.shape[:dim] + x.shape[dim + 1 :])
    return np.expand_dims(made, dim) if keepdim else made


def softmax(x: Array, dim: int) -> Array:
    return _same_shape(_softmax_rows, dim, x)


def softmax_vjp(g: Array, y: Array, dim: int) -> Array:
    """y (g − Σ g y) for y = softmax x."""
    return _same_shape(_softmax_vjp_rows, dim, g, y)


def log_softmax(x: Array, dim: int) -> Array:
    return _same_shape(_log_softmax_rows, dim, x)


def log_softmax_vjp(g: Array, y: Array, dim: int) -> Array:
    """g − eʸ Σ g for y = log softmax x."""
    return _same_shape(_log_softmax_vjp_rows, dim, g, y)


def _same_shape(kernel: Kernel, dim: int, *xs: Array) -> Array:
    rows, shape = [_by_rows(x, dim) for x in xs], xs[0].shape
    out = np.empty((*shape[:dim], *shape[dim + 1 :], shape[dim]), rows[0].dtype)
    kernel.only(*rows, out.reshape(rows[0].shape))
    out = cast(out, xs[0].dtype)
    return out if dim == len(shape) - 1 else np.ascontiguousarray(np.moveaxis(out, -1, dim))
