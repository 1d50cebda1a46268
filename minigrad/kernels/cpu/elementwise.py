"""Elementwise kernels: NumPy's ufuncs where one does the job in a single pass, lifted formulas where none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from minigrad.kernels import scalar
from minigrad.kernels.cpu import _math
from minigrad.kernels.cpu._jit import jit
from minigrad.kernels.cpu._quiet import quiet
from minigrad.kernels.cpu.array import Array, cast

_PARALLEL_FROM = 1 << 15  # elements


def _quiet(ufunc: Any) -> Callable[..., Array]:
    """The kernel that is a ufunc of NumPy."""

    def kernel(*operands: Any) -> Array:
        return np.asarray(quiet.run(ufunc, *operands))

    kernel.ufunc = ufunc  # type: ignore[attr-defined]  # for a captured step
    return kernel


def _arithmetic(ufunc: Any) -> Callable[..., Array]:
    """The same for two operands; a number met by float16 takes part in float32, as that rounds but once."""

    @np.errstate(all="ignore")
    def half(x: Any, y: Any) -> Array:
        x, y = (np.float32(a) if isinstance(a, int | float) else a for a in (x, y))
        return np.asarray(ufunc(x, y), np.float16)

    def kernel(x: Any, y: Any) -> Array:
        if type(x) is not type(y) and np.float16 in (getattr(x, "dtype", None), getattr(y, "dtype", None)):
            return half(x, y)
        return np.asarray(quiet.run(ufunc, x, y))

    kernel.ufunc = ufunc  # type: ignore[attr-defined]
    return kernel


add, sub, mul, div, _power = map(_arithmetic, (np.add, np.subtract, np.multiply, np.true_divide, np.power))
neg, abs, sign, square, reciprocal = map(_quiet, (np.negative, np.abs, np.sign, np.square, np.reciprocal))
exp, log, log1p, expm1, sqrt = map(_quiet, (np.exp, np.log, np.log1p, np.expm1, np.sqrt))
sin, cos, tanh = map(_quiet, (np.sin, np.cos, np.tanh))
maximum, minimum = map(_quiet, (np.maximum, np.minimum))
eq, ne, lt, le, gt, ge = map(
    _quiet, (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)
)
logical_and, logical_or, logical_not = map(_quiet, (np.logical_and, np.logical_or, np.logical_not))
isnan, isinf, isfinite = map(_quiet, (np.isnan, np.isinf, np.isfinite))


@np.errstate(all="ignore")
def clip(x: Any, low: Any, high: Any) -> Array:
    return np.asarray(np.clip(x, low, high))


@np.errstate(all="ignore")
def where(condition: Any, x: Any, y: Any) -> Array:
    return np.asarray(np.where(condition, x, y))


def pow(x: Any, y: Any) -> Array:
    if isinstance(y, int | float) and y == 2:
        return square(x)
    return _power(x, y)


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
        flat = [np.ascontiguousarray(a, dtype).reshape(-1) for a in operands[:arrays]]
        out = np.empty(x.shape, dtype)
        elementwise.only(out.reshape(-1), *flat, operands[arrays:])
        return out if dtype == x.dtype else cast(out, x.dtype)

    return kernel


rsqrt = _lift(scalar.rsqrt, 1)
sigmoid, sigmoid_vjp = _lift(scalar.sigmoid, 1), _lift(scalar.sigmoid_vjp, 2)
tanh_vjp = _lift(scalar.tanh_vjp, 2)
softplus, softplus_vjp = _lift(scalar.softplus, 1), _lift(scalar.softplus_vjp, 2)
relu, relu_vjp = _lift(scalar.relu, 1), _lift(scalar.relu_vjp, 2)
leaky_relu, leaky_relu_vjp = _lift(scalar.leaky_relu, 1), _lift(scalar.leaky_relu_vjp, 2)
elu, elu_vjp = _lift(scalar.elu, 1), _lift(scalar.elu_vjp, 2)
gelu, gelu_vjp = _lift(scalar.gelu, 1), _lift(scalar.gelu_vjp, 2)
silu, silu_vjp = _lift(scalar.silu, 1), _lift(scalar.silu_vjp, 2)
