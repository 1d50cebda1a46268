"""Products of matrices: matmul, linear, and dot, outer, einsum through them."""

from __future__ import annotations

import math
import string
from typing import Any

import numpy as np

from minigrad._op import primitive
from minigrad._tensor import Tensor, method
from minigrad.ops import _arguments as arguments
from minigrad.ops.reduce import sum
from minigrad.ops.shape import permute, reshape


@primitive(broadcasts=True)
def _matmul(k: Any, x: Any, y: Any) -> Any:
    return k.matmul(x, y)


@primitive()
def _linear(k: Any, x: Any, weight: Any, bias: Any) -> Any:
    return k.linear(x, weight, bias)


@primitive()
def _gram(k: Any, x: Any, y: Any) -> Any:
    """xᵀy of matrices: an op of its own saves the graph a transpose at every step of training."""
    return k.matmul(k.permute(x, (1, 0)), y)


_matmul.vjp(x=lambda g, y: _matmul(g, y.mT), y=lambda g, x: _matmul(x.mT, g))
_gram.vjp(x=lambda g, y: _linear(y, g, None), y=lambda g, x: _matmul(x, g))
_linear.vjp(
    x=lambda g, weight: g @ weight,
    weight=lambda g, x: _gram(_flat(g), _flat(x)),
    bias=lambda g: sum(_flat(g), 0),
)


def _flat(x: Tensor) -> Tensor:
    """(…, n) as (rows, n)."""
    return x if x.ndim == 2 else reshape(x, math.prod(x.shape[:-1]), x.shape[-1])


@method("matmul", "__matmul__")
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Σ_k x[…, i, k] y[…, k, j]; leading dimensions broadcast, a 1-d operand is a row (left) or a column (right).

    ValueError if the inner extents differ or the batches do not broadcast; TypeError for two dtypes.

    >>> import minigrad as mg
    >>> mg.tensor([[1.0, 2.0]]) @ mg.tensor([[3.0], [4.0]])
    tensor([[11.]])
    """
    arguments.same_dtype("matmul", arguments.tensor("matmul", x), arguments.tensor("matmul", y))
    if not x.ndim or not y.ndim:
        raise ValueError(f"matmul: expected at least 1 dimension each; got shapes {x.shape} and {y.shape}. Use mul.")
    rows = reshape(x, 1, -1) if x.ndim == 1 else x
    columns = reshape(y, -1, 1) if y.ndim == 1 else y
    if rows.shape[-1] != columns.shape[-2]:
        raise ValueError(f"matmul: inner extents differ: shapes {x.shape} and {y.shape}. Transpose with .mT?")
    if x.ndim > 2 and y.ndim > 2:
        try:
            np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
        except ValueError:
            raise ValueError(f"matmul: the batches of shapes {x.shape} and {y.shape} do not broadcast") from None
    out: Tensor = _matmul(rows, columns)
    if x.ndim > 1 and y.ndim > 1:
        return out
    drop = [out.ndim - 2] * (x.ndim == 1) + [out.ndim - 1] * (y.ndim == 1)
    return reshape(out, *[n for d, n in enumerate(out.shape) if d not in drop])


@method("__rmatmul__")
def _matmul_from_right(y: Tensor, x: Tensor) -> Tensor:
    return matmul(x, y)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for x (…, in), weight (out, in), bias (out) or None: shape (…, out).

    ValueError for extents that do not fit; TypeError for more than one dtype.

    >>> import minigrad as mg
    >>> mg.linear(mg.tensor([[1.0, 2.0]]), mg.tensor([[3.0, 4.0]]), mg.tensor([0.5]))
    tensor([[11.5]])
    """
    operands = (x, weight) if bias is None else (x, weight, bias)
    arguments.same_dtype("linear", *[arguments.tensor("linear", a) for a in operands])
    fits = weight.ndim == 2 and x.ndim >= 1 and x.shape[-1] == weight.shape[1]
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"linear: expected x (…, in), weight (out, in), bias (out); got {x.shape}, {weight.shape}, "
            f"{None if bias is None else bias.shape}"
        )
    return _linear(x, weight, bias)


@method()
def dot(x: Tensor, y: Tensor) -> Tensor:
    """Σ xᵢ yᵢ of two vectors.

    >>> import minigrad as mg
    >>> mg.dot(mg.tensor([1.0, 2.0]), mg.tensor([3.0, 4.0]))
    tensor(11.)
    """
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"dot: expected two vectors of one length; got shapes {x.shape} and {y.shape}")
    return matmul(x, y)


@method()
def outer(x: Tensor, y: Tensor) -> Tensor:
    """x yᵀ of two vectors.

    >>> import minigrad as mg
    >>> mg.outer(mg.tensor([1.0, 2.0]), mg.tensor([3.0, 4.0]))
    tensor([[3., 4.],
            [6., 8.]])
    """
    if x.ndim != 1 or y.ndim != 1:
        raise ValueError(f"outer: expected two vectors; got shapes {x.shape} and {y.shape}")
    return reshape(x, -1, 1) * y


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Σ over the letters that the output does not name: `einsum("bik,bkj->bij", x, y)`.

    Contracted two by two from the left, each by one batched matmul. Without "->" the output has the letters that occur
    once, in alphabetical order. A letter repeated inside one operand and "..." are not supported (ValueError).

    >>> import minigrad as mg
    >>> mg.einsum("ij,j->i", mg.tensor([[1.0, 2.0], [3.0, 4.0]]), mg.tensor([1.0, 10.0]))
    tensor([21., 43.])
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        result = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    extents: dict[str, int] = {}
    for x in operands:
        arguments.tensor("einsum", x)
    for term, x in zip(terms, operands, strict=False):
        for letter, n in zip(term, x.shape, strict=False):
            if extents.setdefault(letter, n) != n:
                raise ValueError(f"einsum {equation!r}: {letter!r} is both {extents[letter]} and {n} long")
    legal = len(terms) == len(operands) and all(
        set(term) <= set(string.ascii_letters) and len(set(term)) == len(term) == x.ndim
        for term, x in zip(terms, operands, strict=True)
    )
    if not legal or len(set(result)) < len(result) or set(result) - set(left):
        raise ValueError(f"einsum: {equation!r} does not fit shapes {[x.shape for x in operands]}")
    letters, total = _summed(terms[0], operands[0], set(result).union(*terms[1:]))
    for i in range(1, len(terms)):
        kept = set(result).union(*terms[i + 1 :])
        other, x = _summed(terms[i], operands[i], kept | set(letters))
        letters, total = _contract(letters, total, other, x, kept, extents)
    letters, total = _summed(letters, total, set(result))
    return permute(total, *[letters.index(c) for c in result]) if result else total


def _summed(letters: str, x: Tensor, kept: set[str]) -> tuple[str, Tensor]:
    """x summed over the letters that nobody asks for any more."""
    gone = [d for d, c in enumerate(letters) if c not in kept]
    return "".join(c for c in letters if c in kept), sum(x, gone) if gone else x


def _contract(
    a: str, x: Tensor, b: str, y: Tensor, kept: set[str], extents: dict[str, int]
) -> tuple[str, Tensor]:
    """Two operands as one batched matmul (batch, rows, inner) @ (batch, inner, columns)."""
    batch = [c for c in a if c in b and c in kept]
    inner = [c for c in a if c in b and c not in kept]
    rows = [c for c in a if c not in b]
    columns = [c for c in b if c not in a]

    def block(letters: str, z: Tensor, *groups: list[str]) -> Tensor:
        order = permute(z, *[letters.index(c) for group in groups for c in group]) if z.ndim else z
        return reshape(order, *[math.prod(extents[c] for c in group) for group in groups])

    out = matmul(block(a, x, batch, rows, inner), block(b, y, batch, inner, columns))
    letters = batch + rows + columns
    return "".join(letters), reshape(out, *[extents[c] for c in letters])
