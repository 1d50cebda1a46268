"""The softmax family over one dimension: a block for each row, shifted by the maximum so that nothing overflows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import cuda, ldg, steps
from minigrad.kernels.cuda._places import places, places_along
from minigrad.kernels.cuda.array import Array, cast, empty, geometry
from minigrad.kernels.cuda.elementwise import _wide, exp, mul, sub
from minigrad.kernels.cuda.launch import BLOCK, FLOATS, helper, kernel
from minigrad.kernels.cuda.reduce import _only, _two_sum, sum


@helper
def _peak_and_total(x: Any, base: Any, along: Any, n: Any) -> tuple[Any, Any]:
    """max x and Σ e^{x − max x}, known to every thread of the block; NaN wins."""
    values = cuda.shared.array(BLOCK, x.dtype)
    rests = cuda.shared.array(BLOCK, x.dtype)
    thread = np.uint32(cuda.threadIdx.x)
    peak = ldg(x, np.uint32(base + places_along(along, np.uint32(0))[0]))
    for j in steps(thread, n, np.uint32(BLOCK)):
        value = ldg(x, np.uint32(base + places_along(along, j)[0]))
        if value > peak or value != value:
            peak = value
    values[thread] = peak
    half = np.uint32(BLOCK // 2)
    while half > np.uint32(0):
        cuda.syncthreads()
        if thread < half:
            value = values[np.uint32(thread + half)]
            if value > values[thread] or value != value:
                values[thread] = value
        half = np.uint32(half >> np.uint32(1))
    cuda.syncthreads()
    peak = values[np.uint32(0)]
    cuda.syncthreads()
    total, rest = x.dtype.type(0), x.dtype.type(0)
    for j in steps(thread, n, np.uint32(BLOCK)):
        at = np.uint32(base + places_along(along, j)[0])
        total, rest = _two_sum(total, rest, math.exp(ldg(x, at) - peak), x.dtype.type(0))
    values[thread], rests[thread] = total, rest
    half = np.uint32(BLOCK // 2)
    while half > np.uint32(0):
        cuda.syncthreads()
        if thread < half:
            other = np.uint32(thread + half)
            values[thread], rests[thread] = _two_sum(values[thread], rests[thread], values[other], rests[other])
        half = np.uint32(half >> np.uint32(1))
    cuda.syncthreads()
    return peak, values[np.uint32(0)] + rests[np.uint32(0)]


@kernel("T[] T[] u4[] u4[] u4", T=FLOATS)
def _logsumexp_rows(out: Any, x: Any, across: Any, along: Any, n: Any) -> None:
    row = np.uint32(cuda.blockIdx.x)
    peak, total = _peak_and_total(x, places(across, row)[0], along, n)
    if cuda.threadIdx.x == 0:
        out[row] = peak if math.isinf(peak) else peak + math.log(total)


def _rows(formula: Callable[..., Any]) -> Any:
    """A kernel that writes f(x, peak, total) for each element of each row."""
    f = helper(formula)

    @kernel("T[] T[] u4[] u4[] u4", formula=formula, T=FLOATS)
    def rows(out: Any, x: Any, across: Any, along: Any, n: Any) -> None:
        base, base_out, _ = places(across, np.uint32(cuda.blockIdx.x))
        peak, total = _peak_and_total(x, base, along, n)
        for j in steps(np.uint32(cuda.threadIdx.x), n, np.uint32(BLOCK)):
            at, to, _ = places_along(along, j)
            out[np.uint32(base_out + to)] = f(ldg(x, np.uint32(base + at)), peak, total)

    return rows


def _share(x: Any, peak: Any, total: Any) -> Any:
    return math.exp(x - peak) / total


def _log_share(x: Any, peak: Any, total: Any) -> Any:
    return (x - peak) - math.log(total)


_softmax_rows, _log_softmax_rows = _rows(_share), _rows(_log_share)


def logsumexp(x: Array, dim: int, keepdim: bool) -> Array:
    wide = _wide(x)
    rest = _only(wide, [d for d in range(x.ndim) if d != dim])
    out = empty(rest.shape, wide.dtype)
    if out.size:
        across, along = geometry(rest.shape, rest.strides), geometry((x.shape[dim],), (wide.strides[dim],))
        _logsumexp_rows[out.size, BLOCK](out, wide, across, along, x.shape[dim])
    made = cast(out, x.dtype)
    return made.reshape((*x.shape[:dim], 1, *x.shape[dim + 1 :])) if keepdim else made


def softmax(x: Array, dim: int) -> Array:
    return _same_shape(_softmax_rows, x, dim)


def log_softmax(x: Array, dim: int) -> Array:
    return _same_shape(_log_softmax_rows, x, dim)


def softmax_vjp(g: Array, y: Array, dim: int) -> Array:
    """y (g − Σ g y) for y = softmax x."""
    return mul(y, sub(g, sum(mul(g, y), (dim,), True)))


def log_softmax_vjp(g: Array, y: Array, dim: int) -> Array:
    """g − eʸ Σ g for y = log softmax x."""
    return sub(g, mul(exp(y), sum(g, (dim,), True)))


def _same_shape(kernel: Any, x: Array, dim: int) -> Array:
    wide = _wide(x)
    out = empty(x.shape, wide.dtype)
    if out.size:
        kept = [d for d in range(x.ndim) if d != dim]
        rest, to = _only(wide, kept), _only(out, kept)
        across = geometry(rest.shape, rest.strides, to.strides)
        along = geometry((x.shape[dim],), (wide.strides[dim],), (out.strides[dim],))
        kernel[rest.size, BLOCK](out, wide, across, along, x.shape[dim])
    return cast(out, x.dtype)
