"""Arithmetic, comparisons and smooth functions, one element at a time.

Operands broadcast as in NumPy and meet in one dtype as in torch (`mg.result_type`); a gradient is summed back to the
shape of its input. Python numbers stay numbers: they cost no tensor and take no gradient. Integer tensors given to a
floating function become float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import _dtypes
from minigrad._op import Op, Rule, primitive
from minigrad._tensor import Number, Tensor, method
from minigrad.ops.creation import zeros_like

Operand = Tensor | Number


@primitive()
def _cast(k: Any, x: Any, *, dtype: Any, source: Any) -> Any:
    return k.cast(x, dtype)


_cast.vjp(x=lambda g, source: to_dtype(g, source))


def to_dtype(x: Tensor, dtype: Any) -> Tensor:
    """The tensor in another dtype; itself if it has that already. The gradient is cast back."""
    return x if x.dtype == dtype else _cast(x, dtype=dtype, source=x.dtype)


def operands(name: str, *xs: Any, dtype: Any = None) -> list[Any]:
    """Operands ready for an op: tensors cast to the dtype they meet in, numbers as they are, shapes that broadcast."""
    if any(isinstance(x, np.generic) for x in xs):  # np.float64 is a float, and would decide the dtype
        xs = tuple(x.item() if isinstance(x, np.generic) else x for x in xs)
    for x in xs:
        if not isinstance(x, Tensor | bool | int | float):
            raise TypeError(
                f"{name}: expected tensors and numbers; got {type(x).__name__}. Make it a tensor with mg.tensor()."
            )
    meet = _dtypes.result_type(*xs) if dtype is None else dtype
    tensors = [x for x in xs if isinstance(x, Tensor)]
    if len(tensors) > 1 and any(x.shape != tensors[0].shape for x in tensors):
        try:
            np.broadcast_shapes(*(x.shape for x in tensors))
        except ValueError:
            raise ValueError(
                f"{name}: shapes {' and '.join(str(x.shape) for x in tensors)} do not broadcast: aligned at the right, "
                f"extents must be equal or 1. Use reshape or unsqueeze."
            ) from None
    ready = [to_dtype(x, meet) if isinstance(x, Tensor) else x for x in xs]
    if not tensors:
        ready[0] = Tensor(np.asarray(ready[0], meet))
    return ready


def _countable(name: str, xs: list[Any]) -> list[Any]:
    """The operands themselves, or TypeError if they are bool tensors."""
    if any(isinstance(x, Tensor) and x.dtype == _dtypes.bool_ for x in xs):
        raise TypeError(f"{name}: not defined for bool tensors. Convert with to(mg.int64), or use the logical ~ & |.")
    return xs


def floating(x: Tensor) -> Tensor:
    """The tensor itself, or as float32 if it holds integers or booleans."""
    return x if x.dtype.kind == "f" else to_dtype(x, _dtypes.float32)


def _infix(op: Callable[..., Tensor], symbol: str) -> None:
    """Attach a binary function as the operators `x ∘ y` and `y ∘ x`; an operand they do not know raises TypeError."""
    method(f"__{symbol}__")(op)

    def reflected(y: Tensor, x: Operand) -> Tensor:
        return op(x, y)

    method(f"__r{symbol}__")(reflected)


# Arithmetic ----------------------------------------------------------------------------------------------------------


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
    return _sub(*_countable("sub", operands("sub", x, y)))


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
    ready = _countable("pow", operands("pow", x, y))
    if ready[0].dtype.kind == "i" if isinstance(ready[0], Tensor) else isinstance(ready[0], int):
        smallest = y if not isinstance(y, Tensor) else y.data.min(initial=0) if y.dtype.kind == "i" else 0
        if smallest < 0:
            raise ValueError(f"pow: an integer cannot be raised to {smallest}. Convert the base with to(mg.float32).")
    return _pow(*ready)


for _op, _symbol in ((add, "add"), (sub, "sub"), (mul, "mul"), (div, "truediv"), (pow, "pow")):
    _infix(_op, _symbol)


# Functions of one element --------------------------------------------------------------------------------------------


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
            return op(_countable(op.name, [x])[0] if keeps_integers else floating(x))

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


@unary(lambda g, x: 2 * g * x, keeps_integers=True)
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


# Choices -------------------------------------------------------------------------------------------------------------


@primitive(broadcasts=True)
def _where(k: Any, condition: Any, x: Any, y: Any) -> Any:
    return k.where(condition, x, y)


@primitive(broadcasts=True)
def _maximum(k: Any, x: Any, y: Any) -> Any:
    return k.maximum(x, y)


@primitive(broadcasts=True)
def _minimum(k: Any, x: Any, y: Any) -> Any:
    return k.minimum(x, y)


@primitive()
def _clip(k: Any, x: Any, *, low: Any, high: Any) -> Any:
    return k.clip(x, low, high)


_where.vjp(x=lambda g, condition: where(condition, g, 0.0), y=lambda g, condition: where(condition, 0.0, g))
_maximum.vjp(x=lambda g, x, y: g * _share(x, y), y=lambda g, x, y: g * _share(y, x))
_minimum.vjp(x=lambda g, x, y: g * _share(y, x), y=lambda g, x, y: g * _share(x, y))
_clip.vjp(x=lambda g, x, low, high: where(_inside(x, low, high), g, 0.0))


def _share(x: Any, y: Any) -> Tensor:
    """1 where x > y, ½ at a tie, else 0."""
    like = x if isinstance(x, Tensor) else y
    return to_dtype(gt(x, y), like.dtype) + to_dtype(eq(x, y), like.dtype) * 0.5


def _inside(x: Tensor, low: Any, high: Any) -> Tensor:
    return ge(x, -math.inf if low is None else low) & le(x, math.inf if high is None else high)


def where(condition: Tensor, x: Operand, y: Operand) -> Tensor:
    """x where `condition` holds, else y; all three broadcast. TypeError unless `condition` is a bool tensor.

    >>> import minigrad as mg
    >>> x = mg.tensor([-1.0, 2.0])
    >>> mg.where(x > 0, x, 0.0)
    tensor([0., 2.])
    """
    if not isinstance(condition, Tensor) or condition.dtype != _dtypes.bool_:
        found = getattr(condition, "dtype", type(condition).__name__)
        raise TypeError(f"where: expected a bool tensor as condition; got {found}. Compare first, e.g. x > 0.")
    ready = operands("where", x, y)
    operands("where", condition, *(a for a in ready if isinstance(a, Tensor)))  # do all three broadcast?
    meet = next(a.dtype for a in ready if isinstance(a, Tensor))
    return to_dtype(_where(condition, *ready), meet)


@method("where")
def _where_of(x: Tensor, condition: Tensor, y: Operand) -> Tensor:
    return where(condition, x, y)


@method()
def maximum(x: Operand, y: Operand) -> Tensor:
    """The larger of x and y, broadcast; NaN if either is. At a tie each gets half of the gradient.

    >>> import minigrad as mg
    >>> mg.maximum(mg.tensor([1.0, 5.0]), 3)
    tensor([3., 5.])
    """
    return _maximum(*operands("maximum", x, y))


@method()
def minimum(x: Operand, y: Operand) -> Tensor:
    """The smaller of x and y, broadcast; NaN if either is. At a tie each gets half of the gradient.

    >>> import minigrad as mg
    >>> mg.minimum(mg.tensor([1.0, 5.0]), 3)
    tensor([1., 3.])
    """
    return _minimum(*operands("minimum", x, y))


@method("clip", "clamp")
def clip(x: Tensor, min: Number | None = None, max: Number | None = None) -> Tensor:
    """x limited to [min, max]; either may be None. The derivative is 1 inside and at the edges, 0 outside.

    ValueError if both are None; TypeError for bounds that are not numbers and for bool tensors.

    >>> import minigrad as mg
    >>> mg.clip(mg.tensor([-2.0, 0.5, 9.0]), 0, 1)
    tensor([0. , 0.5, 1. ])
    """
    if min is None and max is None:
        raise ValueError("clip: expected min, max or both; got neither")
    low, high = (b.item() if isinstance(b, np.generic) else b for b in (min, max))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        raise TypeError("clip: expected numbers as bounds; got a tensor. Use maximum and minimum.")
    ready = operands("clip", x, *(b for b in (low, high) if b is not None))
    return _clip(*_countable("clip", ready[:1]), low=low, high=high)


# Questions: bool results, no gradient --------------------------------------------------------------------------------


def _question(*symbols: str) -> Callable[[Callable[..., Any]], Callable[[Operand, Operand], Tensor]]:
    def decorate(forward: Callable[..., Any]) -> Callable[[Operand, Operand], Tensor]:
        op = Op(forward)

        @functools.wraps(forward)
        def function(x: Operand, y: Operand) -> Tensor:
            return op(*operands(op.name, x, y))

        del function.__wrapped__
        return method(op.name, *symbols)(function)

    return decorate


@_question("__eq__")
def eq(k: Any, x: Any, y: Any) -> Any:
    """x = y, elementwise.

    >>> import minigrad as mg
    >>> mg.tensor([1, 2]) == 2
    tensor([False,  True])
    """
    return k.eq(x, y)


@_question("__ne__")
def ne(k: Any, x: Any, y: Any) -> Any:
    """x ≠ y, elementwise.

    >>> import minigrad as mg
    >>> mg.tensor([1, 2]) != 2
    tensor([ True, False])
    """
    return k.ne(x, y)


@_question("__lt__")
def lt(k: Any, x: Any, y: Any) -> Any:
    """x < y, elementwise.

    >>> import minigrad as mg
    >>> mg.tensor([1, 2]) < 2
    tensor([ True, False])
    """
    return k.lt(x, y)


@_question("__le__")
def le(k: Any, x: Any, y: Any) -> Any:
    """x ≤ y, elementwise.

    >>> import minigrad as mg
    >>> mg.tensor([1, 2, 3]) <= 2
    tensor([ True,  True, False])
    """
    return k.le(x, y)


@_question("__gt__")
def gt(k: Any, x: Any, y: Any) -> Any:
    """x > y, elementwise.

    >>> import minigrad as mg
    >>> mg.tensor([1, 2]) > 1
    tensor([False,  True])
    """
    return k.gt(x, y)


@_question("__ge__")
def ge(k: Any, x: Any, y: Any) -> Any:
    """x ≥ y, elementwise.

    >>> import minigrad as mg
    >>> mg.tensor([1, 2]) >= 2
    tensor([False,  True])
    """
    return k.ge(x, y)


@_question()
def logical_and(k: Any, x: Any, y: Any) -> Any:
    """Both, elementwise.

    >>> import minigrad as mg
    >>> mg.tensor([True, False]) & True
    tensor([ True, False])
    """
    return k.logical_and(x, y)


@_question()
def logical_or(k: Any, x: Any, y: Any) -> Any:
    """Either, elementwise.

    >>> import minigrad as mg
    >>> mg.tensor([True, False]) | False
    tensor([ True, False])
    """
    return k.logical_or(x, y)


def _test(forward: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    op = Op(forward)

    @functools.wraps(forward)
    def function(x: Tensor) -> Tensor:
        return op(*operands(op.name, x))

    del function.__wrapped__
    return method(op.name)(function)


@_test
def logical_not(k: Any, x: Any) -> Any:
    """Not, elementwise.

    >>> import minigrad as mg
    >>> ~mg.tensor([True, False])
    tensor([False,  True])
    """
    return k.logical_not(x)


@_test
def isnan(k: Any, x: Any) -> Any:
    """Is it NaN?

    >>> import minigrad as mg
    >>> mg.isnan(mg.tensor([1.0, float("nan")]))
    tensor([False,  True])
    """
    return k.isnan(x)


@_test
def isfinite(k: Any, x: Any) -> Any:
    """Is it neither NaN nor infinite?

    >>> import minigrad as mg
    >>> mg.isfinite(mg.tensor([1.0, float("inf")]))
    tensor([ True, False])
    """
    return k.isfinite(x)


def _logical(op: Callable[..., Tensor], *symbols: str) -> None:
    """Attach a function as an operator on bool tensors; on integers it would be taken for a bitwise one."""

    def operator(*operands: Operand) -> Tensor:
        for x in operands:
            if x.dtype != _dtypes.bool_ if isinstance(x, Tensor) else not isinstance(x, bool):
                found = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(f"{op.__name__}: expected bool tensors; got {found}. Use mg.{op.__name__}().")
        return op(*operands)

    method(*symbols)(operator)


_logical(logical_and, "__and__", "__rand__")
_logical(logical_or, "__or__", "__ror__")
_logical(logical_not, "__invert__")
