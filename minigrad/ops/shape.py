"""Movement of data: the same numbers in another arrangement. Views where the device has views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minigrad import _dtypes, device as devices
from minigrad._op import primitive
from minigrad._tensor import Tensor, method
from minigrad.ops import _arguments as arguments
from minigrad.ops._operands import to_dtype


@primitive(view=True)
def _reshape(k: Any, x: Any, *, shape: tuple[int, ...]) -> Any:
    return k.reshape(x, shape)


@primitive(view=True)
def _permute(k: Any, x: Any, *, dims: tuple[int, ...]) -> Any:
    return k.permute(x, dims)


@primitive(view=True)
def _expand(k: Any, x: Any, *, shape: tuple[int, ...]) -> Any:
    return k.expand(x, shape)


@primitive(view=True)
def _flip(k: Any, x: Any, *, dims: tuple[int, ...]) -> Any:
    return k.flip(x, dims)


@primitive(view=True)
def _slice(k: Any, x: Any, *, index: Any) -> Any:
    return k.getitem(x, index)


@primitive()
def _embed(k: Any, x: Any, *, shape: tuple[int, ...], index: Any) -> Any:
    return k.setitem_zeros(x, shape, index)


@primitive()
def _pad(k: Any, x: Any, *, widths: tuple[tuple[int, int], ...], value: float) -> Any:
    return k.pad(x, widths, value)


@primitive()
def _cat(k: Any, *xs: Any, dim: int) -> Any:
    return k.cat(xs, dim)


@primitive()
def _clone(k: Any, x: Any) -> Any:
    return k.copy(x)


@primitive(view=True)
def _contiguous(k: Any, x: Any) -> Any:
    return k.contiguous(x)


@primitive(moves=True)
def _move(k: Any, x: Any, *, device: str, source: str) -> Any:
    return devices.kernels(device).from_host(k.to_host(x))


_reshape.vjp(x=lambda g, x_shape: _reshape(g, shape=x_shape))
_permute.vjp(x=lambda g, dims: _permute(g, dims=tuple(dims.index(d) for d in range(len(dims)))))
_expand.vjp(x=lambda g, x_shape: g.sum_to_size(x_shape))
_flip.vjp(x=lambda g, dims: _flip(g, dims=dims))
_slice.vjp(x=lambda g, x_shape, index: _embed(g, shape=x_shape, index=index))  # the two are each other's adjoint
_embed.vjp(x=lambda g, index: _slice(g, index=index))
_pad.vjp(x=lambda g, x_shape, widths: _slice(g, index=_inner(x_shape, widths)))
_cat.vjp(xs=lambda g, i, xs_shape, dim: _slice(g, index=_piece(i, xs_shape, dim)))
_clone.vjp(x=lambda g: g)
_contiguous.vjp(x=lambda g: g)
_move.vjp(x=lambda g, device, source: _move(g, device=source, source=device))


def _inner(shape: tuple[int, ...], widths: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(before, before + n) for n, (before, _) in zip(shape, widths, strict=True))


def _piece(i: int, shapes: tuple[tuple[int, ...], ...], dim: int) -> tuple[slice, ...]:
    start = sum(shape[dim] for shape in shapes[:i])
    return (slice(None),) * dim + (slice(start, start + shapes[i][dim]),)


@method("reshape", "view")
def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The same elements in order, in another shape; one extent may be −1, to be worked out. A view where possible.

    ValueError if the number of elements differs.

    >>> import minigrad as mg
    >>> mg.arange(6).reshape(2, -1)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    new = arguments.shape("reshape", shape, -1)
    known = math.prod(n for n in new if n != -1)
    if new.count(-1) == 1 and known and x.numel() % known == 0:
        new = tuple(x.numel() // known if n == -1 else n for n in new)
    if -1 in new or math.prod(new) != x.numel():
        raise ValueError(f"reshape: expected a shape of {x.numel()} elements, as {x.shape} has; got {new}")
    return _reshape(x, shape=new)


@method()
def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim … end_dim made one.

    >>> import minigrad as mg
    >>> mg.zeros(2, 3, 4).flatten(1).shape
    (2, 12)
    """
    if x.ndim == 0:
        return reshape(x, 1)
    first, last = arguments.dim("flatten", x, start_dim), arguments.dim("flatten", x, end_dim)
    if first > last:
        raise IndexError(f"flatten: expected start_dim ≤ end_dim; got {start_dim} and {end_dim}")
    return reshape(x, *x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


@method()
def permute(x: Tensor, *dims: Any) -> Tensor:
    """Dimensions in another order: out.shape[i] = x.shape[dims[i]]. A view.

    IndexError unless `dims` names every dimension once.

    >>> import minigrad as mg
    >>> mg.zeros(2, 3, 4).permute(2, 0, 1).shape
    (4, 2, 3)
    """
    order = tuple(arguments.dim("permute", x, d) for d in arguments.shape("permute", dims))
    if sorted(order) != list(range(x.ndim)):
        raise IndexError(f"permute: expected each of the {x.ndim} dims of shape {x.shape} once; got {dims}")
    return _permute(x, dims=order)


@method()
def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions exchanged. A view.

    >>> import minigrad as mg
    >>> mg.zeros(2, 3, 4).transpose(0, 2).shape
    (4, 3, 2)
    """
    order = list(range(x.ndim))
    a, b = arguments.dim("transpose", x, dim0), arguments.dim("transpose", x, dim1)
    order[a], order[b] = b, a
    return _permute(x, dims=tuple(order))


def _reversed(x: Tensor) -> Tensor:
    """All dimensions in reverse order: the transpose of a matrix."""
    return _permute(x, dims=tuple(range(x.ndim))[::-1])


def _matrix_transpose(x: Tensor) -> Tensor:
    """The last two dimensions exchanged: the transpose of each matrix of a batch."""
    if x.ndim < 2:
        raise ValueError(f"mT: expected at least 2 dimensions; got shape {x.shape}")
    return transpose(x, -2, -1)


setattr(Tensor, "T", property(_reversed))  # noqa: B010  (a plain assignment would contradict the declared property)
setattr(Tensor, "mT", property(_matrix_transpose))  # noqa: B010


@method()
def expand(x: Tensor, *shape: Any) -> Tensor:
    """Stretched along dimensions of extent 1 and new ones in front, without a copy; −1 keeps an extent.

    ValueError if an extent other than 1 would change.

    >>> import minigrad as mg
    >>> mg.tensor([[1.0], [2.0]]).expand(2, 3)
    tensor([[1., 1., 1.],
            [2., 2., 2.]])
    """
    wanted = arguments.shape("expand", shape, -1)
    lead = len(wanted) - x.ndim
    new = tuple(x.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(wanted))
    if lead < 0 or any(n < 0 or (i >= lead and x.shape[i - lead] not in (1, n)) for i, n in enumerate(new)):
        raise ValueError(f"expand: shape {x.shape} does not stretch to {wanted}: only extents of 1 can grow")
    return x if new == x.shape else _expand(x, shape=new)


@method()
def sum_to_size(x: Tensor, *shape: Any) -> Tensor:
    """Summed over the dimensions along which `shape` would broadcast to x's shape: the adjoint of `expand`.

    >>> import minigrad as mg
    >>> mg.ones(2, 3).sum_to_size(2, 1)
    tensor([[3.],
            [3.]])
    """
    new = arguments.shape("sum_to_size", shape)
    if new == x.shape:
        return x
    lead = x.ndim - len(new)
    stretched = [d for d in range(x.ndim) if d < lead or (new[d - lead] == 1 and x.shape[d] != 1)]
    if lead < 0 or any(n not in (1, m) for n, m in zip(new, x.shape[lead:], strict=True)):
        raise ValueError(f"sum_to_size: {new} does not broadcast to {x.shape}")
    return reshape(x.sum(stretched), *new) if new else x.sum()


@method()
def squeeze(x: Tensor, dim: int | None = None) -> Tensor:
    """Without dimensions of extent 1: all of them, or `dim` if it has extent 1.

    >>> import minigrad as mg
    >>> mg.zeros(1, 3, 1).squeeze().shape
    (3,)
    """
    drop = range(x.ndim) if dim is None else [arguments.dim("squeeze", x, dim)]
    return _reshape(x, shape=tuple(n for d, n in enumerate(x.shape) if d not in drop or n != 1)) if x.ndim else x


@method()
def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """With a new dimension of extent 1 at `dim`.

    >>> import minigrad as mg
    >>> mg.zeros(3).unsqueeze(-1).shape
    (3, 1)
    """
    at = arguments.dim("unsqueeze", x, dim, extra=1)
    return _reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:]))


@method()
def flip(x: Tensor, dims: int | Sequence[int]) -> Tensor:
    """Reversed along `dims`. A view, where torch copies.

    >>> import minigrad as mg
    >>> mg.arange(3).flip(0)
    tensor([2, 1, 0])
    """
    along = arguments.dims("flip", x, dims) if isinstance(dims, int) or dims else ()
    return _flip(x, dims=along)


def pad(x: Tensor, pad: Sequence[int], value: float = 0.0) -> Tensor:
    """Filled up with `value`: `pad` = (before, after) for the last dimension, then the one before it, and so on.

    A negative width crops. ValueError for an odd number of widths or more than two per dimension, TypeError for the
    name of a mode: there is no other than this one, torch's "constant".

    >>> import minigrad as mg
    >>> mg.pad(mg.ones(2), (1, 2))
    tensor([0., 1., 1., 0., 0.])
    """
    if isinstance(value, str):
        raise TypeError(f"pad: expected a number as value; got {value!r}. Build other borders with cat and flip.")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"pad: expected pairs of widths for at most {x.ndim} dims (shape {x.shape}); got {tuple(pad)}")
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    if any(n + min(b, 0) + min(a, 0) < 0 for n, (b, a) in zip(x.shape, pairs, strict=True)):
        raise ValueError(f"pad: widths {tuple(pad)} crop more than shape {x.shape} has")
    crop = tuple(slice(max(0, -b), n - max(0, -a)) for n, (b, a) in zip(x.shape, pairs, strict=True))
    inner = _slice(x, index=crop) if any(w < 0 for w in pad) else x
    return _pad(inner, widths=tuple((max(0, b), max(0, a)) for b, a in pairs), value=value)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """One after another along `dim`; all other extents and the dtype are the same.

    >>> import minigrad as mg
    >>> mg.cat([mg.ones(2), mg.zeros(1)])
    tensor([1., 1., 0.])
    """
    if not tensors:
        raise ValueError("cat: expected at least one tensor; got none")
    first = arguments.tensor("cat", tensors[0])
    at = arguments.dim("cat", first, dim)
    arguments.same_dtype("cat", *tensors)
    for x in tensors:
        if x.shape[:at] + x.shape[at + 1 :] != first.shape[:at] + first.shape[at + 1 :] or x.ndim != first.ndim:
            raise ValueError(f"cat: expected shapes equal but along dim {at}; got {[y.shape for y in tensors]}")
    return _cat(*tensors, dim=at)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Side by side along a new dimension; all of one shape and dtype.

    >>> import minigrad as mg
    >>> mg.stack([mg.ones(2), mg.zeros(2)])
    tensor([[1., 1.],
            [0., 0.]])
    """
    if len({arguments.tensor("stack", x).shape for x in tensors}) != 1:
        raise ValueError(f"stack: expected tensors of one shape; got {[x.shape for x in tensors]}")
    return cat([unsqueeze(x, dim) for x in tensors], arguments.dim("stack", tensors[0], dim, extra=1))


@method()
def split(x: Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces along `dim`, as views: of `split_size` each (the last may be shorter), or of the sizes listed.

    >>> import minigrad as mg
    >>> [piece.tolist() for piece in mg.arange(5).split(2)]
    [[0, 1], [2, 3], [4]]
    """
    at = arguments.dim("split", x, dim)
    n = x.shape[at]
    if isinstance(split_size, int):
        if split_size < 1:
            raise ValueError(f"split: expected a size of at least 1; got {split_size}")
        sizes = [min(split_size, n - start) for start in range(0, n, split_size)] or [0]
    else:
        sizes = list(split_size)
        if sum(sizes) != n or min(sizes, default=0) < 0:
            raise ValueError(f"split: expected sizes that add up to {n}, the extent of dim {at}; got {sizes}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(_slice(x, index=(slice(None),) * at + (slice(s, s + w),)) for s, w in zip(starts, sizes, strict=True))


@method()
def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` pieces of equal size along `dim` (the last may be shorter); of no extent, as many empty ones.

    >>> import minigrad as mg
    >>> [piece.shape for piece in mg.zeros(2, 6).chunk(3, dim=1)]
    [(2, 2), (2, 2), (2, 2)]
    """
    if chunks < 1:
        raise ValueError(f"chunk: expected at least 1 chunk; got {chunks}")
    extent = x.shape[arguments.dim("chunk", x, dim)]
    return split(x, -(-extent // chunks) if extent else [0] * chunks, dim)


@method()
def clone(x: Tensor) -> Tensor:
    """A copy in new memory, with x in its graph.

    >>> import minigrad as mg
    >>> mg.ones(2).clone()
    tensor([1., 1.])
    """
    return _clone(x)


@method()
def contiguous(x: Tensor) -> Tensor:
    """The same values with their memory in order; x's own memory if it is in order already."""
    return _contiguous(x)


@method()
def to(x: Tensor, target: Any = None, *, dtype: Any = None, device: Any = None) -> Tensor:
    """In another dtype and/or on another device; x itself if it is there already. Gradients travel back.

    >>> import minigrad as mg
    >>> mg.tensor([1, 2]).to(mg.float64)
    tensor([1., 2.], dtype=float64)
    """
    if isinstance(target, str) and target in devices.DEVICES:
        device = target
    elif target is not None:
        dtype = target
    if device is not None and devices.check(device, "to") != x.device:
        x = _move(x, device=str(device), source=x.device)
    return x if dtype is None else to_dtype(x, _dtypes.check(dtype, "to"))


@method("float")
def _to_float32(x: Tensor) -> Tensor:
    """In float32."""
    return to_dtype(x, _dtypes.float32)


@method("double")
def _to_float64(x: Tensor) -> Tensor:
    """In float64."""
    return to_dtype(x, _dtypes.float64)


@method("half")
def _to_float16(x: Tensor) -> Tensor:
    """In float16."""
    return to_dtype(x, _dtypes.float16)


@method("long")
def _to_int64(x: Tensor) -> Tensor:
    """In int64, towards zero."""
    return to_dtype(x, _dtypes.int64)
