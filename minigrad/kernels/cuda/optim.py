"""Optimizer steps: one launch for all parameters of a group that step by the same numbers.

A kernel takes arrays one by one, and their number is part of its type. So the parameters, their gradients and their
state come as a table of addresses, with a list of which block works on which piece of which parameter; the numbers of
a step lie in device memory, too. All three are kept as long as they do not change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.kernels import scalar
from minigrad.kernels.cuda._numba import SIMULATED, array_at, cuda, steps
from minigrad.kernels.cuda._stream import here
from minigrad.kernels.cuda.array import Array, constant, contiguous, write
from minigrad.kernels.cuda.launch import BLOCK, FLOATS, Kernel, helper, kernel

Arrays = Sequence[Array]
_PIECE = 2 * BLOCK if SIMULATED else 8 * BLOCK  # elements of a block
_COLUMNS = 6  # of the table: size; addresses of a parameter, its gradient, three of its state
_NUMBERS = 7
_sgd_step, _adam_step, _rmsprop_step = helper(scalar.sgd), helper(scalar.adam), helper(scalar.rmsprop)


def _stepping(formula: Callable[..., Any], states: int) -> Kernel:
    """p, state = formula(p, g, state, numbers) for every element, of whose state so many entries are used."""
    f = helper(formula)

    @kernel("u8[] u4[] T[]", formula=formula, T=FLOATS)
    def step(table: Any, work: Any, numbers: Any) -> None:
        job = np.uint32(np.uint32(cuda.blockIdx.x) * np.uint32(2))
        row, first = np.uint32(work[job] * np.uint32(_COLUMNS)), work[np.uint32(job + np.uint32(1))]
        size = np.uint32(table[row])
        last = np.uint32(min(np.uint32(first + np.uint32(_PIECE)), size))
        p = array_at(table[np.uint32(row + np.uint32(1))], size, numbers)
        g = array_at(table[np.uint32(row + np.uint32(2))], size, numbers)
        a = array_at(table[np.uint32(row + np.uint32(3))], size, numbers)
        b = array_at(table[np.uint32(row + np.uint32(4))], size, numbers)
        c = array_at(table[np.uint32(row + np.uint32(5))], size, numbers)
        n = (numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6])
        none = numbers.dtype.type(0)
        for i in steps(np.uint32(first + np.uint32(cuda.threadIdx.x)), last, np.uint32(BLOCK)):
            s = a[i] if states > 0 else none, b[i] if states > 1 else none, c[i] if states > 2 else none
            p[i], s = f(p[i], g[i], s, n)
            if states > 0:
                a[i] = s[0]
            if states > 1:
                b[i] = s[1]
            if states > 2:
                c[i] = s[2]

    return step


def _plain_sgd(p: Any, g: Any, s: Any, n: Any) -> Any:
    return _sgd_step(p, g, None, *n[:5])[0], s


def _momentum_sgd(p: Any, g: Any, s: Any, n: Any) -> Any:
    p, b = _sgd_step(p, g, s[0], *n[:5])
    return p, (b, s[1], s[2])


def _adam(p: Any, g: Any, s: Any, n: Any) -> Any:
    p, m, v = _adam_step(p, g, s[0], s[1], *n)
    return p, (m, v, s[2])


def _plain_rmsprop(p: Any, g: Any, s: Any, n: Any) -> Any:
    p, v, _, _ = _rmsprop_step(p, g, s[0], None, None, *n[:5])
    return p, (v, s[1], s[2])


def _centered_rmsprop(p: Any, g: Any, s: Any, n: Any) -> Any:
    p, v, a, _ = _rmsprop_step(p, g, s[0], s[1], None, *n[:5])
    return p, (v, a, s[2])


def _momentum_rmsprop(p: Any, g: Any, s: Any, n: Any) -> Any:
    p, v, _, b = _rmsprop_step(p, g, s[0], None, s[1], *n[:5])
    return p, (v, b, s[2])


def _whole_rmsprop(p: Any, g: Any, s: Any, n: Any) -> Any:
    p, v, a, b = _rmsprop_step(p, g, s[0], s[1], s[2], *n[:5])
    return p, (v, a, b)


_SGD = {0: _stepping(_plain_sgd, 0), 1: _stepping(_momentum_sgd, 1)}  # by whether there is momentum
_ADAM = _stepping(_adam, 2)
_RMSPROP = {  # by whether it is centered, and whether there is momentum
    (0, 0): _stepping(_plain_rmsprop, 1),
    (1, 0): _stepping(_centered_rmsprop, 2),
    (0, 1): _stepping(_momentum_rmsprop, 2),
    (1, 1): _stepping(_whole_rmsprop, 3),
}


# One launch -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _table(rows: tuple[tuple[int, ...], ...]) -> Array:
    return constant(np.array([row + (0,) * (_COLUMNS - len(row)) for row in rows], np.uint64))


@functools.lru_cache(maxsize=64)
def _work(sizes: tuple[int, ...]) -> Array:
    """(parameter, its first element) of each block."""
    pieces = [(i, first) for i, size in enumerate(sizes) for first in range(0, size, _PIECE)]
    return constant(np.array(pieces, np.uint32))


def _padded(numbers: tuple[float, ...], dtype: Any) -> Any:
    return np.array(numbers + (0.0,) * (_NUMBERS - len(numbers)), dtype)


@functools.lru_cache(maxsize=64)
def _numbers(numbers: tuple[float, ...], dtype: Any) -> Array:
    return constant(_padded(numbers, dtype))


Step = tuple[Kernel, list[Array], tuple[float, ...]]  # a parameter's: what it runs by, on, and with


def _run(steps: Sequence[Step]) -> None:
    """Each step's arrays are a parameter, its gradient, its state; steps of one kind make one launch."""
    recording = here.recording
    if recording is not None and recording.renumber(steps):
        return
    kinds: dict[Any, list[int]] = {}
    for i, (run, arrays, numbers) in enumerate(steps):
        if arrays[0].size:
            kinds.setdefault((run, numbers, arrays[0].dtype), []).append(i)
    slots = []
    for (run, numbers, dtype), members in kinds.items():
        group = [steps[i][1] for i in members]
        ready = [[contiguous(x) for x in arrays] for arrays in group]
        table = _table(tuple((p.size, *(x.address for x in (p, *others))) for p, *others in ready))
        work = _work(tuple(p.size for p, *_ in ready))
        if recording is None:
            changing = _numbers(numbers, dtype)
        else:
            changing = recording.slot(_padded(numbers, dtype))
            slots.append((members, changing))
            for arrays in ready:
                for x in arrays:
                    recording.keep(x.buffer)
        run[work.shape[0], BLOCK](table, work, changing)
        for arrays, made in zip(group, ready, strict=True):
            for i, (x, y) in enumerate(zip(arrays, made, strict=True)):
                if x is not y and i != 1:  # it could not be changed in place; and a gradient was not changed
                    write(x, y)
    if recording is not None:
        recording.updates.append(([arrays for _, arrays, _ in steps], slots))


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
    steps: list[Step] = []
    for p, g, b, gain in zip(params, grads, momentum_buffers, gains, strict=True):
        arrays = [x for x in (p, g, b) if x is not None]
        steps.append((_SGD[b is not None], arrays, (lr, momentum, gain, weight_decay, nesterov)))
    _run(steps)


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
    for p, g, m, v, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        made.append((_ADAM, [p, g, m, v], scalar.adam_numbers(step, lr, betas, eps, weight_decay, decoupled)))
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
    steps: list[Step] = []
    for p, g, v, a, b in zip(params, grads, square_avgs, grad_avgs, momentum_buffers, strict=True):
        arrays = [x for x in (p, g, v, a, b) if x is not None]
        steps.append((_RMSPROP[a is not None, b is not None], arrays, (lr, 1 - alpha, eps, weight_decay, momentum)))
    _run(steps)
