"""Optimizer steps: parameter and state updated in place, in one pass over each parameter.

A launch costs less than a microsecond here, so that a group is a loop of launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import prange

from minigrad.kernels import scalar
from minigrad.kernels.cpu._jit import Kernel, helper, jit
from minigrad.kernels.cpu.array import Array

Arrays = Sequence[Array]
_PARALLEL_FROM = 1 << 15
_sgd_step, _adam_step, _rmsprop_step = helper(scalar.sgd), helper(scalar.adam), helper(scalar.rmsprop)


# A state array may be None: Numba compiles a variant without it.


@jit(_PARALLEL_FROM)
def _sgd(p: Array, g: Array, b: Any, lr: Any, momentum: Any, gain: Any, decay: Any, nesterov: Any) -> None:
    for i in prange(p.size):
        p[i], push = _sgd_step(p[i], g[i], None if b is None else b[i], lr, momentum, gain, decay, nesterov)
        if b is not None:
            b[i] = push


@jit(_PARALLEL_FROM)
def _adam(
    p: Array, g: Array, m: Array, v: Array, lr: Any, gain1: Any, gain2: Any, eps: Any, decay: Any, shrink: Any, rms: Any
) -> None:
    for i in prange(p.size):
        p[i], m[i], v[i] = _adam_step(p[i], g[i], m[i], v[i], lr, gain1, gain2, eps, decay, shrink, rms)


@jit(_PARALLEL_FROM)
def _rmsprop(
    p: Array, g: Array, v: Array, a: Any, b: Any, lr: Any, gain: Any, eps: Any, decay: Any, momentum: Any
) -> None:
    for i in prange(p.size):
        mean, push = None if a is None else a[i], None if b is None else b[i]
        p[i], v[i], mean, push = _rmsprop_step(p[i], g[i], v[i], mean, push, lr, gain, eps, decay, momentum)
        if a is not None:
            a[i] = mean
        if b is not None:
            b[i] = push


def _rounded(dtype: Any, *numbers: float) -> tuple[Any, ...]:
    """The numbers in a parameter's dtype."""
    return tuple(map(dtype.type, numbers))


def _step(kernel: Kernel, p: Array, g: Array, state: Sequence[Array | None], numbers: tuple[Any, ...]) -> None:
    """One parameter's step: all arrays flat, all numbers in the parameter's dtype."""
    if not p.flags.c_contiguous:  # it could not be flattened in place
        contiguous = p.copy("C")
        _step(kernel, contiguous, g, state, numbers)
        p[...] = contiguous
        return
    slots = [None if x is None else x.reshape(-1) for x in state]
    kernel(p.reshape(-1), g.reshape(-1), *slots, *numbers)


def sgd(
    params: Arrays,
    grads: Arrays,
    momentum_buffers: Sequence[Array | None],
    gains: Sequence[float],
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """`gains`: what of a gradient enters each momentum buffer: 1 − dampening, 1 for the first."""
    for p, g, b, gain in zip(params, grads, momentum_buffers, gains, strict=True):
        _step(_sgd, p, g, [b], _rounded(p.dtype, lr, momentum, gain, weight_decay, nesterov))


def adam(
    params: Arrays,
    grads: Arrays,
    exp_avgs: Arrays,
    exp_avg_sqs: Arrays,
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """`steps`: how many steps each parameter has made, with this one."""
    found: dict[Any, tuple[Any, ...]] = {}  # most parameters have the dtype and the step of others
    for p, g, m, v, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        if (numbers := found.get((p.dtype, step))) is None:
            numbers = _rounded(p.dtype, *scalar.adam_numbers(step, lr, betas, eps, weight_decay, decoupled))
            found[p.dtype, step] = numbers
        _step(_adam, p, g, (m, v), numbers)


def rmsprop(
    params: Arrays,
    grads: Arrays,
    square_avgs: Arrays,
    grad_avgs: Sequence[Array | None],
    momentum_buffers: Sequence[Array | None],
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """`grad_avgs`: arrays for the centered form, else None; `momentum_buffers`: arrays for momentum, else None."""
    for p, g, v, a, b in zip(params, grads, square_avgs, grad_avgs, momentum_buffers, strict=True):
        _step(_rmsprop, p, g, [v, a, b], _rounded(p.dtype, lr, 1 - alpha, eps, weight_decay, momentum))
