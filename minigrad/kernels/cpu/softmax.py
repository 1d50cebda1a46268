"""The softmax family over one dimension, shifted by the maximum so that nothing overflows; sums in float64.

A row is dealt out to lanes, which are folded in the end; short rows lie side by side, a lane for each: maximum and sum
vectorize, in an order that is written out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _math
from minigrad.kernels.cpu._jit import Kernel, helper, jit
from minigrad.kernels.cpu._layout import in_order
from minigrad.kernels.cpu.array import Array, cast

_PARALLEL_FROM = 1 << 14
_LANES, _TILE, _JOB, _STRIP, _FEW = 32, 128, 1 << 12, 128, 16


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
def _powers(x: Array, out: Array, peaks: Array, totals: Array) -> None:
    """Of each row max x and Σ e^{x − max x}, whose terms go to `out`."""
    if x.shape[1] < _TILE:
        for i in range(peaks.size):  # not as `peaks[:] = …`: Numba takes two seconds to compile what that may raise
            peaks[i] = x[i, 0]
        for j in range(1, x.shape[1]):
            for i in range(peaks.size):
                peaks[i] = x[i, j] if x[i, j] > peaks[i] else peaks[i]
    else:
        best = np.empty(_LANES, x.dtype)
        for i in range(peaks.size):
            peaks[i] = _peak(x[i], best)
    for i in range(peaks.size):
        row, terms, peak = x[i], out[i], peaks[i]
        for j in range(row.size):
            terms[j] = _math.exp_negative(row[j] - peak)
    if x.shape[1] < _TILE:
        totals[:] = 0
        for j in range(x.shape[1]):
            for i in range(totals.size):
                totals[i] += out[i, j]
    else:
        lanes = np.empty(_LANES)
        for i in range(totals.size):
            totals[i] = _total(out[i], lanes)


@helper
def _jobs(x: Array) -> tuple[int, int]:
    """How many jobs of how many rows."""
    share = max(1, _JOB // x.shape[1])
    return (x.shape[0] + share - 1) // share, share


@jit(_PARALLEL_FROM)
def _logsumexp_rows(x: Array, out: Array) -> None:
    jobs, share = _jobs(x)
    for job in prange(jobs):
        given, made = x[job * share : (job + 1) * share], out[job * share : (job + 1) * share]
        peaks, totals = np.empty(len(given), x.dtype), np.empty(len(given))
        _powers(given, np.empty_like(given), peaks, totals)
        for i in range(len(given)):
            made[i] = peaks[i] + math.log(totals[i])
            if math.isinf(peaks[i]):  # ∞ − ∞ is in the sum, and perhaps a NaN
                made[i] = peaks[i]
                for value in given[i]:
                    if value != value:
                        made[i] = value


@jit(_PARALLEL_FROM)
def _softmax_rows(x: Array, out: Array) -> None:
    jobs, share = _jobs(x)
    for job in prange(jobs):
        given, made = x[job * share : (job + 1) * share], out[job * share : (job + 1) * share]
        peaks, totals = np.empty(len(given), x.dtype), np.empty(len(given))
        _powers(given, made, peaks, totals)
        for i in range(len(given)):
            row, total = made[i], x.dtype.type(totals[i])
            inverse = x.dtype.type(1) / total
            for j in range(row.size):
                row[j] = _math.quotient(row[j], total, inverse)


@jit(_PARALLEL_FROM)
def _log_softmax_rows(x: Array, out: Array) -> None:
    jobs, share = _jobs(x)
    for job in prange(jobs):
        given, made = x[job * share : (job + 1) * share], out[job * share : (job + 1) * share]
        peaks, totals = np.empty(len(given), x.dtype), np.empty(len(given))
        _powers(given, made, peaks, totals)
        for i in range(len(given)):
            row, terms, peak, logarithm = made[i], given[i], peaks[i], math.log(totals[i])
            for j in range(row.size):
                row[j] = (terms[j] - peak) - logarithm


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


@helper
def _strips(x: Array) -> int:
    """How many strips of columns, in all."""
    return len(x) * ((x.shape[2] + _STRIP - 1) // _STRIP)


@helper
def _strip(x: Array, job: int) -> tuple[int, int, int]:
    """In which array, from which column on, how wide."""
    strips = (x.shape[2] + _STRIP - 1) // _STRIP
    first = np.int64(job) % strips * _STRIP
    return np.int64(job) // strips, first, min(_STRIP, x.shape[2] - first)


@helper
def _column_powers(x: Array, out: Array, first: int, peaks: Array, totals: Array) -> None:
    """What `_powers` are of rows, of columns."""
    for c in range(peaks.size):
        peaks[c], totals[c] = x[0, first + c], 0
    for j in range(1, len(x)):
        row = x[j, first : first + peaks.size]
        for c in range(peaks.size):
            peaks[c] = row[c] if row[c] > peaks[c] else peaks[c]
    for j in range(len(x)):
        row, terms = x[j, first : first + peaks.size], out[j, first : first + peaks.size]
        for c in range(peaks.size):
            terms[c] = _math.exp_negative(row[c] - peaks[c])
        for c in range(peaks.size):
            totals[c] += terms[c]


@jit(_PARALLEL_FROM)
def _softmax_columns(x: Array, out: Array) -> None:
    for job in prange(_strips(x)):
        i, first, width = _strip(x, job)
        peaks, totals, inverses = np.empty(width, x.dtype), np.empty(width), np.empty(width, x.dtype)
        _column_powers(x[i], out[i], first, peaks, totals)
        rounded = peaks  # of which there is no more need
        for c in range(width):
            rounded[c] = totals[c]
            inverses[c] = x.dtype.type(1) / rounded[c]
        for j in range(x.shape[1]):
            row = out[i, j, first : first + width]
            for c in range(width):
                row[c] = _math.quotient(row[c], rounded[c], inverses[c])


@jit(_PARALLEL_FROM)
def _log_softmax_columns(x: Array, out: Array) -> None:
    for job in prange(_strips(x)):
        i, first, width = _strip(x, job)
        peaks, totals = np.empty(width, x.dtype), np.empty(width)
        _column_powers(x[i], out[i], first, peaks, totals)
        for c in range(width):
            totals[c] = math.log(totals[c])
        for j in range(x.shape[1]):
            terms, row = x[i, j, first : first + width], out[i, j, first : first + width]
            for c in range(width):
                row[c] = (terms[c] - peaks[c]) - totals[c]


@jit(_PARALLEL_FROM)
def _softmax_vjp_columns(g: Array, y: Array, out: Array) -> None:
    for job in prange(_strips(y)):
        i, first, width = _strip(y, job)
        totals, means = np.zeros(width), np.empty(width, y.dtype)
        for j in range(y.shape[1]):
            up, given = g[i, j, first : first + width], y[i, j, first : first + width]
            for c in range(width):
                totals[c] += np.float64(up[c]) * np.float64(given[c])
        for c in range(width):
            means[c] = totals[c]
        for j in range(y.shape[1]):
            up, given = g[i, j, first : first + width], y[i, j, first : first + width]
            row = out[i, j, first : first + width]
            for c in range(width):
                row[c] = given[c] * (up[c] - means[c])


@jit(_PARALLEL_FROM)
def _log_softmax_vjp_columns(g: Array, y: Array, out: Array) -> None:
    for job in prange(_strips(y)):
        i, first, width = _strip(y, job)
        totals, rounded = np.zeros(width), np.empty(width, y.dtype)
        for j in range(y.shape[1]):
            up = g[i, j, first : first + width]
            for c in range(width):
                totals[c] += up[c]
        for c in range(width):
            rounded[c] = totals[c]
        for j in range(y.shape[1]):
            up, given = g[i, j, first : first + width], y[i, j, first : first + width]
            row = out[i, j, first : first + width]
            for c in range(width):
                row[c] = up[c] - _math.exp_negative(given[c]) * rounded[c]


def _computed(x: Array) -> Array:
    """Contiguous, in a dtype to compute in."""
    return in_order(cast(x, np.float32 if x.dtype == np.float16 else x.dtype))


def _by_rows(x: Array, dim: int) -> Array:
    """x with `dim` last, as a matrix to compute with."""
    moved = x if dim == x.ndim - 1 else np.moveaxis(x, dim, -1)
    return _computed(moved).reshape(math.prod(moved.shape[:-1]), x.shape[dim])


def logsumexp(x: Array, dim: int, keepdim: bool) -> Array:
    rows = _by_rows(x, dim)
    out = np.empty(rows.shape[0], rows.dtype)
    _logsumexp_rows.only(rows, out)
    made = cast(out, x.dtype).reshape(x.shape[:dim] + x.shape[dim + 1 :])
    return np.expand_dims(made, dim) if keepdim else made


def softmax(x: Array, dim: int) -> Array:
    return _same_shape(_softmax_rows, _softmax_columns, dim, x)


def softmax_vjp(g: Array, y: Array, dim: int) -> Array:
    """y (g − Σ g y) for y = softmax x."""
    return _same_shape(_softmax_vjp_rows, _softmax_vjp_columns, dim, g, y)


def log_softmax(x: Array, dim: int) -> Array:
    return _same_shape(_log_softmax_rows, _log_softmax_columns, dim, x)


def log_softmax_vjp(g: Array, y: Array, dim: int) -> Array:
    """g − eʸ Σ g for y = log softmax x."""
    return _same_shape(_log_softmax_vjp_rows, _log_softmax_vjp_columns, dim, g, y)


def _same_shape(of_rows: Kernel, of_columns: Kernel, dim: int, *xs: Array) -> Array:
    """By columns as they lie, unless lines of them are short: then they are turned into rows, and back."""
    shape, dtype = xs[0].shape, xs[0].dtype
    cube = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
    if cube[2] >= _FEW:
        columns = [_computed(x).reshape(cube) for x in xs]
        out = np.empty(shape, columns[0].dtype)
        of_columns.only(*columns, out.reshape(cube))
        return cast(out, dtype)
    rows = [_by_rows(x, dim) for x in xs]
    out = np.empty((*shape[:dim], *shape[dim + 1 :], shape[dim]), rows[0].dtype)
    of_rows.only(*rows, out.reshape(rows[0].shape))
    out = cast(out, dtype)
    return out if dim == len(shape) - 1 else in_order(np.moveaxis(out, -1, dim))
