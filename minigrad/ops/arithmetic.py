"""+ − · / and powers of two operands; a gradient is summed back to the shape of its input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from minigrad._op import primitive
from minigrad._tensor import Tensor, method
from minigrad.ops._operands import Operand, countable, floating, operands
from minigrad.ops.comparison import where
from minigrad.ops.creation import zeros_like
from minigrad.ops.unary import log


def _infix(op: Callable[..., Tensor], symbol: str) -> None:
    """Attach a binary function as the operators `x ∘ y` and `y ∘ x`; an operand they do not know raises TypeError."""
    method(f"__{symbol}__")(op)

    def reflected(y: Tensor, x: Operand) -> Tensor:
        return op(x, y)

    method(f"__r{symbol}__")(reflected)


@primitive(broadcasts=True)
def _add(k: Any, x: Any, y: Any) -> Any:
    return k.add(x, y)


@primitive(broadcasts=True)
def _sub(k: Any, x: Any, y: Any) -> Any:
    return k.sub(x, y)


@primitive(broadcasts=True)
def _mul(k: Any, x: Any, y: Any) -> Any:
    return k.mul(x, y)


@primitive(broadcasts=True)
def _div(k: Any, x: Any, y: Any) -> Any:
    return k.div(x, y)


@primitive(broadcasts=True)
def _pow(k: Any, x: Any, y: Any) -> Any:
    return k.pow(x, y)


_add.vjp(x=lambda g: g, y=lambda g: g)
_sub.vjp(x=lambda g: g, y=lambda g: -g)
_mul.vjp(x=lambda g, y: g * y, y=lambda g, x: g * x)
_div.vjp(x=lambda g, y: g / y, y=lambda g, y, out: -g * out / y)
_pow.vjp(x=lambda g, x, y: g * _power_slope(x, y), y=lambda g, x, y, out: g * _exponent_slope(x, y, out))


def _power_slope(x: Tensor, y: Any) -> Tensor:
    """y xʸ⁻¹, and 0 at x = y = 0, where the formula would say 0 · ∞."""
    if not isinstance(y, Tensor):
        return y * pow(x, y - 1) if y else zeros_like(x)
    return y * pow(where((x == 0) & (y == 0), 1.0, x), y - 1)


def _exponent_slope(x: Any, y: Tensor, out: Tensor) -> Tensor:
    """xʸ log x, and 0 at x = 0 ≤ y, where the formula would say 0 · ∞."""
    if isinstance(x, Tensor):
        return out * log(where((x == 0) & (y >= 0), 1.0, x))
    if x == 0:
        return where(y >= 0, 0.0, -out)
    return out * (math.log(x) if x > 0 else math.nan)


@method()
def add(x: Operand, y: Operand) -> Tensor:
    """x + y, broadcast.

    >>> import minigrad as mg
    >>> mg.add(mg.tensor([1.0, 2.0]), 1)
    tensor([2., 3.])
    """
    return _add(*operands("add", x, y))


@method()
def sub(x: Operand, y: Operand) -> Tensor:
    """x − y, broadcast. TypeError for two bool tensors.

    >>> import minigrad as mg
    >>> mg.sub(3, mg.tensor([1.0, 2.0]))
    tensor([2., 1.])
    """
    return _sub(*countable("sub", operands("sub", x, y)))


@method()
def mul(x: Operand, y: Operand) -> Tensor:
    """x · y, broadcast.

    >>> import minigrad as mg
    >>> mg.mul(mg.tensor([[1.0], [2.0]]), mg.tensor([1.0, 10.0]))
    tensor([[ 1., 10.],
            [ 2., 20.]])
    """
    return _mul(*operands("mul", x, y))


@method()
def div(x: Operand, y: Operand) -> Tensor:
    """x / y, broadcast; of integers in float32.

    >>> import minigrad as mg
    >>> mg.div(mg.tensor([1, 2]), 2)
    tensor([0.5, 1. ])
    """
    return _div(*(floating(a) if isinstance(a, Tensor) else a for a in operands("div", x, y)))


@method()
def pow(x: Operand, y: Operand) -> Tensor:
    """xʸ, broadcast. ∂/∂x = y xʸ⁻¹ (0 at x = y = 0), ∂/∂y = xʸ log x (0 at x = 0 ≤ y).

    ValueError for an integer tensor raised to a negative integer; TypeError for two bool tensors.

    >>> import minigrad as mg
    >>> mg.pow(mg.tensor([2.0, 3.0]), 2)
    tensor([4., 9.])
    """
    ready = countable("pow", operands("pow", x, y))
    if ready[0].dtype.kind == "i" if isinstance(ready[0], Tensor) else isinstance(ready[0], int):
        smallest = y if not isinstance(y, Tensor) else y.amin().item() if y.dtype.kind == "i" and y.numel() else 0
        if smallest < 0:
            raise ValueError(f"pow: an integer cannot be raised to {smallest}. Convert the base with to(mg.float32).")
    return _pow(*ready)


for _op, _symbol in ((add, "add"), (sub, "sub"), (mul, "mul"), (div, "truediv"), (pow, "pow")):
    _infix(_op, _symbol)
