"""Reductions: sums and what is made of them, extrema, products, norms, running sums."""

from __future__ import annotations

import builtins
import math
from typing import Any, NamedTuple

from minigrad import _dtypes
from minigrad._op import Op, primitive
from minigrad._tensor import Tensor, method
from minigrad.ops import _arguments as arguments
from minigrad.ops._arguments import Dim
from minigrad.ops._operands import to_dtype
from minigrad.ops.arithmetic import pow
from minigrad.ops.comparison import eq, isfinite, ne, where
from minigrad.ops.creation import ones_like
from minigrad.ops.index import _gather
from minigrad.ops.shape import cat, clone, contiguous, expand, flip, permute, reshape
from minigrad.ops.unary import abs as _abs, square


class Extremum(NamedTuple):
    """What `max` and `min` along a dimension return."""

    values: Tensor
    indices: Tensor


@primitive()
def _sum(k: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    return k.sum(x, dims, keepdim)


@primitive()
def _norm(k: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    return k.norm(x, dims, keepdim)


@primitive()
def _amax(k: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    return k.amax(x, dims, keepdim)


@primitive()
def _amin(k: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    return k.amin(x, dims, keepdim)


@primitive()
def _prod(k: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    return k.prod(x, dims, keepdim)


@primitive()
def _cumsum(k: Any, x: Any, *, dim: int) -> Any:
    return k.cumsum(x, dim)


_sum.vjp(x=lambda g, x_shape, dims: _spread(g, x_shape, dims))
_norm.vjp(x=lambda g, x, out, dims: _direction(x, _restore(out, x.shape, dims)) * _restore(g, x.shape, dims))
_amax.vjp(x=lambda g, x, out, dims: _to_extrema(g, x, out, dims))
_amin.vjp(x=lambda g, x, out, dims: _to_extrema(g, x, out, dims))
_prod.vjp(x=lambda g, x, dims: _others(x, dims) * _restore(g, x.shape, dims))
_cumsum.vjp(x=lambda g, dim: flip(_cumsum(flip(g, dim), dim=dim), dim))


def _restore(g: Tensor, shape: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    """With the reduced dimensions back, of extent 1."""
    return reshape(g, *[1 if d in dims else n for d, n in enumerate(shape)])


def _spread(g: Tensor, shape: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    """g to every place that was summed; leading dimensions come back by broadcasting."""
    leading = dims[-1] == len(dims) - 1
    return expand(g if leading or g.ndim == len(shape) else _restore(g, shape, dims), *shape)


def _direction(x: Tensor, norm: Tensor) -> Tensor:
    """x / ‖x‖, and 0 where x = 0: the subgradient of smallest norm."""
    zero = eq(norm, 0)
    return where(zero, 0.0, x / where(zero, 1.0, norm))


def _to_extrema(g: Tensor, x: Tensor, out: Tensor, dims: tuple[int, ...]) -> Tensor:
    """g to the places where the extremum is attained, in equal shares."""
    attained = to_dtype(eq(x, _restore(out.detach(), x.shape, dims)), g.dtype)
    return attained * _restore(g, x.shape, dims) / sum(attained, dims, keepdim=True)


def _others(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """At each place the product over `dims` of all others, without a division: exact also where factors are 0."""
    order = (*dims, *[d for d in range(x.ndim) if d not in dims])
    first = contiguous(permute(x, *order))
    columns = reshape(first, _count(x, dims), *first.shape[len(dims) :])
    products = reshape(_other_factors(columns), *first.shape)
    return contiguous(permute(products, *[order.index(d) for d in range(x.ndim)]))


def _other_factors(x: Tensor) -> Tensor:
    """Of columns: those of the two halves' product, times the other half; and the last factor, if they are odd."""
    n = len(x)
    if n < 2:
        return ones_like(x)
    left, right = x[: n // 2], x[n // 2 : n // 2 * 2]
    products = _other_factors(left * right)
    products = cat((products * right, products * left))
    return cat((products * x[-1:], _prod(x[:-1], dims=(0,), keepdim=True))) if n % 2 else products


@method()
def sum(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Σ x over `dim` (all dimensions if None); integers and bools in int64.

    Float32 is summed in blocks with float64 totals: the error stays under 1e-6 · Σ|x|.

    >>> import minigrad as mg
    >>> mg.sum(mg.ones(2, 3), dim=0)
    tensor([2., 2., 2.])
    """
    along = arguments.dims("sum", x, dim)
    if along or x.dtype.kind != "f":
        return _sum(x, dims=along, keepdim=keepdim)
    return clone(x)  # a view would change with x


@method()
def mean(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Σ x / n over `dim`. TypeError for integers; NaN for an empty tensor.

    >>> import minigrad as mg
    >>> mg.mean(mg.tensor([1.0, 3.0]))
    tensor(2.)
    """
    _needs_floats("mean", x)
    return to_dtype(sum(_wide(x), dim, keepdim) / _count(x, arguments.dims("mean", x, dim)), x.dtype)


@method()
def var(x: Tensor, dim: Dim = None, correction: int = 1, keepdim: bool = False) -> Tensor:
    """Σ (x − mean)² / (n − correction) over `dim`, in two passes; NaN where that is 0/0.

    >>> import minigrad as mg
    >>> mg.var(mg.tensor([1.0, 3.0]))
    tensor(2.)
    """
    _needs_floats("var", x)
    along = arguments.dims("var", x, dim)
    total = sum(square(_deviation(x, along)), along, keepdim)
    return to_dtype(total / builtins.max(0, _count(x, along) - correction), x.dtype)


@method()
def std(x: Tensor, dim: Dim = None, correction: int = 1, keepdim: bool = False) -> Tensor:
    """√var, as a norm of the deviations; its derivative where all of them are 0 is 0.

    >>> import minigrad as mg
    >>> mg.std(mg.tensor([1.0, 3.0]))
    tensor(1.4142)
    """
    _needs_floats("std", x)
    along = arguments.dims("std", x, dim)
    size = norm(_deviation(x, along), 2.0, along, keepdim)
    return to_dtype(size / math.sqrt(builtins.max(0, _count(x, along) - correction)), x.dtype)


def _deviation(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    wide = _wide(x)
    return wide - mean(wide, dims, keepdim=True)


def _wide(x: Tensor) -> Tensor:
    """Float16 as float32, to compute in; all else as it is."""
    return to_dtype(x, _dtypes.float32) if x.dtype == _dtypes.float16 else x


@method()
def amax(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The largest value over `dim`; NaN if there is one. Places that share it share the gradient equally.

    ValueError for an empty tensor.

    >>> import minigrad as mg
    >>> mg.amax(mg.tensor([[1.0, 5.0], [7.0, 3.0]]), dim=1)
    tensor([5., 7.])
    """
    return _extreme(_amax, x, dim, keepdim)


@method()
def amin(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The smallest value over `dim`; NaN if there is one. Places that share it share the gradient equally.

    ValueError for an empty tensor.

    >>> import minigrad as mg
    >>> mg.amin(mg.tensor([[1.0, 5.0], [7.0, 3.0]]), dim=1)
    tensor([1., 3.])
    """
    return _extreme(_amin, x, dim, keepdim)


def _extreme(op: Op, x: Tensor, dim: Dim, keepdim: bool) -> Tensor:
    along = arguments.dims(op.name, x, dim)
    if not _count(x, along):
        raise ValueError(f"{op.name}: expected at least one element; got shape {x.shape}")
    return op(x, dims=along, keepdim=keepdim) if along else clone(x)


@method()
def max(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The largest value, or (values, indices) along `dim`, whose gradient goes to the index returned: the first.

    >>> import minigrad as mg
    >>> mg.max(mg.tensor([[1.0, 5.0], [7.0, 3.0]]), dim=1).indices
    tensor([1, 0])
    """
    return amax(x) if dim is None else _extreme_at("max", argmax(x, dim, keepdim=True), x, dim, keepdim)


@method()
def min(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The smallest value, or (values, indices) along `dim`, whose gradient goes to the index returned: the first.

    >>> import minigrad as mg
    >>> mg.min(mg.tensor([[1.0, 5.0], [7.0, 3.0]]), dim=1).values
    tensor([1., 3.])
    """
    return amin(x) if dim is None else _extreme_at("min", argmin(x, dim, keepdim=True), x, dim, keepdim)


def _extreme_at(name: str, indices: Tensor, x: Tensor, dim: int, keepdim: bool) -> Extremum:
    values = _gather(x, indices, dim=arguments.dim(name, x, dim))  # which need not be looked at: they are in range
    return Extremum(values, indices) if keepdim else Extremum(values.squeeze(dim), indices.squeeze(dim))


@primitive()
def _argmax(k: Any, x: Any, *, dim: int, keepdim: bool) -> Any:
    return k.argmax(x, dim, keepdim)


@primitive()
def _argmin(k: Any, x: Any, *, dim: int, keepdim: bool) -> Any:
    return k.argmin(x, dim, keepdim)


@method()
def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the largest value stands along `dim` (in the flattened tensor if None): the first such place.

    >>> import minigrad as mg
    >>> mg.argmax(mg.tensor([1.0, 5.0, 5.0]))
    tensor(1)
    """
    return _place(_argmax, x, dim, keepdim)


@method()
def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the smallest value stands along `dim` (in the flattened tensor if None): the first such place.

    >>> import minigrad as mg
    >>> mg.argmin(mg.tensor([1.0, 5.0, 0.5]))
    tensor(2)
    """
    return _place(_argmin, x, dim, keepdim)


def _place(op: Op, x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    flat = x.detach() if dim is not None and x.ndim else reshape(x.detach(), -1)
    at = arguments.dim(op.name, flat, 0 if dim is None else dim)
    if not flat.shape[at]:
        raise ValueError(f"{op.name}: expected at least one element along dim {at}; got shape {x.shape}")
    place: Tensor = op(flat, dim=at, keepdim=keepdim and dim is not None)
    return reshape(place, *[1] * x.ndim) if keepdim and dim is None else place if x.ndim else reshape(place)


@method()
def prod(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Π x over `dim`; integers and bools in int64. Derivatives of every order are exact also where factors are 0.

    >>> import minigrad as mg
    >>> mg.prod(mg.tensor([2.0, 3.0, 4.0]))
    tensor(24.)
    """
    along = arguments.dims("prod", x, dim)
    if along or x.dtype.kind != "f":
        return to_dtype(_prod(_wide(x), dims=along, keepdim=keepdim), x.dtype if x.dtype.kind == "f" else _dtypes.int64)
    return clone(x)


@method()
def norm(x: Tensor, p: float = 2.0, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """(Σ|x|ᵖ)^{1/p} over `dim`; p = inf is max|x|. No power overflows or vanishes; ‖·‖′(0) = 0.

    ValueError unless p > 0.

    >>> import minigrad as mg
    >>> mg.norm(mg.tensor([3.0, 4.0]))
    tensor(5.)
    """
    _needs_floats("norm", x)
    along = arguments.dims("norm", x, dim)
    if not p > 0:
        raise ValueError(f"norm: expected p > 0; got {p}")
    if p == 2 and along:
        return _norm(x, dims=along, keepdim=keepdim)
    if p == math.inf:
        return amax(_abs(x), along, keepdim)
    if p == 1 or not along or not _count(x, along):
        return sum(_abs(x), along, keepdim)
    size = _abs(_wide(x))
    if p < 1:  # the slope of |x|ᵖ at 0 is infinite, and 0 of it is meant
        size = where(eq(x, 0), 0.0, size)
    peak = amax(size.detach(), along, keepdim=True)
    zero = eq(peak, 0)
    scale = where(zero | ~isfinite(peak), 1.0, peak)  # ‖x‖ = c ‖x/c‖ for any c, which is therefore a constant
    total = sum(pow(size / scale, p), along, keepdim=True)
    root = where(zero, 0.0, scale * pow(where(zero, 1.0, total), 1 / p))
    return to_dtype(root if keepdim else sum(root, along), x.dtype)


@method()
def cumsum(x: Tensor, dim: int) -> Tensor:
    """Running sums along `dim`, carried in float64.

    >>> import minigrad as mg
    >>> mg.cumsum(mg.tensor([1.0, 2.0, 3.0]), 0)
    tensor([1., 3., 6.])
    """
    return _cumsum(x, dim=arguments.dim("cumsum", x, dim))


@primitive()
def _any(k: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    return k.any(x, dims, keepdim)


@primitive()
def _all(k: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
    return k.all(x, dims, keepdim)


@method()
def any(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Is one of them true (not 0)?

    >>> import minigrad as mg
    >>> mg.any(mg.tensor([0.0, 2.0]))
    tensor(True)
    """
    return _any(ne(x, 0), dims=arguments.dims("any", x, dim), keepdim=keepdim)


@method()
def all(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Are all of them true (not 0)?

    >>> import minigrad as mg
    >>> mg.all(mg.tensor([0.0, 2.0]))
    tensor(False)
    """
    return _all(ne(x, 0), dims=arguments.dims("all", x, dim), keepdim=keepdim)


def _count(x: Tensor, dims: tuple[int, ...]) -> int:
    return math.prod(x.shape[d] for d in dims)


def _needs_floats(name: str, x: Tensor) -> None:
    if x.dtype.kind != "f":
        raise TypeError(f"{name}: expected a floating dtype; got {x.dtype}. Convert with to(mg.float32).")
