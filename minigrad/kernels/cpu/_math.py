"""exp, expm1, log1p and erfc that vectorize: what formulas of `scalar.py` find under the name of `math`.

The C library's take one number at a time. These have no branches, so that the compiler runs as many elements at once as
a register holds. They are the textbook's: x = k log 2 + r with an integer k and |r| ≤ log 2 / 2, and eˣ = 2ᵏ eʳ with eʳ
by its Taylor series (Cody and Waite, "Software Manual for the Elementary Functions", 1980); log(1 + f) by the series of
2 artanh(f / (2 + f)); erfc as e^{-z²} times what is left, by interpolation. At most 1 ulp off for exp, 4.5 for erfc, 2
for the others; NaN, ±∞, overflow and subnormals as they should be.
erfc of float64 goes to the C library, and so does each multiplication with addition on a processor without FMA
(`minigrad info` says what it has): right there too, but slow. Last come powers, a quotient and the scalar product.
"""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numba.core.types as numba_types
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload

from minigrad.kernels.cpu._jit import helper

sqrt = math.sqrt

_f32 = np.float32


@intrinsic  # type: ignore[untyped-decorator]
def _fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


def _layout(x: Any) -> tuple[Any, int]:
    """An integer as wide as the float type x, and the digits of x before which its exponent stands."""
    return ir.IntType(x.bitwidth), {32: 23, 64: 52}[x.bitwidth]


@intrinsic  # type: ignore[untyped-decorator]
def _power(_: Any, moved: Any) -> Any:
    """2ᵏ from k + the bias of exponents + what rounds to integers, in whose last bits they stand."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer, digits = _layout(moved)
        bits = builder.shl(builder.bitcast(args[0], integer), ir.Constant(integer, digits))
        return builder.bitcast(bits, args[0].type)

    return moved(moved), generate


@intrinsic  # type: ignore[untyped-decorator]
def _exponent(_: Any, x: Any) -> Any:
    """The integer k, as a float, with x 2⁻ᵏ in [√½, √2), for a normal x > 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer, digits = _layout(x)
        root = np.sqrt(np.array(0.5, str(x))).view(f"i{x.bitwidth // 8}")
        above = builder.sub(builder.bitcast(args[0], integer), ir.Constant(integer, int(root)))
        return builder.sitofp(builder.ashr(above, ir.Constant(integer, digits)), args[0].type)

    return x(x), generate


def _exponentials(number: Any, least: float, most: float, log_2: float, terms: int, odd: int) -> tuple[Any, ...]:
    """exp, exp_negative, expm1 and log1p of a dtype.

    eˣ is 0 below `least` and ∞ above `most`; log_2 has so few digits that k times it is exact. What is left of eʳ − 1
    − r behind rⁿ/n! for n = `terms`, and of 2 artanh s behind 2 sⁿ/n for n = `odd`, is a tenth of an ulp at most.
    """
    limits = np.finfo(number)
    one, half, two, least, most, large = map(number, (1, 0.5, 2, least, most, 40))
    bias = number(limits.maxexp - 1)
    magic = number(1.5 * 2**limits.nmant)  # added to a small number it rounds that to an integer, in the last bits
    log2_e, log_2 = number(1 / math.log(2)), number(log_2)
    log_2_rest = number(Decimal(2).ln() - Decimal(float(log_2)))
    series = tuple(number(1 / math.factorial(n)) for n in range(terms, 1, -1))
    artanh = tuple(number(2 / n) for n in range(odd, 1, -2))
    up, down = number(2.0**64), number(2.0**-64)
    infinity, nan = number(math.inf), number(math.nan)

    @helper
    def reduced(x: Any) -> tuple[Any, Any, Any]:
        """r, 2ʰ and 2ᵏ⁻ʰ for h near k / 2: either power is a normal number, which 2ᵏ alone need not be."""
        x = most if x > most else x  # written so that NaN stays
        x = least if x < least else x
        halved = _fma(x, half * log2_e, magic)
        h = halved - magic
        rest = _fma(x, log2_e, -h) + magic
        k = h + (rest - magic)
        r = _fma(k, -log_2_rest, _fma(k, -log_2, x))
        return r, _power(halved + bias), _power(rest + bias)

    @helper
    def beyond(r: Any) -> Any:
        """(eʳ − 1 − r) / r²."""
        s = number(0)
        for c in series:
            s = _fma(s, r, c)
        return s

    @helper
    def exp(x: Any) -> Any:
        r, p, q = reduced(x)
        return _fma(_fma(beyond(r), r, one), r, one) * p * q

    @helper
    def exp_negative(x: Any) -> Any:
        """With 2ᵏ⁺⁶⁴, which is a normal number, and then 2⁻⁶⁴: one rounding, that of a subnormal result, if any."""
        x = least if x < least else x
        moved = _fma(x, log2_e, magic + bias + number(64))
        k = moved - (magic + bias + number(64))
        r = _fma(k, -log_2_rest, _fma(k, -log_2, x))
        return _fma(_fma(beyond(r), r, one), r, one) * _power(moved) * down

    @helper
    def expm1(x: Any) -> Any:
        r, p, q = reduced(x)
        s, power = beyond(r), p * q
        y = _fma(power, _fma(s * r, r, r), power - one) if x < large else _fma(_fma(s, r, one), r, one) * p * q
        return x if x == number(0) else y  # −0 stays −0

    @helper
    def log1p(x: Any) -> Any:
        """With 1 + x = 2ᵏ (1 + f), f = 2⁻ᵏ x + (2⁻ᵏ − 1) is rounded once, and not at all if k is 0."""
        unit = down if x > up else one  # so that 2⁻ᵏ is a normal number
        k = _exponent(unit + x * unit)
        power = _power(magic + bias - k)
        f = _fma(x * unit, power, power * unit - one)
        k = k + (number(64) if x > up else number(0))
        s = f / (two + f)
        a = number(0)
        for c in artanh:
            a = _fma(a, s * s, c)
        square = half * f * f  # log(1 + f) = f − (f²/2 − s (f²/2 + s² a)): f itself is exact
        y = _fma(k, log_2, f - (square - _fma(s, square + s * s * a, k * log_2_rest)))
        y = x if x == infinity or x == number(0) else y
        return y if x > -one or x != x else (-infinity if x == -one else nan)

    return exp, exp_negative, expm1, log1p


_SINGLE = _exponentials(_f32, -104, 89, 0.693359375, 7, 9)
_DOUBLE = _exponentials(np.float64, -746, 710, 6.93147180369123816490e-01, 13, 21)
_ONE, _THREE, _END = _f32(1), _f32(3), _f32(10.1)
# e^{z²} (1 + z) erfc z in t = (z - 3) / (z + 3): the polynomial that meets it at the ten Chebyshev points of the t of
# 0 ≤ z ≤ 10.1, beyond which erfc z rounds to 0; the rest is 2.2e-8 of it.
_ERFC = tuple(map(_f32, (
    -0.000134260597, 0.000790045247, 0.00150340341, -0.00984936208, 0.021976104, -0.0237830803, -0.0102364095,
    0.0990193188, -0.230927303, 0.71600461,
)))  # fmt: skip
_exp_negative_32 = _SINGLE[1]


@helper
def _erfc_32(x: Any) -> Any:
    """erfc(-z) = 2 − erfc z; e^{-z²} with what the rounding of z² leaves, on which the digits of the tail hang."""
    z = abs(x)
    z = _END if z > _END else z  # written so that NaN stays
    t = (z - _THREE) / (z + _THREE)
    s = _f32(0)
    for c in _ERFC:
        s = _fma(s, t, c)
    s = s / (_ONE + z)
    square = z * z
    y = _exp_negative_32(-square) * _fma(-_fma(z, z, -square), s, s)
    return _f32(2) - y if x < _f32(0) else y


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


_FUNCTIONS = exp, exp_negative, expm1, log1p, erfc
for _function, _single, _double in zip(_FUNCTIONS, (*_SINGLE, _erfc_32), (*_DOUBLE, math.erfc), strict=True):

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


def sign(x: Any) -> Any:
    """−1, 0, 1 or NaN."""
    return type(x)(x > 0) - type(x)(x < 0) if x == x else x


@functools.partial(helper, reassociate=True)
def dot(x: Any, y: Any) -> float:
    """Σ x y in float64, in an order that the compiler chooses: the same in both variants of a kernel."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(y[i])
    return total
