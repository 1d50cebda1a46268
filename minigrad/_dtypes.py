"""The five dtypes, and how operands of different ones meet: by category first (bool < int < float), as in torch.

A tensor with dimensions outranks a 0-d tensor, which outranks a Python number: the lower rank changes the result only
by a higher category. So `float32 * 2.0` is float32, `int64 + float32` is float32, and `int64 * 2.5` is float32 too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

float16 = np.dtype("float16")
float32 = np.dtype("float32")
float64 = np.dtype("float64")
int64 = np.dtype("int64")
bool_ = np.dtype("bool")

DTYPES = (float16, float32, float64, int64, bool_)
_DEFAULT = {"b": bool_, "i": int64, "f": float32}  # what a Python number becomes, by category


def check(dtype: Any, who: str) -> np.dtype[Any]:
    """The dtype as a NumPy dtype, or a TypeError that lists the five."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = dtype
    if found not in DTYPES:
        raise TypeError(
            f"{who}: expected a dtype out of {', '.join(map(str, DTYPES))}; got {found}. Convert it first, "
            f"for example with dtype=mg.{'int64' if getattr(found, 'kind', 'f') in 'iu' else 'float32'}."
        )
    return found


def of_number(x: bool | int | float) -> np.dtype[Any]:
    """The dtype of a tensor made from a Python number."""
    return bool_ if isinstance(x, bool) else int64 if isinstance(x, int) else float32


def result_type(*operands: Any) -> np.dtype[Any]:
    """The dtype in which tensors (anything with `dtype` and `ndim`) and Python numbers meet, by torch's rules.

    >>> import minigrad as mg
    >>> mg.result_type(mg.ones(2), mg.tensor(1.0, dtype=mg.float64)), mg.result_type(mg.arange(2), 2.5)
    (dtype('float32'), dtype('float32'))
    """
    with_dims: np.dtype[Any] | None = None
    zero_dim: np.dtype[Any] | None = None
    number: np.dtype[Any] | None = None
    for x in operands:
        if not hasattr(x, "dtype"):
            number = _meet(number, of_number(x))
        elif x.ndim:
            with_dims = _meet(with_dims, x.dtype)
        else:
            zero_dim = _meet(zero_dim, x.dtype)
    result = with_dims
    for lower in (zero_dim, number):
        if lower is not None and (result is None or _category(lower) > _category(result)):
            result = lower if lower is zero_dim or result is None else _DEFAULT[lower.kind]
    assert result is not None
    return result


def _category(dtype: np.dtype[Any]) -> int:
    return "bif".index(dtype.kind)


def _meet(a: np.dtype[Any] | None, b: np.dtype[Any]) -> np.dtype[Any]:
    if a is None or a == b:
        return b
    if _category(a) != _category(b):
        return a if _category(a) > _category(b) else b
    return max(a, b, key=lambda d: d.itemsize)
