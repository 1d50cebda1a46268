"""Activation functions, each with a fused kernel for itself and for its first derivative.

The first derivative h · f′(s) is an op of its own, so that it costs one pass; `s` is the input, or the output where the
slope is known from that. From the second derivative on, the rules are composed of public functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minigrad._op import Op
from minigrad._tensor import Tensor, method
from minigrad.ops._operands import floating, operands
from minigrad.ops.comparison import gt, where
from minigrad.ops.unary import abs, exp, square

_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


def _activation(name: str, curvature: Callable[..., Tensor] | None, *, of_output: bool = False) -> Op:
    """The op `name`, whose slope has `curvature` as its derivative in s; None: 0 wherever it exists."""

    def forward(k: Any, x: Any, *, parameters: tuple[float, ...]) -> Any:
        return getattr(k, name)(x, *parameters)

    def slope_times(k: Any, h: Any, s: Any, *, parameters: tuple[float, ...]) -> Any:
        return getattr(k, f"{name}_vjp")(h, s, *parameters)

    def bend(g: Tensor, h: Tensor, s: Tensor, parameters: tuple[float, ...]) -> Tensor | None:
        return None if curvature is None else g * h * curvature(s, *parameters)

    forward.__name__, slope_times.__name__ = name, f"{name}_vjp"
    op, derivative = Op(forward), Op(slope_times)
    if of_output:
        op.vjp(x=lambda g, out, parameters: derivative(g, out, parameters=parameters))
    else:
        op.vjp(x=lambda g, x, parameters: derivative(g, x, parameters=parameters))
    derivative.vjp(h=lambda g, s, parameters: derivative(g, s, parameters=parameters), s=bend)
    return op


def _sigmoid_slope(x: Tensor) -> Tensor:
    y = sigmoid(x)
    return y * (1 - y)


def _silu_curvature(x: Tensor) -> Tensor:
    y = sigmoid(x)
    return y * (1 - y) * (2 + x * (1 - 2 * y))


def _elu_curvature(x: Tensor, alpha: float) -> Tensor:
    above = gt(x, 0)
    return where(above, 0.0, alpha * exp(where(above, 0.0, x)))  # eˣ of a large x is no 0 of the next derivative


def _gelu_curvature(x: Tensor) -> Tensor:
    square_x = square(where(gt(abs(x), 50), 50.0, x))  # all of it is 0 from 40 on, and x² overflows
    return _INV_SQRT_2PI * exp(-0.5 * square_x) * (2 - square_x)


_sigmoid = _activation("sigmoid", lambda y: 1 - 2 * y, of_output=True)
_tanh = _activation("tanh", lambda y: -2 * y, of_output=True)
_softplus = _activation("softplus", _sigmoid_slope)
_relu = _activation("relu", None, of_output=True)
_leaky_relu = _activation("leaky_relu", None)
_elu = _activation("elu", _elu_curvature)
_gelu = _activation("gelu", _gelu_curvature)
_silu = _activation("silu", _silu_curvature)


def _apply(op: Op, x: Tensor, *parameters: float) -> Tensor:
    return op(floating(*operands(op.name, x)), parameters=parameters)


@method()
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e⁻ˣ).

    >>> import minigrad as mg
    >>> mg.sigmoid(mg.tensor([0.0, 2.0]))
    tensor([0.5   , 0.8808])
    """
    return _apply(_sigmoid, x)


@method()
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent.

    >>> import minigrad as mg
    >>> mg.tanh(mg.tensor([0.0, 1.0]))
    tensor([0.    , 0.7616])
    """
    return _apply(_tanh, x)


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """log(1 + e^{βx}) / β, computed as max(x, 0) + log1p(e^{−|βx|})/β, so that nothing overflows.

    ValueError unless β > 0.

    >>> import minigrad as mg
    >>> mg.softplus(mg.tensor([0.0, 1000.0]))
    tensor([6.9315e-01, 1.0000e+03])
    """
    if not beta > 0:
        raise ValueError(f"softplus: expected beta > 0; got {beta}")
    return _apply(_softplus, x) if beta == 1 else _apply(_softplus, x * beta) / beta


@method()
def relu(x: Tensor) -> Tensor:
    """max(x, 0), with relu′(0) = 0; NaN stays NaN.

    >>> import minigrad as mg
    >>> mg.relu(mg.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    return _apply(_relu, x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else slope · x; the derivative at 0 is the slope.

    >>> import minigrad as mg
    >>> mg.leaky_relu(mg.tensor([-1.0, 2.0]), 0.1)
    tensor([-0.1,  2. ])
    """
    return _apply(_leaky_relu, x, float(negative_slope))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else α (eˣ − 1). Clevert, Unterthiner, Hochreiter, arXiv 1511.07289.

    >>> import minigrad as mg
    >>> mg.elu(mg.tensor([-1.0, 2.0]))
    tensor([-0.6321,  2.    ])
    """
    return _apply(_elu, x, float(alpha))


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), Φ the standard normal distribution function. Hendrycks, Gimpel, arXiv 1606.08415.

    >>> import minigrad as mg
    >>> mg.gelu(mg.tensor([-1.0, 2.0]))
    tensor([-0.1587,  1.9545])
    """
    return _apply(_gelu, x)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x).

    >>> import minigrad as mg
    >>> mg.silu(mg.tensor([-1.0, 2.0]))
    tensor([-0.2689,  1.7616])
    """
    return _apply(_silu, x)
