"""exp, expm1, log1p and erfc for float32 that vectorize: what formulas of `scalar.py` find under the name of `math`.

The C library's take one number at a time. These have no branches, so that the compiler runs as many elements at once as
a register holds. They are the textbook's: x = k log 2 + r with an integer k and |r| ≤ log 2 / 2, and eˣ = 2ᵏ eʳ with eʳ
by its Taylor series (Cody and Waite, "Software Manual for the Elementary Functions", 1980); log(1 + f) by the series of
2 artanh(f / (2 + f)); erfc as e^{-z²} times what is left, by interpolation. At most 1 ulp off for exp, 4.5 for erfc, 2
for the others; NaN, ±∞, overflow and subnormals as they should be.
Float64 goes to the C library, and so does each multiplication with addition on a processor without FMA (`minigrad info`
says what it has): right there too, but slow. Last come powers, a quotient and the scalar product, for any dtype.
"""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import numba.core.types as numba_types
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload

from minigrad.kernels.cpu._jit import helper

sqrt = math.sqrt

_f32 = np.float32
_ONE, _HALF, _TWO = _f32(1), _f32(0.5), _f32(2)
_LOG2_E = _f32(1 / math.log(2))
_LOG_2 = _f32(0.693359375)  # few digits: k times it is exact
_LOG_2_REST = _f32(math.log(2) - 0.693359375)
_MAGIC = _f32(1.5 * 2**23)  # added to a small number it rounds that to an integer, and has its bits in the last places
_BIAS = _f32(127)
_SERIES = tuple(_f32(1 / math.factorial(n)) for n in range(7, 1, -1))  # eʳ − 1 − r over r²; the rest is 5e-9 of eʳ
_ARTANH = tuple(_f32(2 / n) for n in (9, 7, 5, 3))  # 2 artanh s − 2 s over s³; the rest is 2e-9 of artanh s
# e^{z²} (1 + z) erfc z in t = (z - 3) / (z + 3): the polynomial that meets it at the ten Chebyshev points of the t of
# 0 ≤ z ≤ 10.1, beyond which erfc z rounds to 0; the rest is 2.2e-8 of it.
_ERFC = tuple(map(_f32, (
    -0.000134260597, 0.000790045247, 0.00150340341, -0.00984936208, 0.021976104, -0.0237830803, -0.0102364095,
    0.0990193188, -0.230927303, 0.71600461,
)))  # fmt: skip


@intrinsic  # type: ignore[untyped-decorator]
def _fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


@intrinsic  # type: ignore[untyped-decorator]
def _power(_: Any, magic: Any) -> Any:
    """2ᵏ from _MAGIC + _BIAS + k: its last bits become the exponent."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(32)
        bits = builder.shl(builder.bitcast(args[0], integer), ir.Constant(integer, 23))
        return builder.bitcast(bits, ir.FloatType())

    return magic(magic), generate


@intrinsic  # type: ignore[untyped-decorator]
def _exponent(_: Any, x: Any) -> Any:
    """The integer k, as a float, with x 2⁻ᵏ in [√½, √2), for a normal x > 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(32)
        root = ir.Constant(integer, int(_f32(math.sqrt(0.5)).view(np.int32)))
        k = builder.ashr(builder.sub(builder.bitcast(args[0], integer), root), ir.Constant(integer, 23))
        return builder.sitofp(k, ir.FloatType())

    return x(x), generate


@helper
def _reduced(x: Any) -> tuple[Any, Any, Any]:
    """r, 2ʰ and 2ᵏ⁻ʰ for h near k / 2: either power is a normal number, which 2ᵏ alone need not be."""
    x = _f32(89) if x > _f32(89) else x  # written so that NaN stays
    x = _f32(-104) if x < _f32(-104) else x
    half = _fma(x, _HALF * _LOG2_E, _MAGIC)
    h = half - _MAGIC
    rest = _fma(x, _LOG2_E, -h) + _MAGIC
    k = h + (rest - _MAGIC)
    r = _fma(k, -_LOG_2_REST, _fma(k, -_LOG_2, x))
    return r, _power(half + _BIAS), _power(rest + _BIAS)


@helper
def _exp32(x: Any) -> Any:
    r, p, q = _reduced(x)
    s = _f32(0)
    for c in _SERIES:
        s = _fma(s, r, c)
    return _fma(_fma(s, r, _ONE), r, _ONE) * p * q


@helper
def _exp_negative_32(x: Any) -> Any:
    """With 2ᵏ⁺⁶⁴, which is a normal number, and then 2⁻⁶⁴: one rounding, that of a subnormal result, if any."""
    x = _f32(-104) if x < _f32(-104) else x
    moved = _fma(x, _LOG2_E, _MAGIC + _BIAS + _f32(64))
    k = moved - (_MAGIC + _BIAS + _f32(64))
    r = _fma(k, -_LOG_2_REST, _fma(k, -_LOG_2, x))
    s = _SERIES[0]
    for c in _SERIES[1:]:
        s = _fma(s, r, c)
    return _fma(_fma(s, r, _ONE), r, _ONE) * _power(moved) * _f32(2.0**-64)


@helper
def _expm1_32(x: Any) -> Any:
    r, p, q = _reduced(x)
    s = _f32(0)
    for c in _SERIES:
        s = _fma(s, r, c)
    power = p * q
    y = _fma(power, _fma(s * r, r, r), power - _ONE) if x < _f32(40) else _exp32(x)
    return x if x == _f32(0) else y  # −0 stays −0


@helper
def _log1p_32(x: Any) -> Any:
    """With 1 + x = 2ᵏ (1 + f), f = 2⁻ᵏ x + (2⁻ᵏ − 1) is rounded once, and not at all if k is 0."""
    unit = _f32(2.0**-64) if x > _f32(2.0**64) else _ONE  # so that 2⁻ᵏ is a normal number
    k = _exponent(unit + x * unit)
    power = _power(_MAGIC + _BIAS - k)
    f = _fma(x * unit, power, power * unit - _ONE)
    k = k + (_f32(64) if x > _f32(2.0**64) else _f32(0))
    s = f / (_TWO + f)
    a = _f32(0)
    for c in _ARTANH:
        a = _fma(a, s * s, c)
    square = _HALF * f * f  # log(1 + f) = f − (f²/2 − s (f²/2 + s² a)): f itself is exact
    y = _fma(k, _LOG_2, f - (square - _fma(s, square + s * s * a, k * _LOG_2_REST)))
    y = x if x == _f32(math.inf) or x == _f32(0) else y
    return y if x > -_ONE or x != x else (_f32(-math.inf) if x == -_ONE else _f32(math.nan))


@helper
def _erfc_32(x: Any) -> Any:
    """erfc(-z) = 2 − erfc z; e^{-z²} with what the rounding of z² leaves, on which the digits of the tail hang."""
    z = abs(x)
    z = _f32(10.1) if z > _f32(10.1) else z  # written so that NaN stays
    t = (z - _f32(3)) / (z + _f32(3))
    s = _f32(0)
    for c in _ERFC:
        s = _fma(s, t, c)
    s = s / (_ONE + z)
    square = z * z
    y = _exp_negative_32(-square) * _fma(-_fma(z, z, -square), s, s)
    return _TWO - y if x < _f32(0) else y


def exp(x: Any) -> Any:
    """eˣ, in compiled code."""


def exp_negative(x: Any) -> Any:
    """eˣ for x ≤ 0, in compiled code: two thirds of the work."""


def expm1(x: Any) -> Any:
    """eˣ − 1, in compiled code."""


def log1p(x: Any) -> Any:
    """log(1 + x), in compiled code."""


def erfc(x: Any) -> Any:
    """1 − erf(x), in compiled code."""


_CHOICES = (
    (exp, _exp32, math.exp),
    (exp_negative, _exp_negative_32, math.exp),
    (expm1, _expm1_32, math.expm1),
    (log1p, _log1p_32, math.log1p),
    (erfc, _erfc_32, math.erfc),
)
for _function, _single, _double in _CHOICES:

    @overload(_function, strict=False)  # type: ignore[untyped-decorator]  # the strict way compares annotations too
    def _chosen(x: Any, single: Any = _single, double: Any = _double) -> Any:
        return (lambda x: single(x)) if x == numba_types.float32 else lambda x: double(x)


def lifted(formula: Callable[..., Any]) -> Any:
    """A formula of `scalar.py` as a function for kernels to call, with this module for its `math`."""
    names = {**formula.__globals__, "math": sys.modules[__name__]}
    return helper(types.FunctionType(formula.__code__, names, formula.__name__), inline=True)


@helper
def quotient(x: Any, y: Any, inverse: Any) -> Any:
    """x / y with the rounded inverse of y: one division for many (Markstein, IBM J. Res. Dev. 34, 1990).

    It rounds as x / y does where all of them are normal, and is at most 1 ulp off where x / y is subnormal; 0 for −0.
    """
    guess = x * inverse
    return _fma(_fma(-guess, y, x), inverse, guess)


@helper
def _product(x: Any, x_rest: Any, y: Any, y_rest: Any) -> tuple[Any, Any]:
    """Of two numbers that are given as sums, of themselves rounded and what that leaves; so is the product."""
    product = x * y
    return product, _fma(x, y, -product) + (x * y_rest + x_rest * y)


def whole_power(x: Any, n: int) -> Any:
    """xⁿ for |n| < 8 by squaring, with what each product leaves; at 0, ±∞ and NaN as `pow` of C has it.

    Rounded as if once, but at most 1.5 ulp off where what is left is subnormal. Where a product overflows, that is NaN,
    and where the power vanishes, it may have lost its sign: the power without is then the right one.
    """
    one, zero = type(x)(1), type(x)(0)
    base, rest = (x, zero) if n >= 0 else (one / x, _fma(-one / x, x, one) / x)
    power, left = one, zero
    for bit in (1, 2, 4):
        if abs(n) & bit:
            power, left = _product(power, left, base, rest)
        base, rest = _product(base, rest, base, rest)
    y = power + left
    return y if y == y and y != zero else power


def root(x: Any, inverse: bool) -> Any:
    """√x or, 1.5 ulp off at most, 1 / √x; of −0 as of 0, and of −∞ as of ∞, as `pow` of C has it."""
    y = type(x)(np.inf) if x == type(x)(-np.inf) else math.sqrt(x + type(x)(0))
    return type(x)(1) / y if inverse else y


def clip(x: Any, low: float, high: float) -> Any:
    """x, or the bound that it is beyond; NaN stays."""
    x = type(x)(low) if x < type(x)(low) else x
    return type(x)(high) if x > type(x)(high) else x


@functools.partial(helper, reassociate=True)
def dot(x: Any, y: Any) -> float:
    """Σ x y in float64, in an order that the compiler chooses: the same in both variants of a kernel."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(y[i])
    return total
