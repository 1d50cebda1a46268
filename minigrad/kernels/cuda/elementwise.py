"""Elementwise kernels: one per formula, for arrays that broadcast in any layout, and for numbers.

Numbers travel as arguments of the kernel. Float16 is storage: it is computed with in float32, and rounded once.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.kernels import scalar
from minigrad.kernels.cuda._numba import ldg
from minigrad.kernels.cuda._places import places
from minigrad.kernels.cuda.array import Array, cast, empty, full, geometry_of
from minigrad.kernels.cuda.launch import COMPUTED, FLOATS, NUMBERS, helper, items, kernel

Dtypes = tuple[str, ...]
_BOTH, _LEFT, _RIGHT = 0, 1, 2  # which operands are arrays: both, or one beside a number


def _unary(formula: Callable[..., Any], dtypes: Dtypes = FLOATS, *, to_bool: bool = False) -> Callable[..., Array]:
    """out = f(x)."""
    f = helper(formula)

    @kernel(f"u4 {'?' if to_bool else 'T'}[] T[] u4[]", formula=formula, T=dtypes)
    def one(size: Any, out: Any, x: Any, layout: Any) -> None:
        for i in items(size):
            out[i] = f(ldg(x, places(layout, i)[0]))

    def launch(*operands: Any) -> Array:
        (x,) = operands
        wide = _wide(x)
        out = empty(x.shape, np.bool_ if to_bool else wide.dtype)
        one.each(out.size, out, wide, geometry_of(x.shape, wide))
        return out if to_bool else cast(out, x.dtype)

    return launch


def _shaped(formula: Callable[..., Any]) -> Callable[..., Array]:
    """out = f(x, parameter)."""
    f = helper(formula)

    @kernel("u4 T[] T[] u4[] T", formula=formula, T=FLOATS)
    def shaped(size: Any, out: Any, x: Any, layout: Any, parameter: Any) -> None:
        for i in items(size):
            out[i] = f(ldg(x, places(layout, i)[0]), parameter)

    def launch(*operands: Any) -> Array:
        x, parameter = operands
        wide = _wide(x)
        out = empty(x.shape, wide.dtype)
        shaped.each(out.size, out, wide, geometry_of(x.shape, wide), parameter)
        return cast(out, x.dtype)

    return launch


def _shaped_vjp(formula: Callable[..., Any]) -> Callable[..., Array]:
    """out = f(g, x, parameter)."""
    f = helper(formula)

    @kernel("u4 T[] T[] T[] u4[] T", formula=formula, T=FLOATS)
    def shaped(size: Any, out: Any, g: Any, x: Any, layout: Any, parameter: Any) -> None:
        for i in items(size):
            a, b, _ = places(layout, i)
            out[i] = f(ldg(g, a), ldg(x, b), parameter)

    def launch(*operands: Any) -> Array:
        g, x, parameter = _wide(operands[0]), _wide(operands[1]), operands[2]
        out = empty(x.shape, x.dtype)
        shaped.each(out.size, out, g, x, geometry_of(x.shape, g, x), parameter)
        return cast(out, operands[1].dtype)

    return launch


def _binary(formula: Callable[..., Any], dtypes: Dtypes = FLOATS, *, to_bool: bool = False) -> Callable[..., Any]:
    """out = f(x, y); one of the two may be a number."""
    f = helper(formula)

    @kernel(f"u4 {'?' if to_bool else 'T'}[] T[] T[] u4[] u4 T", formula=formula, T=dtypes)
    def two(size: Any, out: Any, x: Any, y: Any, layout: Any, arrays: Any, number: Any) -> None:
        for i in items(size):
            a, b, _ = places(layout, i)
            left, right = number, number
            if arrays != np.uint32(_RIGHT):
                left = ldg(x, a)
            if arrays != np.uint32(_LEFT):
                right = ldg(y, b)
            out[i] = f(left, right)

    def launch(x: Any, y: Any) -> Array:
        arrays, number = _BOTH, 0
        like = x if isinstance(x, Array) else y
        if not isinstance(x, Array):
            x, arrays, number = y, _RIGHT, x
        elif not isinstance(y, Array):
            y, arrays, number = x, _LEFT, y
        if to_bool and arrays != _BOTH:
            number = _rounded(number, like.dtype)
        x, y = _wide(x), _wide(y)
        shape = x.shape if x.shape == y.shape else np.broadcast_shapes(x.shape, y.shape)
        out = empty(shape, np.bool_ if to_bool else x.dtype)
        two.each(out.size, out, x, y, geometry_of(shape, x, y), arrays, number)
        return out if to_bool else cast(out, like.dtype)

    return launch


def _wide(x: Array) -> Array:
    """Float16 as float32, to compute in; all else as it is."""
    return cast(x, np.float32) if x.dtype == np.float16 else x


def _rounded(number: Any, dtype: Any) -> Any:
    """The number as an array of this dtype would hold it: what it is compared as."""
    with np.errstate(all="ignore"):
        return dtype.type(number)


def _max(x: Any, y: Any) -> Any:
    return x if x > y or x != x else y


def _min(x: Any, y: Any) -> Any:
    return x if x < y or x != x else y


def _sign(x: Any) -> Any:
    zero = type(x)(0)
    return x if x != x else type(x)(1) if x > zero else type(x)(-1) if x < zero else zero


def _raised(x: Any, n: Any) -> Any:
    """xⁿ of integers, by squaring; n ≥ 0."""
    power = type(x)(1)
    while n > type(n)(0):
        if n & type(n)(1):
            power = power * x
        x = x * x
        n = n >> type(n)(1)
    return power


def _named(name: str, formula: Callable[..., Any]) -> Callable[..., Any]:
    formula.__name__ = name
    return formula


add = _binary(_named("add", lambda x, y: x + y), COMPUTED)  # bools: 1 + 1 is true
sub = _binary(_named("sub", lambda x, y: x - y), NUMBERS)
mul = _binary(_named("mul", lambda x, y: x * y), COMPUTED)
div = _binary(_named("div", lambda x, y: x / y))
_power, _whole_power = _binary(_named("pow", lambda x, y: x**y)), _binary(_named("whole_pow", _raised), ("i8",))
maximum, minimum = _binary(_named("maximum", _max), COMPUTED), _binary(_named("minimum", _min), COMPUTED)

eq = _binary(_named("eq", lambda x, y: x == y), COMPUTED, to_bool=True)
ne = _binary(_named("ne", lambda x, y: x != y), COMPUTED, to_bool=True)
lt = _binary(_named("lt", lambda x, y: x < y), COMPUTED, to_bool=True)
le = _binary(_named("le", lambda x, y: x <= y), COMPUTED, to_bool=True)
gt = _binary(_named("gt", lambda x, y: x > y), COMPUTED, to_bool=True)
ge = _binary(_named("ge", lambda x, y: x >= y), COMPUTED, to_bool=True)
logical_and = _binary(_named("logical_and", lambda x, y: x != type(x)(0) and y != type(y)(0)), COMPUTED, to_bool=True)
logical_or = _binary(_named("logical_or", lambda x, y: x != type(x)(0) or y != type(y)(0)), COMPUTED, to_bool=True)
logical_not = _unary(_named("logical_not", lambda x: x == type(x)(0)), COMPUTED, to_bool=True)

neg = _unary(_named("neg", lambda x: -x), NUMBERS)
abs = _unary(_named("abs", lambda x: builtins.abs(x)), NUMBERS)
sign = _unary(_named("sign", _sign), NUMBERS)
square = _unary(_named("square", lambda x: x * x), NUMBERS)
reciprocal = _unary(_named("reciprocal", lambda x: type(x)(1) / x))
exp, log = _unary(_named("exp", lambda x: math.exp(x))), _unary(_named("log", lambda x: math.log(x)))
log1p, expm1 = _unary(_named("log1p", lambda x: math.log1p(x))), _unary(_named("expm1", lambda x: math.expm1(x)))
sin, cos = _unary(_named("sin", lambda x: math.sin(x))), _unary(_named("cos", lambda x: math.cos(x)))
sqrt, tanh = _unary(_named("sqrt", lambda x: math.sqrt(x))), _unary(_named("tanh", lambda x: math.tanh(x)))

rsqrt = _unary(scalar.rsqrt)
sigmoid, sigmoid_vjp = _unary(scalar.sigmoid), _binary(scalar.sigmoid_vjp)
tanh_vjp = _binary(scalar.tanh_vjp)
softplus, softplus_vjp = _unary(scalar.softplus), _binary(scalar.softplus_vjp)
relu, relu_vjp = _unary(scalar.relu), _binary(scalar.relu_vjp)
leaky_relu, leaky_relu_vjp = _shaped(scalar.leaky_relu), _shaped_vjp(scalar.leaky_relu_vjp)
elu, elu_vjp = _shaped(scalar.elu), _shaped_vjp(scalar.elu_vjp)
gelu, gelu_vjp = _unary(scalar.gelu), _binary(scalar.gelu_vjp)
silu, silu_vjp = _unary(scalar.silu), _binary(scalar.silu_vjp)

_is_nan = _unary(_named("isnan", lambda x: x != x), to_bool=True)
_is_inf = _unary(_named("isinf", lambda x: x == x and x - x != x - x), to_bool=True)
_is_finite = _unary(_named("isfinite", lambda x: x - x == x - x), to_bool=True)


def isnan(*operands: Any) -> Array:
    return _of_floats(_is_nan, False, *operands)


def isinf(*operands: Any) -> Array:
    return _of_floats(_is_inf, False, *operands)


def isfinite(*operands: Any) -> Array:
    return _of_floats(_is_finite, True, *operands)


def _of_floats(question: Callable[[Any], Array], of_others: bool, x: Any) -> Array:
    return question(x) if x.dtype.kind == "f" else full(x.shape, of_others, np.bool_)


def pow(x: Any, y: Any) -> Array:
    if isinstance(y, int | float) and y == 2:
        return square(x)
    return (_whole_power if (x if isinstance(x, Array) else y).dtype.kind == "i" else _power)(x, y)


def clip(x: Any, low: Any, high: Any) -> Array:
    if low is not None:
        x = maximum(x, low)
    return x if high is None else minimum(x, high)


@kernel("u4 T[] ?[] T[] T[] u4[] u4 T", T=COMPUTED)
def _where(size: Any, out: Any, condition: Any, x: Any, y: Any, layout: Any, arrays: Any, number: Any) -> None:
    for i in items(size):
        c, a, b = places(layout, i)
        if ldg(condition, c):
            out[i] = number if arrays == np.uint32(_RIGHT) else ldg(x, a)
        else:
            out[i] = number if arrays == np.uint32(_LEFT) else ldg(y, b)


def where(condition: Any, x: Any, y: Any) -> Array:
    arrays: int = _BOTH
    number: Any = 0
    if not isinstance(x, Array):
        x, arrays, number = y, _RIGHT, x
    elif not isinstance(y, Array):
        y, arrays, number = x, _LEFT, y
    dtype = x.dtype
    x, y = _wide(x), _wide(y)
    shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
    out = empty(shape, x.dtype)
    _where.each(out.size, out, condition, x, y, geometry_of(shape, condition, x, y), arrays, number)
    return cast(out, dtype)
