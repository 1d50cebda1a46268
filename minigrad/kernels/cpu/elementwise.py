"""Elementwise kernels: NumPy's ufuncs where one does the job in a single pass, lifted formulas where none does.

Ufuncs of large arrays run on all threads (`_loops`); small ones are quicker by NumPy itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels import scalar
from minigrad.kernels.cpu import _math
from minigrad.kernels.cpu._jit import heard, jit
from minigrad.kernels.cpu._layout import in_order
from minigrad.kernels.cpu._loops import LARGE, spread
from minigrad.kernels.cpu._quiet import quiet
from minigrad.kernels.cpu.array import Array, cast

_PARALLEL_FROM = 1 << 15  # elements
_CHOSEN_FROM = 1 << 11  # elements: where NumPy chooses, it is quickly there, and slow; in a captured step it is neither


def _ufunc(ufunc: Any, half: Callable[..., Array] | None = None) -> Callable[..., Array]:
    """The kernel that is a ufunc of NumPy. One operand of two may be a number; next to float16, `half` takes it."""

    def unary(x: Any) -> Array:
        made = spread(ufunc, x) if x.size >= LARGE or heard.launches is not None else None
        return np.asarray(quiet.run(ufunc, x)) if made is None else made

    def binary(x: Any, y: Any) -> Array:
        if type(x) is type(y):
            size = max(x.size, y.size)
        else:
            array = x if type(x) is np.ndarray else y
            if half and array.dtype == np.float16:
                return half(x, y)
            size = array.size
        made = spread(ufunc, x, y) if size >= LARGE or heard.launches is not None else None
        return np.asarray(quiet.run(ufunc, x, y)) if made is None else made

    return unary if ufunc.nin == 1 else binary


def _arithmetic(ufunc: Any) -> Callable[..., Array]:
    """The same, where a number met by float16 takes part in float32, as that rounds but once."""

    @np.errstate(all="ignore")
    def half(x: Any, y: Any) -> Array:
        x, y = (np.float32(a) if isinstance(a, int | float) else a for a in (x, y))
        return np.asarray(ufunc(x, y), np.float16)

    return _ufunc(ufunc, half)


add, sub, mul, div, _power = map(_arithmetic, (np.add, np.subtract, np.multiply, np.true_divide, np.power))
neg, abs, _sign, square, reciprocal = map(_ufunc, (np.negative, np.abs, np.sign, np.square, np.reciprocal))
exp, log, log1p, expm1, sqrt = map(_ufunc, (np.exp, np.log, np.log1p, np.expm1, np.sqrt))
sin, cos, tanh = map(_ufunc, (np.sin, np.cos, np.tanh))
_copysign = _ufunc(np.copysign)
_maximum, _minimum = map(_ufunc, (np.maximum, np.minimum))
eq, ne, lt, le, gt, ge = map(
    _ufunc, (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)
)
logical_and, logical_or, logical_not = map(_ufunc, (np.logical_and, np.logical_or, np.logical_not))
isnan, isinf, isfinite = map(_ufunc, (np.isnan, np.isinf, np.isfinite))


@jit(_PARALLEL_FROM)
def _choose(out: Array, condition: Array, x: Array, y: Array) -> None:
    for i in prange(out.size):
        a, b = x[i], y[i]  # both are read, so that there is no branch
        out[i] = a if condition[i] else b


@jit(_PARALLEL_FROM)
def _choose_number(out: Array, condition: Array, truth: bool, x: Array, number: Any) -> None:
    """x where the condition is `truth`, else the number."""
    for i in prange(out.size):
        a = x[i]
        out[i] = a if condition[i] == truth else number


@np.errstate(all="ignore")
def where(condition: Any, x: Any, y: Any) -> Array:
    broadcast = any(a.shape != condition.shape for a in (x, y) if isinstance(a, np.ndarray))
    if broadcast or (condition.size < _CHOSEN_FROM and heard.launches is None):
        return np.asarray(np.where(condition, x, y))
    out = np.empty(condition.shape, np.result_type(x, y))
    bits = f"u{out.itemsize}"  # a choice need not know what they mean

    def flat(a: Any) -> Any:
        return np.ascontiguousarray(a, out.dtype).reshape(-1).view(bits)

    condition = np.ascontiguousarray(condition).reshape(-1)
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        _choose.only(flat(out), condition, flat(x), flat(y))
    elif isinstance(x, np.ndarray):
        _choose_number.only(flat(out), condition, True, flat(x), flat(y)[0])
    else:
        _choose_number.only(flat(out), condition, False, flat(y), flat(x)[0])
    return out


def _lift(formula: Callable[..., Any], arrays: int) -> Callable[..., Array]:
    """A kernel that applies a formula of `scalar.py` to one or two equally shaped arrays (and parameters)."""
    f = _math.lifted(formula)

    if arrays == 1:

        @jit(_PARALLEL_FROM, formula=formula)
        def elementwise(out: Array, x: Array, parameters: tuple[float, ...]) -> None:
            for i in prange(out.size):
                out[i] = f(x[i], *parameters)
    else:

        @jit(_PARALLEL_FROM, formula=formula)
        def elementwise(out: Array, x: Array, y: Array, parameters: tuple[float, ...]) -> None:
            for i in prange(out.size):
                out[i] = f(x[i], y[i], *parameters)

    def kernel(*operands: Any) -> Array:
        x = operands[0]
        dtype = np.float32 if x.dtype == np.float16 else x.dtype
        flat = [in_order(cast(a, dtype)).reshape(-1) for a in operands[:arrays]]
        out = np.empty(x.shape, dtype)
        elementwise.only(out.reshape(-1), *flat, operands[arrays:])
        return out if dtype == x.dtype else cast(out, x.dtype)

    return kernel


_whole_power, _root = _lift(_math.whole_power, 1), _lift(_math.root, 1)


def pow(x: Any, y: Any) -> Array:
    if isinstance(y, int | float) and y == 2:
        return square(x)
    if isinstance(y, int | float) and isinstance(x, np.ndarray) and x.dtype.kind == "f":
        if y in range(-7, 8):
            return _whole_power(x, int(y))
        if y in (0.5, -0.5):
            return _root(x, y < 0)
        if y == y // 1:  # a whole number; NumPy takes powers of negative numbers one by one
            power = _power(abs(x), y)
            return _copysign(power, x) if y % 2 else power
    return _power(x, y)


_clip, _sign_of = _lift(_math.clip, 1), _lift(_math.sign, 1)


def _is_lifted(x: Any) -> bool:
    """Here NumPy takes floats one by one."""
    return x.dtype.kind == "f" and (x.size >= _CHOSEN_FROM or heard.launches is not None)


def clip(x: Any, low: Any, high: Any) -> Array:
    if low == low and high == high and _is_lifted(x):
        return _clip(x, -math.inf if low is None else float(low), math.inf if high is None else float(high))
    if low is not None:
        x = _maximum(x, low)
    return x if high is None else _minimum(x, high)


def maximum(x: Any, y: Any) -> Array:
    x, y = (y, x) if isinstance(x, int | float) else (x, y)
    return clip(x, y, None) if isinstance(y, int | float) else _maximum(x, y)


def minimum(x: Any, y: Any) -> Array:
    x, y = (y, x) if isinstance(x, int | float) else (x, y)
    return clip(x, None, y) if isinstance(y, int | float) else _minimum(x, y)


def sign(x: Any) -> Array:
    return _sign_of(x) if _is_lifted(x) else _sign(x)


rsqrt = _lift(scalar.rsqrt, 1)
sigmoid, sigmoid_vjp = _lift(scalar.sigmoid, 1), _lift(scalar.sigmoid_vjp, 2)
tanh_vjp = _lift(scalar.tanh_vjp, 2)
softplus, softplus_vjp = _lift(scalar.softplus, 1), _lift(scalar.softplus_vjp, 2)
relu, relu_vjp = _lift(scalar.relu, 1), _lift(scalar.relu_vjp, 2)
leaky_relu, leaky_relu_vjp = _lift(scalar.leaky_relu, 1), _lift(scalar.leaky_relu_vjp, 2)
elu, elu_vjp = _lift(scalar.elu, 1), _lift(scalar.elu_vjp, 2)
gelu, gelu_vjp = _lift(scalar.gelu, 1), _lift(scalar.gelu_vjp, 2)
silu, silu_vjp = _lift(scalar.silu, 1), _lift(scalar.silu_vjp, 2)
