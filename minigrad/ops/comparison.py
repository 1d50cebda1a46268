"""Questions about elements, and choices between them: comparisons, where, maximum, minimum, clip."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import _dtypes
from minigrad._op import Op, primitive
from minigrad._tensor import Number, Tensor, method
from minigrad.ops._operands import Operand, countable, operands, to_dtype

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
_maximum.vjp(x=lambda g, x, y: _share(g, x, y), y=lambda g, x, y: _share(g, y, x))
_minimum.vjp(x=lambda g, x, y: _share(g, y, x), y=lambda g, x, y: _share(g, x, y))
_clip.vjp(x=lambda g, x, low, high: where(_inside(x, low, high), g, 0.0))


def _share(g: Tensor, x: Operand, y: Operand) -> Tensor:
    """g where x > y, half of it at a tie, else 0: chosen, as a product with 0 is NaN where g is infinite."""
    return where(gt(x, y), g, where(eq(x, y), 0.5 * g, 0.0))


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
    ready = operands("where", x, y, device=condition.device)
    operands("where", condition, *(a for a in ready if isinstance(a, Tensor)))  # do all three broadcast?
    meet = next(a.dtype for a in ready if isinstance(a, Tensor))
    return to_dtype(_where(condition, *ready), meet)


@method("where")
def _where_of(x: Tensor, condition: Tensor, y: Operand) -> Tensor:
    """The tensor where `condition` holds, else y: as `mg.where(condition, self, y)`.

    >>> import minigrad as mg
    >>> x = mg.tensor([-1.0, 2.0])
    >>> x.where(x > 0, 0.0)
    tensor([0., 2.])
    """
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
    return _clip(*countable("clip", ready[:1]), low=low, high=high)
