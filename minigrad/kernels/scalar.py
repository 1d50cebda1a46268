"""Formulas of one element, written once and lifted by every device.

Each derivative stands under its function: `f_vjp(g, …)` is g · f′, in terms of the input `x` or, where that is
cheaper, of the output `y`. Literals are written `type(x)(0.5)`: a bare `0.5` would turn float32 into float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Scalar = Any  # a float of the kernel's dtype
_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


def rsqrt(x: Scalar) -> Scalar:
    return type(x)(1) / math.sqrt(x)


def sigmoid(x: Scalar) -> Scalar:
    """1 / (1 + e⁻ˣ), by e^{-|x|} so that nothing overflows."""
    e = math.exp(-abs(x))
    return type(x)(1) / (type(x)(1) + e) if x >= type(x)(0) else e / (type(x)(1) + e)


def sigmoid_vjp(g: Scalar, y: Scalar) -> Scalar:
    return g * y * (type(y)(1) - y)


def tanh_vjp(g: Scalar, y: Scalar) -> Scalar:
    return g * (type(y)(1) - y * y)


def softplus(x: Scalar) -> Scalar:
    """log(1 + eˣ) = max(x, 0) + log1p(e^{-|x|})."""
    return (x if x > type(x)(0) or x != x else type(x)(0)) + math.log1p(math.exp(-abs(x)))


def softplus_vjp(g: Scalar, x: Scalar) -> Scalar:
    e = math.exp(-abs(x))
    return g * (type(x)(1) / (type(x)(1) + e) if x >= type(x)(0) else e / (type(x)(1) + e))


def relu(x: Scalar) -> Scalar:
    return x if x > type(x)(0) or x != x else type(x)(0)


def relu_vjp(g: Scalar, y: Scalar) -> Scalar:
    """relu′(0) = 0. The output tells the sign of the input, so that the input need not be kept."""
    return g if y > type(y)(0) else type(g)(0)


def leaky_relu(x: Scalar, slope: float) -> Scalar:
    return x if x > type(x)(0) else x * type(x)(slope)


def leaky_relu_vjp(g: Scalar, x: Scalar, slope: float) -> Scalar:
    return g if x > type(x)(0) else g * type(g)(slope)


def elu(x: Scalar, alpha: float) -> Scalar:
    return x if x > type(x)(0) else type(x)(alpha) * math.expm1(x)


def elu_vjp(g: Scalar, x: Scalar, alpha: float) -> Scalar:
    return g if x > type(x)(0) else g * type(x)(alpha) * math.exp(x)


def gelu(x: Scalar) -> Scalar:
    """x Φ(x), Φ the normal distribution function, written with erfc so that the left tail keeps its digits."""
    return x * type(x)(0.5) * math.erfc(-x * type(x)(_SQRT_HALF))


def gelu_vjp(g: Scalar, x: Scalar) -> Scalar:
    cdf = type(x)(0.5) * math.erfc(-x * type(x)(_SQRT_HALF))
    pdf = type(x)(_INV_SQRT_2PI) * math.exp(-x * x * type(x)(0.5))
    return g * (cdf + x * pdf)


def silu(x: Scalar) -> Scalar:
    e = math.exp(-abs(x))
    return x / (type(x)(1) + e) if x >= type(x)(0) else x * e / (type(x)(1) + e)


def silu_vjp(g: Scalar, x: Scalar) -> Scalar:
    e = math.exp(-abs(x))
    s = type(x)(1) / (type(x)(1) + e) if x >= type(x)(0) else e / (type(x)(1) + e)
    return g * s * (type(x)(1) + x * (type(x)(1) - s))


def philox(seed: Any, counter: Any) -> tuple[Any, Any, Any, Any]:
    """Four random 32-bit words for one 64-bit counter: Philox 4×32-10 under the 64-bit key `seed`.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A pure function of its
    arguments: any element of a stream can be drawn by any thread of any device.
    """
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    k0, k1 = np.uint64(seed) & low, np.uint64(seed) >> half
    c0, c1 = np.uint64(counter) & low, np.uint64(counter) >> half
    c2, c3 = np.uint64(0), np.uint64(0)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


def uniform32(word: Any) -> Any:
    """24 random bits as a float32 in [0, 1)."""
    return np.float32(np.uint32(word) >> np.uint32(8)) * np.float32(2.0**-24)


def uniform64(high: Any, low: Any) -> Any:
    """53 random bits as a float64 in [0, 1)."""
    return np.float64((np.uint64(high) << np.uint64(21)) ^ (np.uint64(low) >> np.uint64(11))) * 2.0**-53


def normal_pair(u: Scalar, w: Scalar) -> tuple[Scalar, Scalar]:
    """Two independent N(0, 1) from two uniforms in [0, 1), by Box and Muller."""
    radius = math.sqrt(type(u)(-2) * math.log(type(u)(1) - u))
    angle = type(u)(2 * math.pi) * w
    return radius * math.cos(angle), radius * math.sin(angle)


# A step of an optimizer for one element: p the parameter, g its gradient, then its state (some of it may be None), then
# numbers of the same type. Returned are p and the state after the step. Running means are found from the nearer end: at
# a gain of 1, m + (g − m) is what the rounding of m leaves of g, and 0 for the g² of a small g after a large one.


def sgd(
    p: Scalar, g: Scalar, b: Any, lr: Scalar, momentum: Scalar, gain: Scalar, decay: Scalar, nesterov: Scalar
) -> Any:
    """b ← momentum · b + gain · d for d = g + decay · p; p ← p − lr · (b, or d + momentum · b, or without b just d)."""
    d = g + decay * p
    if b is not None:
        b = momentum * b + gain * d
        d = d + momentum * b if nesterov else b
    return p - lr * d, b


def adam(
    p: Scalar,
    g: Scalar,
    m: Scalar,
    v: Scalar,
    lr: Scalar,
    gain1: Scalar,
    gain2: Scalar,
    eps: Scalar,
    decay: Scalar,
    shrink: Scalar,
    rms: Scalar,
) -> Any:
    """m, v: running means of g and g²; p ← shrink · p − lr · m / (√v · rms + eps); bias is corrected in lr, rms."""
    g = g + decay * p
    s, one, half = g * g, type(p)(1), type(p)(0.5)
    m = m + gain1 * (g - m) if gain1 < half else g - (one - gain1) * (g - m)
    v = v + gain2 * (s - v) if gain2 < half else s - (one - gain2) * (s - v)
    return shrink * p - lr * m / (math.sqrt(v) * rms + eps), m, v


def adam_numbers(
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool
) -> tuple[float, ...]:
    """What `adam` takes behind the arrays, in the `step`-th step, counted from 1; found once for all elements."""
    decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    rate, rms = lr / (1 - betas[0] ** step), 1 / math.sqrt(1 - betas[1] ** step)
    return rate, 1 - betas[0], 1 - betas[1], eps, decay, shrink, rms


def rmsprop(
    p: Scalar,
    g: Scalar,
    v: Scalar,
    a: Any,
    b: Any,
    lr: Scalar,
    gain: Scalar,
    eps: Scalar,
    decay: Scalar,
    momentum: Scalar,
) -> Any:
    """v, a: running means of g², g; d = g / (√(v − a²) + eps); p ← p − lr · (d, or b for b ← momentum · b + d)."""
    g = g + decay * p
    s, one, half = g * g, type(p)(1), type(p)(0.5)
    v = v + gain * (s - v) if gain < half else s - (one - gain) * (s - v)
    variance = v
    if a is not None:
        a = a + gain * (g - a) if gain < half else g - (one - gain) * (g - a)
        variance = v - a * a
        if variance < type(v)(0):  # by rounding
            variance = type(v)(0)
    d = g / (math.sqrt(variance) + eps)
    if b is not None:
        b = momentum * b + d
        d = b
    return p - lr * d, v, a, b
