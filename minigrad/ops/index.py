"""Selection by position: x[…], gather, index_select, embedding; each with the scatter that is its adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad._op import primitive
from minigrad._tensor import Tensor, method
from minigrad.device import kernels
from minigrad.ops import _arguments as arguments
from minigrad.ops.shape import _slice, reshape


@primitive()
def _take(k: Any, x: Any, places: Any) -> Any:
    return k.take(x, places)


@primitive()
def _put_add(k: Any, x: Any, places: Any, *, shape: tuple[int, ...]) -> Any:
    return k.put_add(x, places, shape)


@primitive()
def _index_select(k: Any, x: Any, index: Any, *, dim: int) -> Any:
    return k.index_select(x, dim, index)


@primitive()
def _index_add(k: Any, x: Any, index: Any, *, dim: int, extent: int) -> Any:
    return k.index_add(x, dim, index, extent)


@primitive()
def _gather(k: Any, x: Any, index: Any, *, dim: int) -> Any:
    return k.gather(x, dim, index)


@primitive()
def _scatter_add(k: Any, x: Any, index: Any, *, dim: int, shape: tuple[int, ...]) -> Any:
    return k.scatter_add(x, dim, index, shape)


_take.vjp(x=lambda g, places, x_shape: _put_add(g, places, shape=x_shape))
_put_add.vjp(x=lambda g, places: _take(g, places))
_index_select.vjp(x=lambda g, index, x_shape, dim: _index_add(g, index, dim=dim, extent=x_shape[dim]))
_index_add.vjp(x=lambda g, index, dim: _index_select(g, index, dim=dim))
_gather.vjp(x=lambda g, index, x_shape, dim: _scatter_add(g, index, dim=dim, shape=x_shape))
_scatter_add.vjp(x=lambda g, index, dim: _gather(g, index, dim=dim))


def raw_index(index: Any) -> tuple[Any, bool]:
    """An index in NumPy's form, and whether it is basic (slices, ints, `...`, None: a view)."""
    parts = index if isinstance(index, tuple) else (index,)
    raw = []
    basic = True
    for part in parts:
        if isinstance(part, Tensor) and part.ndim == 0 and part.dtype.kind == "i":
            raw.append(part.item())
        elif isinstance(part, Tensor | np.ndarray | list):
            array = np.asarray(part.detach() if isinstance(part, Tensor) else part)
            if array.dtype.kind not in "ib" and array.size:
                raise IndexError(f"indexing: expected an integer or bool tensor as index; got {array.dtype}")
            raw.append(array if array.dtype.kind in "ib" else array.astype(np.int64))  # [] is a list of no ints
            basic = False
        elif part is None or part is Ellipsis or isinstance(part, slice):
            raw.append(part)
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            raw.append(int(part))
        else:
            raise IndexError(f"indexing: expected ints, slices, None, ..., int or bool tensors; got {part!r}")
    return tuple(raw), basic


def ints_first(x: Tensor, raw: Any) -> tuple[Tensor, Any]:
    """x at the ints of an index that has arrays too, and the index without them: torch's order.

    NumPy takes an int beside an array for an array, and moves the dimension of x[0, :, [1, 2]] that they make to the
    front.
    """
    if not any(isinstance(part, int) for part in raw):
        return x, raw
    chosen: list[Any] = []
    for part in raw:
        if isinstance(part, int) or part is Ellipsis:
            chosen.append(part)
        elif part is not None:
            chosen += [slice(None)] * (part.ndim if isinstance(part, np.ndarray) and part.dtype.kind == "b" else 1)
    view = _slice(x, index=tuple(chosen))
    view.version = x.version  # also where it is empty, and shares no memory
    return view, tuple(part for part in raw if not isinstance(part, int))


@method("__getitem__")
def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index]: a view for ints and slices; a copy for integer tensors and bool masks, whose repeats add gradients.

    Ints beside tensors are applied first, as in torch: x[0, :, [1, 2]] is x[0][:, [1, 2]].

    IndexError for a position out of range or a mask of another shape. Where integer tensors and masks point to is found
    on the host, also for tensors on a GPU, whose values stay there; `index_select` and `gather` find it on the device.

    >>> import minigrad as mg
    >>> x = mg.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> x[0], x[:, 1], x[x > 1.5]
    (tensor([1., 2.]), tensor([2., 4.]), tensor([2., 3., 4.]))
    """
    raw, basic = raw_index(index)
    try:
        if basic:
            return _slice(x, index=raw)
        view, rest = ints_first(x, raw)
        dim = _only_dim(view, rest)
        among = (view.shape, rest) if dim is None else ((*[1] * dim, view.shape[dim]), rest[: dim + 1])
        places = Tensor(kernels(x.device).flat_places(*among), x.device)
    except IndexError as error:
        raise IndexError(f"indexing a tensor of shape {x.shape}: {error}") from None
    if dim is None:
        return _take(view, places)
    if places.ndim == 1:
        return _index_select(view, places, dim=dim)
    slices = _index_select(view, reshape(places, -1), dim=dim)
    return reshape(slices, *view.shape[:dim], *places.shape[dim:], *view.shape[dim + 1 :])


def _only_dim(x: Tensor, raw: Any) -> int | None:
    """The dimension that an index selects along, if there is but one: x[:, [1, 2]] consists of whole slices."""
    dims = [d for d, part in enumerate(raw) if not (isinstance(part, slice) and part == slice(None))]
    if len(dims) != 1 or len(raw) > x.ndim or not isinstance(array := raw[dims[0]], np.ndarray):
        return None
    return dims[0] if array.dtype.kind == "i" or array.ndim == 1 else None


@method()
def index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices of x at `index` (1-d, int64) along `dim`. IndexError for a position out of [0, extent).

    >>> import minigrad as mg
    >>> mg.index_select(mg.tensor([[1.0, 2.0], [3.0, 4.0]]), 1, mg.tensor([1, 1]))
    tensor([[2., 2.],
            [4., 4.]])
    """
    at = arguments.dim("index_select", x, dim)
    arguments.integers("index_select", index, x.shape[at])
    if index.ndim != 1:
        raise ValueError(f"index_select: expected a 1-d index; got shape {index.shape}")
    return _index_select(x, index, dim=at)


@method()
def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """out[…, i, …] = x[…, index[…, i, …], …], where i runs along `dim`; out has the shape of index (int64).

    ValueError if index has another number of dimensions, or is longer than x in a dimension other than `dim`.

    >>> import minigrad as mg
    >>> mg.gather(mg.tensor([[1.0, 2.0], [3.0, 4.0]]), 1, mg.tensor([[1], [0]]))
    tensor([[2.],
            [3.]])
    """
    at = arguments.dim("gather", x, dim)
    arguments.integers("gather", index, x.shape[at])
    if index.ndim != x.ndim or any(n > m for d, (n, m) in enumerate(zip(index.shape, x.shape, strict=True)) if d != at):
        raise ValueError(f"gather: an index of shape {index.shape} does not fit x of shape {x.shape} along dim {at}")
    return gather_checked(x, at, index)


def gather_checked(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """`gather`, of indices that have been looked at: to look at them again would be another wait for a GPU."""
    return _gather(x, index, dim=dim)


def embedding(index: Tensor, weight: Tensor) -> Tensor:
    """The rows of `weight` (num, dim) at `index` (any shape, int64): shape (*index.shape, dim).

    >>> import minigrad as mg
    >>> mg.embedding(mg.tensor([[1, 0]]), mg.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[[3., 4.],
             [1., 2.]]])
    """
    if arguments.tensor("embedding", weight).ndim != 2:
        raise ValueError(f"embedding: expected a weight (num, dim); got shape {weight.shape}")
    arguments.integers("embedding", index, weight.shape[0])
    rows = _index_select(weight, reshape(index, -1), dim=0)
    return reshape(rows, *index.shape, weight.shape[1])
