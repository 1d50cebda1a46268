"""The in-place surface, complete: copy_, zero_, x[…] = y, and under no_grad x += y of a leaf that requires grad.

None is differentiable; each raises the tensor's version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad._mode import mode
from minigrad._tensor import Number, Tensor, changed, method
from minigrad.device import kernels
from minigrad.ops._operands import Operand
from minigrad.ops.arithmetic import add, div, mul, sub
from minigrad.ops.index import ints_first, raw_index


def write(name: str, x: Tensor, index: Any, value: Tensor | Number) -> None:
    """x[index] = value for a value of x's dtype and device, or a number."""
    if x._requires_grad and mode.grad:
        raise RuntimeError(
            f"{name}: in-place changes are not differentiable, and this tensor (shape {x.shape}) requires grad. "
            f"Do it under mg.no_grad(), or use an op that returns a new tensor."
        )
    if isinstance(value, Tensor):
        if value._requires_grad and mode.grad:
            raise RuntimeError(
                f"{name}: in-place changes are not differentiable, and the value (shape {value.shape}) requires grad. "
                f"Give it value.detach(), or use an op that returns a new tensor, such as where, cat or stack."
            )
        if value.data.dtype != x.data.dtype:
            raise TypeError(f"{name}: expected a value of dtype {x.dtype}; got {value.dtype}. Convert it with to().")
        if value.device != x.device:
            raise RuntimeError(f"{name}: expected a value on {x.device}; got {value.device}. Move it with to().")
    elif not isinstance(value, (bool, int, float, np.number)):
        raise TypeError(f"{name}: expected a tensor or a number; got {type(value).__name__}")
    k = kernels(x.device)
    if not k.is_writable(x.data):
        raise RuntimeError(
            f"{name}: the memory of this tensor (shape {x.shape}) is read-only: an expanded view, or an array that "
            f"forbids writing. Write to a clone()."
        )
    raw = value.data if isinstance(value, Tensor) else value
    try:
        k.assign(x.data, index, raw)
    except (ValueError, OverflowError):
        if raw is value:
            raise ValueError(f"{name}: expected a number that {x.dtype} can hold; got {value}") from None
        raise ValueError(
            f"{name}: a value of shape {getattr(raw, 'shape', ())} does not broadcast into shape {x.shape}"
        ) from None
    changed(x)


@method()
def copy_(x: Tensor, source: Tensor) -> Tensor:
    """Overwrite x with `source` (broadcast, same dtype and device); returns x. Not differentiable.

    RuntimeError under grad mode if x requires grad.

    >>> import minigrad as mg
    >>> mg.zeros(2).copy_(mg.ones(2))
    tensor([1., 1.])
    """
    write("copy_", x, ..., source)
    return x


@method()
def zero_(x: Tensor) -> Tensor:
    """Overwrite x with 0; returns x. Not differentiable.

    >>> import minigrad as mg
    >>> mg.ones(2).zero_()
    tensor([0., 0.])
    """
    write("zero_", x, ..., 0)
    return x


@method("__setitem__")
def setitem(x: Tensor, index: Any, value: Tensor | Number) -> None:
    """x[index] = value, in place, for every index that x[index] takes. Not differentiable.

    On a GPU an index with tensors or masks takes all of x to the host and back: it alone knows which of two values for
    one place comes last.

    >>> import minigrad as mg
    >>> x = mg.zeros(3)
    >>> x[1:] = 5.0
    >>> x
    tensor([0., 5., 5.])
    """
    raw, basic = raw_index(index)
    try:
        write("x[…] = y", *((x, raw) if basic else ints_first(x, raw)), value)
    except IndexError as error:
        raise IndexError(f"indexing a tensor of shape {x.shape}: {error}") from None


def _augmented(op: Callable[[Operand, Operand], Tensor], symbol: str, sign: str) -> None:
    """Attach x ∘= y. A leaf that requires grad is written to, and refuses outside of no_grad, both as in torch.

    Else `for p in model.parameters(): p -= lr * p.grad` would change the name `p` alone. For all other tensors it is
    Python's x = x ∘ y.
    """

    def augmented(x: Tensor, y: Operand) -> Tensor:
        if not x._requires_grad or x.node is not None:
            return NotImplemented
        write(f"x {sign} y", x, ..., op(x.detach(), y))
        return x

    method(f"__i{symbol}__")(augmented)


for _op, _symbol, _sign in ((add, "add", "+="), (sub, "sub", "-="), (mul, "mul", "*="), (div, "truediv", "/=")):
    _augmented(_op, _symbol, _sign)
