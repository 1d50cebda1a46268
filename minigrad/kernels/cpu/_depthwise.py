"""Convolutions with few channels and filters to a group: sums of shifted planes, where a tile would be mostly empty.

A padded plane lies in phases, the pixels of equal index modulo the stride: there a tap is one shift of all windows,
also from the end of a line to the next. So a sum over taps is taken along a plane as if it had one dimension; what it
makes between the lines of the output is left there. The input gradient is the same, a phase of its pixels at a time,
with the upstream gradient in the plane; the weight gradient is a scalar product for each tap.

Padding is multiplied like any pixel, as in `conv`; what lies between the lines is not.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minigrad.kernels.cpu import _math, _scratch, _tile, _winograd
from minigrad.kernels.cpu._conv_tables import all_sums, pitches_of
from minigrad.kernels.cpu._jit import helper, jit, num_threads

Extents = tuple[int, ...]

#: Numbers in the output, for the weight gradient in the upstream one, from which a second thread pays.
_PARALLEL_FROM = 2**14
#: Channels times filters of a group, up to which that is faster.
_MOST = 16
#: Products of a tap that are added up at a time, by all lanes of a vector: sums of blocks are more accurate.
_NEAR = 1024
#: Groups whose images lie next to each other in memory, and are read together.
_GROUPS = 8


class Lines(NamedTuple):
    """Where the pixels of an image lie in a plane."""

    starts: Any  # where its lines begin
    columns: Any  # of each pixel of a line, its offset from there
    is_dense: bool  # do they lie side by side?


class Tables(NamedTuple):
    """For planes of some phases. A window lies in the first where its first tap is."""

    block: int  # numbers that are summed at a time
    phases: int
    size: int  # numbers in a phase: whole blocks
    length: int  # from the first window to behind the last one
    inside: Lines  # of the input
    windows: Lines  # of the output
    phase: Any  # of each tap
    shift: Any  # of each tap, its offset in that phase from the window


@functools.lru_cache(maxsize=64)
def _tables(bits: int, space: Extents, kernel: Extents, stride: Extents, padding: Extents, dilation: Extents) -> Tables:
    block = _tile.SHIFTED * _tile.shape(bits)[1] // 2
    extents = [(n + 2 * p - 1) // s + 1 for n, s, p in zip(space, stride, padding, strict=True)]
    along, between = pitches_of(extents), pitches_of(stride)
    size = math.prod(extents)
    size += -size % block
    every = list(zip(space, kernel, stride, padding, dilation, along, between, strict=True))
    inside = [(np.arange(p, p + n) // s * a, np.arange(p, p + n) % s * b * size) for n, _, s, p, _, a, b in every]
    starts = [np.arange((n + 2 * p - d * (k - 1) - 1) // s + 1) * a for n, k, s, p, d, a, _ in every]
    return Tables(
        block,
        math.prod(stride),
        size,
        sum(int(each[-1]) for each in starts) + 1,
        Lines(all_sums(a + b for a, b in inside[:-1]), sum(inside[-1]).astype(np.uintp), stride[-1] == 1),
        Lines(all_sums(starts[:-1]), starts[-1].astype(np.uintp), True),
        all_sums(np.arange(k) * d % s * b for _, k, s, _, d, _, b in every),
        all_sums(np.arange(k) * d // s * a for _, k, s, _, d, a, _ in every),
    )


@helper
def _spread(plane: Any, x: Any, starts: Any, columns: Any, is_dense: bool) -> None:
    width = columns.size
    for i in range(starts.size):
        if is_dense:
            _tile.copy(plane, starts[i] + np.int64(columns[0]), x, i * width, width)
        else:
            made, line = plane[starts[i] :], x[i * width : (i + 1) * width]
            for j in range(width):
                made[columns[j]] = line[j]


@helper
def _collect(x: Any, plane: Any, starts: Any, columns: Any, is_dense: bool) -> None:
    """The way back from `_spread`."""
    width = columns.size
    for i in range(starts.size):
        if is_dense:
            _tile.copy(x, i * width, plane, starts[i] + np.int64(columns[0]), width)
        else:
            made, line = plane[starts[i] :], x[i * width : (i + 1) * width]
            for j in range(width):
                line[j] = made[columns[j]]


@jit(_PARALLEL_FROM)
def _multiply(
    out: Any, x: Any, w: Any, bias: Any, planes: Any, totals: Any,
    given_starts: Any, given_columns: Any, given_dense: bool, shifts: Any, parts: Any,
    made_starts: Any, made_columns: Any, made_dense: bool, block: int,
) -> None:  # fmt: skip
    """out[n, g, k] = bias[g, k] + Σ_c x[n, g, c] ⋆ w[g, k, c]. Each thread has planes and totals of its own."""
    groups = out.shape[1]
    for thread in prange(len(planes)):
        plane, total = planes[thread], totals[thread]
        plane[:] = 0
        for task in range(len(out) * groups * thread // len(planes), len(out) * groups * (thread + 1) // len(planes)):
            n, group = task // groups, task % groups
            for c in range(x.shape[2]):
                _spread(plane[c], x[n, group, c], given_starts, given_columns, given_dense)
            for k in range(out.shape[2]):
                total[:] = bias[group, k]
                for part in range(len(parts)):
                    low, high = parts[part, 0], parts[part, 1]
                    for i in range(0, total.shape[1], block):
                        for c in range(x.shape[2]):
                            _tile.add_shifted(total[part, i:], plane[c, i:], shifts[low:high], w[group, k, c, low:high])
                _collect(out[n, group, k], total.reshape(-1), made_starts, made_columns, made_dense)


@helper
def _add_products(totals: Any, products: Any, g: Any, x: Any, shifts: Any) -> None:
    """Σ_j totals[t, j] += Σ_i g_i x_{i + shift t}: in blocks, and a total for each lane of a vector, in float64."""
    for first in range(0, g.size, _NEAR):
        some = g[first : first + _NEAR]
        for t in range(0, shifts.size, _tile.TAPS):
            _tile.shifted_products(products[t:], some, x[first:], shifts[t:], some.size // products.shape[1])
        for t in range(shifts.size):
            for j in range(products.shape[1]):
                totals[t, j] += products[t, j]


@helper
def _add_by_lines(totals: Any, g: Any, x: Any, shifts: Any, starts: Any, columns: int) -> None:
    """The same where x is not finite, which the zeros between the lines of g must not meet."""
    for start in starts:
        for t in range(shifts.size):
            totals[t, 0] += _math.dot(g[start : start + columns], x[start + shifts[t] :])


@jit(_PARALLEL_FROM)
def _correlate(
    g: Any, x: Any, out: Any, planes: Any, upstream: Any, products: Any,
    inside_starts: Any, inside_columns: Any, inside_dense: bool,
    windows_starts: Any, windows_columns: Any, windows_dense: bool, shifts: Any,
) -> None:  # fmt: skip
    """out[g, k, c] = Σ_n the scalar products of g[n, g, k] and x[n, g, c]. Each thread has planes of its own."""
    count, groups, filters, _ = g.shape
    channels = x.shape[2]
    for thread in prange(len(planes)):
        plane, gradient = planes[thread], upstream[thread]
        totals = np.empty((_GROUPS, filters, channels, *products.shape[1:]))
        plane[:] = 0
        gradient[:] = 0
        end = groups * (thread + 1) // len(planes)
        for first in range(groups * thread // len(planes), end, _GROUPS):
            here = min(_GROUPS, end - first)
            totals[:] = 0
            for n in range(count):
                for i in range(here):
                    for c in range(channels):
                        _spread(plane[c], x[n, first + i, c], inside_starts, inside_columns, inside_dense)
                    for k in range(filters):
                        _spread(gradient, g[n, first + i, k], windows_starts, windows_columns, windows_dense)
                        for c in range(channels):
                            if _winograd.is_finite(x[n, first + i, c]):
                                _add_products(totals[i, k, c], products[thread], gradient, plane[c], shifts)
                            else:
                                starts, columns = windows_starts, windows_columns.size
                                _add_by_lines(totals[i, k, c], gradient, plane[c], shifts, starts, columns)
            for i in range(here):
                for k in range(filters):
                    for c in range(channels):
                        for t in range(out.shape[3]):
                            out[first + i, k, c, t] = totals[i, k, c, t].sum()


def _pays(channels: int, filters: int, groups: int, *arrays: Any) -> bool:
    return groups > 1 and channels * filters <= _MOST and all(a.size for a in arrays) and not _tile.PLAIN


def convolve(
    out: Any, x: Any, w: Any, b: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int
) -> bool:
    """out[n, k] = b[k] + Σ_c x[n, c] ⋆ w[k, c]; False, with anything in `out`, where another way is faster."""
    channels, filters = w.shape[1], len(w) // groups
    if not _pays(channels, filters, groups, out, x):
        return False
    table = _tables(8 * x.itemsize, x.shape[2:], w.shape[2:], stride, padding, dilation)
    taps = table.phase * table.size + table.shift
    bias = np.zeros((groups, filters), x.dtype)
    if b is not None:
        bias[:] = b.reshape(bias.shape)
    shapes = (
        (num_threads(), channels, table.phases * table.size + table.block),
        (num_threads(), 1, table.length + -table.length % table.block),
    )
    parts = np.array([[0, taps.size]])
    with _scratch.Scratch(x.dtype, *shapes) as memory:
        _multiply(
            out.reshape(len(x), groups, filters, -1), x.reshape(len(x), groups, channels, -1),
            w.reshape(groups, filters, channels, -1), bias, *memory, *table.inside, taps, parts,
            *table.windows, table.block,
        )  # fmt: skip
    return True


def convolve_back(out: Any, g: Any, w: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int) -> bool:
    """The input gradient `out` for the upstream gradient g; or False."""
    channels, filters = w.shape[1], len(w) // groups
    if not _pays(channels, filters, groups, out, g):
        return False
    table = _tables(8 * g.itemsize, out.shape[2:], w.shape[2:], stride, padding, dilation)
    margin = int(table.shift.max())
    order = np.argsort(table.phase, kind="stable")
    ends = np.searchsorted(table.phase[order], np.arange(table.phases + 1))
    parts = np.stack([ends[:-1], ends[1:]], 1)
    windows = table.windows._replace(starts=table.windows.starts + margin)
    w = np.ascontiguousarray(w.reshape(groups, filters, channels, -1)[..., order].swapaxes(1, 2))
    shapes = (num_threads(), filters, margin + table.size), (num_threads(), table.phases, table.size)
    with _scratch.Scratch(g.dtype, *shapes) as memory:
        _multiply(
            out.reshape(len(g), groups, channels, -1), g.reshape(len(g), groups, filters, -1), w,
            np.zeros((groups, channels), g.dtype), *memory, *windows, margin - table.shift[order], parts,
            *table.inside, table.block,
        )  # fmt: skip
    return True


def correlate(out: Any, g: Any, x: Any, stride: Extents, padding: Extents, dilation: Extents, groups: int) -> bool:
    """The weight gradient `out`; or False."""
    channels, filters = out.shape[1], len(out) // groups
    if not _pays(channels, filters, groups, g, x):
        return False
    table = _tables(8 * x.itemsize, x.shape[2:], out.shape[2:], stride, padding, dilation)
    shifts = table.phase * table.size + table.shift
    shifts = np.append(shifts, shifts[:1].repeat(-shifts.size % _tile.TAPS))  # sums that nobody looks at
    threads, width = num_threads(), _tile.shape(8 * x.itemsize)[1] // 2
    shapes = (
        (threads, channels, table.phases * table.size + table.block),
        (threads, table.length + -table.length % width),
        (threads, shifts.size, width),
    )
    with _scratch.Scratch(x.dtype, *shapes) as memory:
        _correlate(
            g.reshape(len(g), groups, filters, -1), x.reshape(len(x), groups, channels, -1),
            out.reshape(groups, filters, channels, -1), *memory, *table.inside, *table.windows, shifts,
        )  # fmt: skip
    return True
