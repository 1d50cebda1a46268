"""Operands of elementwise ops: they broadcast as in NumPy and meet in one dtype as in torch (`mg.result_type`).

Python numbers stay numbers: they cost no tensor and take no gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad import _dtypes
from minigrad._op import primitive
from minigrad._tensor import Number, Tensor
from minigrad.device import kernels

Operand = Tensor | Number


@primitive()
def _cast(k: Any, x: Any, *, dtype: Any, source: Any) -> Any:
    return k.cast(x, dtype)


_cast.vjp(x=lambda g, source: to_dtype(g, source))


def to_dtype(x: Tensor, dtype: Any) -> Tensor:
    """The tensor in another dtype; itself if it has that already. The gradient is cast back."""
    return x if x.data.dtype == dtype else _cast(x, dtype=dtype, source=x.dtype)


def operands(name: str, *xs: Any, dtype: Any = None, device: str = "cpu") -> list[Any]:
    """Operands ready for an op: tensors cast to the dtype they meet in, numbers as they are, shapes that broadcast.

    `device`: where the first of them becomes a tensor if all are numbers.
    """
    if dtype is None and len(xs) <= 2 and _meet_already(*xs):
        return list(xs)
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
        ready[0] = Tensor(kernels(device).full((), ready[0], meet), device)
    return ready


def _meet_already(x: Any, y: Any = 0.0) -> bool:
    """Is it two floating tensors of one shape and dtype, or one, or one and a number? What training does most."""
    if type(x) is float or type(x) is int:
        x, y = y, x
    if not isinstance(x, Tensor) or x.data.dtype.kind != "f":
        return False
    if isinstance(y, Tensor):
        return y.data.dtype is x.data.dtype and y.data.shape == x.data.shape
    return type(y) is float or type(y) is int


def countable(name: str, xs: list[Any]) -> list[Any]:
    """The operands themselves, or TypeError if they are bool tensors."""
    for x in xs:
        if isinstance(x, Tensor) and x.data.dtype.kind == "b":
            raise TypeError(
                f"{name}: not defined for bool tensors. Convert with to(mg.int64), or use the logical ~ & |."
            )
    return xs


def floating(x: Tensor) -> Tensor:
    """The tensor itself, or as float32 if it holds integers or booleans."""
    return x if x.data.dtype.kind == "f" else to_dtype(x, _dtypes.float32)
