"""Functions of one element. Integer tensors given to a floating function become float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from minigrad._op import Op, Rule
from minigrad._tensor import Tensor, method
from minigrad.ops._operands import countable, floating, operands
from minigrad.ops.creation import zeros_like


def unary(
    vjp: Rule, *symbols: str, keeps_integers: bool = False
) -> Callable[[Callable[[Any, Any], Any]], Callable[[Tensor], Tensor]]:
    """Make a public function and method of a forward on raw arrays and its rule."""

    def decorate(forward: Callable[[Any, Any], Any]) -> Callable[[Tensor], Tensor]:
        op = Op(forward)
        op.vjp(x=vjp)

        @functools.wraps(forward)
        def function(x: Tensor) -> Tensor:
            (x,) = operands(op.name, x)
            return op(countable(op.name, [x])[0] if keeps_integers else floating(x))

        del function.__wrapped__  # its signature is not the forward's
        return method(op.name, *symbols)(function)

    return decorate


@unary(lambda g: -g, "__neg__", keeps_integers=True)
def neg(k: Any, x: Any) -> Any:
    """−x.

    >>> import minigrad as mg
    >>> mg.neg(mg.tensor([1.0, -2.0]))
    tensor([-1.,  2.])
    """
    return k.neg(x)


@unary(lambda g, x: g * sign(x), "__abs__", keeps_integers=True)
def abs(k: Any, x: Any) -> Any:
    """|x|, with abs′(0) = 0.

    >>> import minigrad as mg
    >>> mg.abs(mg.tensor([1.0, -2.0]))
    tensor([1., 2.])
    """
    return k.abs(x)


@unary(lambda g: zeros_like(g), keeps_integers=True)
def sign(k: Any, x: Any) -> Any:
    """−1, 0 or 1, the sign of x; its derivative is 0.

    >>> import minigrad as mg
    >>> mg.sign(mg.tensor([3.0, -2.0, 0.0]))
    tensor([ 1., -1.,  0.])
    """
    return k.sign(x)


@unary(lambda g, out: g * out)
def exp(k: Any, x: Any) -> Any:
    """eˣ.

    >>> import minigrad as mg
    >>> mg.exp(mg.tensor([0.0, 1.0]))
    tensor([1.    , 2.7183])
    """
    return k.exp(x)


@unary(lambda g, x: g / x)
def log(k: Any, x: Any) -> Any:
    """The natural logarithm; −∞ at 0, NaN below.

    >>> import minigrad as mg
    >>> mg.log(mg.tensor([1.0, 10.0]))
    tensor([0.    , 2.3026])
    """
    return k.log(x)


@unary(lambda g, x: g / (1 + x))
def log1p(k: Any, x: Any) -> Any:
    """log(1 + x), exact also for tiny x.

    >>> import minigrad as mg
    >>> mg.log1p(mg.tensor([1e-10]))
    tensor([1.e-10])
    """
    return k.log1p(x)


@unary(lambda g, x: g * exp(x))
def expm1(k: Any, x: Any) -> Any:
    """eˣ − 1, exact also for tiny x.

    >>> import minigrad as mg
    >>> mg.expm1(mg.tensor([1e-10]))
    tensor([1.e-10])
    """
    return k.expm1(x)


@unary(lambda g, out: g / (2 * out))
def sqrt(k: Any, x: Any) -> Any:
    """√x; NaN below 0, and an infinite derivative at 0.

    >>> import minigrad as mg
    >>> mg.sqrt(mg.tensor([4.0, 9.0]))
    tensor([2., 3.])
    """
    return k.sqrt(x)


@unary(lambda g, out: -0.5 * g * out * out * out)
def rsqrt(k: Any, x: Any) -> Any:
    """1/√x.

    >>> import minigrad as mg
    >>> mg.rsqrt(mg.tensor([4.0]))
    tensor([0.5])
    """
    return k.rsqrt(x)


@unary(lambda g, x: g * x * 2, keeps_integers=True)
def square(k: Any, x: Any) -> Any:
    """x².

    >>> import minigrad as mg
    >>> mg.square(mg.tensor([3.0]))
    tensor([9.])
    """
    return k.square(x)


@unary(lambda g, out: -g * out * out)
def reciprocal(k: Any, x: Any) -> Any:
    """1/x.

    >>> import minigrad as mg
    >>> mg.reciprocal(mg.tensor([4.0]))
    tensor([0.25])
    """
    return k.reciprocal(x)


@unary(lambda g, x: g * cos(x))
def sin(k: Any, x: Any) -> Any:
    """sin x, x in radians.

    >>> import minigrad as mg
    >>> mg.sin(mg.tensor([0.5]))
    tensor([0.4794])
    """
    return k.sin(x)


@unary(lambda g, x: -g * sin(x))
def cos(k: Any, x: Any) -> Any:
    """cos x, x in radians.

    >>> import minigrad as mg
    >>> mg.cos(mg.tensor([0.0]))
    tensor([1.])
    """
    return k.cos(x)
