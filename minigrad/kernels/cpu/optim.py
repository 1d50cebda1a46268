"""Optimizer steps: parameter and state updated in place, in one pass over each parameter.

A launch costs less than a microsecond here, so that a group is a loop of launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels import scalar
from minigrad.kernels.cpu._jit import Kernel, heard, helper, jit
from minigrad.kernels.cpu.array import Array

Arrays = Sequence[Array]
_PARALLEL_FROM = 1 << 15
_sgd_step, _adam_step, _rmsprop_step = helper(scalar.sgd), helper(scalar.adam), helper(scalar.rmsprop)


# A state array may be None: Numba compiles a variant without it. `n` are the numbers of a step, in an array, so that a
# captured step can be given others.


@jit(_PARALLEL_FROM)
def _sgd(p: Array, g: Array, b: Any, n: Array) -> None:
    lr, momentum, gain, decay, nesterov = n[0], n[1], n[2], n[3], n[4] != 0
    for i in prange(p.size):
        p[i], push = _sgd_step(p[i], g[i], None if b is None else b[i], lr, momentum, gain, decay, nesterov)
        if b is not None:
            b[i] = push


@jit(_PARALLEL_FROM)
def _adam(p: Array, g: Array, m: Array, v: Array, n: Array) -> None:
    lr, gain1, gain2, eps, decay, shrink, rms = n[0], n[1], n[2], n[3], n[4], n[5], n[6]
    for i in prange(p.size):
        p[i], m[i], v[i] = _adam_step(p[i], g[i], m[i], v[i], lr, gain1, gain2, eps, decay, shrink, rms)


@jit(_PARALLEL_FROM)
def _rmsprop(p: Array, g: Array, v: Array, a: Any, b: Any, n: Array) -> None:
    lr, gain, eps, decay, momentum = n[0], n[1], n[2], n[3], n[4]
    for i in prange(p.size):
        mean, push = None if a is None else a[i], None if b is None else b[i]
        p[i], v[i], mean, push = _rmsprop_step(p[i], g[i], v[i], mean, push, lr, gain, eps, decay, momentum)
        if a is not None:
            a[i] = mean
        if b is not None:
            b[i] = push


Step = tuple[Kernel, list[Any], tuple[float, ...]]  # a parameter's: what it runs by, on (p, g and state), and with


def _run(steps: Sequence[Step]) -> None:
    if heard.renumber is not None and heard.renumber(steps):
        return
    found: dict[Any, Array] = {}  # most parameters have the dtype and the numbers of others
    for kernel, arrays, numbers in steps:
        dtype = arrays[0].dtype
        if (ready := found.get((dtype, numbers))) is None:
            ready = found[dtype, numbers] = np.array(numbers, dtype)
        _launch(kernel, arrays, ready)


def _launch(kernel: Kernel, arrays: list[Any], numbers: Array) -> None:
    p = arrays[0]
    if not p.flags.c_contiguous:  # it could not be flattened in place
        contiguous = p.copy("C")
        _launch(kernel, [contiguous, *arrays[1:]], numbers)
        p[...] = contiguous
        return
    kernel.only(*[None if x is None else x.reshape(-1) for x in arrays], numbers)


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
    each = zip(params, grads, momentum_buffers, gains, strict=True)
    _run([(_sgd, [p, g, b], (lr, momentum, gain, weight_decay, nesterov)) for p, g, b, gain in each])


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
    made: list[Step] = []
    last = None  # most parameters have made as many steps as others
    for p, g, m, v, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        if step != last:
            last, numbers = step, scalar.adam_numbers(step, lr, betas, eps, weight_decay, decoupled)
        made.append((_adam, [p, g, m, v], numbers))
    _run(made)


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
    each = zip(params, grads, square_avgs, grad_avgs, momentum_buffers, strict=True)
    _run([(_rmsprop, list(arrays), (lr, 1 - alpha, eps, weight_decay, momentum)) for arrays in each])
