"""Pooling and nearest-neighbour upsampling, in one and two dimensions; linear given the maxima's places.

Every op's derivative is its adjoint, and the adjoint's is the op: average and its spreading, a block and its sum,
picking the maxima and putting them back.
"""

from __future__ import annotations

from typing import Any

from minigrad._op import primitive
from minigrad._tensor import Tensor
from minigrad.ops import _arguments as arguments
from minigrad.ops.conv import Extents, IntOrTuple, extents
from minigrad.ops.shape import squeeze, unsqueeze

Windows = tuple[Extents, Extents, Extents]  # kernel, stride, padding

@primitive()
def _max_pool(k: Any, x: Any, *, windows: Windows) -> Any:
    return k.max_pool(x, *windows)


@primitive()
def _pool_gather(k: Any, x: Any, indices: Any, *, windows: Windows) -> Any:
    return k.pool_gather(x, indices)


@primitive()
def _pool_scatter(k: Any, y: Any, indices: Any, *, input_shape: Extents, windows: Windows) -> Any:
    return k.pool_scatter(y, indices, input_shape, windows)


@primitive()
def _avg_pool(k: Any, x: Any, *, windows: tuple[Any, ...]) -> Any:
    return k.avg_pool(x, *windows)


@primitive()
def _avg_pool_grad(k: Any, y: Any, *, input_shape: Extents, windows: tuple[Any, ...]) -> Any:
    return k.avg_pool_grad(y, input_shape, *windows)


@primitive()
def _upsample_nearest(k: Any, x: Any, *, scale: Extents) -> Any:
    return k.upsample_nearest(x, scale)


@primitive()
def _upsample_nearest_grad(k: Any, y: Any, *, scale: Extents) -> Any:
    return k.upsample_nearest_grad(y, scale)


_max_pool.vjp(x=lambda g, aux, x_shape, windows: _pool_scatter(g, aux[0], input_shape=x_shape[2:], windows=windows))
_pool_gather.vjp(
    x=lambda g, indices, x_shape, windows: _pool_scatter(g, indices, input_shape=x_shape[2:], windows=windows)
)
_pool_scatter.vjp(y=lambda g, indices, windows: _pool_gather(g, indices, windows=windows))
_avg_pool.vjp(x=lambda g, x_shape, windows: _avg_pool_grad(g, input_shape=x_shape[2:], windows=windows))
_avg_pool_grad.vjp(y=lambda g, windows: _avg_pool(g, windows=windows))
_upsample_nearest.vjp(x=lambda g, scale: _upsample_nearest_grad(g, scale=scale))
_upsample_nearest_grad.vjp(y=lambda g, scale: _upsample_nearest(g, scale=scale))


def max_pool1d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Tensor:
    """`max_pool2d` with one spatial dimension: (N, C, L) → (N, C, O).

    >>> import minigrad as mg
    >>> mg.max_pool1d(mg.tensor([[[1.0, 3.0, 2.0, 0.0]]]), 2)
    tensor([[[3., 2.]]])
    """
    return _max_pooling(1, input, kernel_size, stride, padding)


def max_pool2d(
    input: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Tensor:
    """The largest value of each window; the padding counts as −∞, and a NaN is larger than any number.

    `input` (N, C, H, W) or (C, H, W) of a floating dtype → (N, C, OH, OW) or (C, OH, OW), with
    OH = ⌊(H + 2·padding − kernel_size)/stride⌋ + 1; `stride` is the kernel size unless given. Of equal values the first
    one gets the gradient. ValueError for padding of more than half the kernel, for images without pixels, and for
    windows larger than the padded input. Extents: Dumoulin and Visin, arXiv 1603.07285.

    >>> import minigrad as mg
    >>> mg.max_pool2d(mg.tensor([[[[1.0, 3.0, 2.0, 0.0], [5.0, 4.0, 6.0, 8.0]]]]), 2)
    tensor([[[[5., 8.]]]])
    """
    return _max_pooling(2, input, kernel_size, stride, padding)


def avg_pool1d(
    input: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    count_include_pad: bool = True,
) -> Tensor:
    """`avg_pool2d` with one spatial dimension: (N, C, L) → (N, C, O).

    >>> import minigrad as mg
    >>> mg.avg_pool1d(mg.tensor([[[1.0, 3.0, 2.0, 0.0]]]), 2)
    tensor([[[2., 1.]]])
    """
    return _avg_pooling(1, input, kernel_size, stride, padding, count_include_pad)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window; the padding counts as zeros, or, without `count_include_pad`, not at all.

    Shapes, dtypes and errors as in `max_pool2d`; sums are taken in float64.

    >>> import minigrad as mg
    >>> mg.avg_pool2d(mg.tensor([[[[1.0, 3.0, 2.0, 0.0], [5.0, 7.0, 6.0, 8.0]]]]), 2)
    tensor([[[[4., 4.]]]])
    """
    return _avg_pooling(2, input, kernel_size, stride, padding, count_include_pad)


def upsample(input: Tensor, scale_factor: IntOrTuple) -> Tensor:
    """Nearest neighbour: every pixel becomes a block of equal ones.

    `input` (N, C, *S) of a floating dtype → (N, C, *S·scale_factor), the factor an int or one per spatial dimension.
    ValueError unless there are spatial dimensions and every factor is at least 1; TypeError for factors that are not
    ints, and for other dtypes.

    >>> import minigrad as mg
    >>> mg.upsample(mg.tensor([[[1.0, 2.0]]]), 2)
    tensor([[[1., 1., 2., 2.]]])
    """
    n = arguments.tensor("upsample", input).ndim - 2
    _check("upsample", max(n, 1), input)
    return _upsample_nearest(input, scale=extents("upsample", "scale_factor", scale_factor, n, 1))


def _max_pooling(n: int, x: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple) -> Tensor:
    """Any `max_pool…d`, of a batch or of one image."""
    name = f"max_pool{n}d"
    if arguments.tensor(name, x).ndim == n + 1:
        return squeeze(_max_pooling(n, unsqueeze(x, 0), kernel_size, stride, padding), 0)
    values, _ = _max_pool(x, windows=_windows(name, n, x, kernel_size, stride, padding))
    return values


def _avg_pooling(
    n: int, x: Tensor, kernel_size: IntOrTuple, stride: Any, padding: IntOrTuple, count_include_pad: bool
) -> Tensor:
    """Any `avg_pool…d`, of a batch or of one image."""
    name = f"avg_pool{n}d"
    if arguments.tensor(name, x).ndim == n + 1:
        return squeeze(_avg_pooling(n, unsqueeze(x, 0), kernel_size, stride, padding, count_include_pad), 0)
    windows = *_windows(name, n, x, kernel_size, stride, padding), bool(count_include_pad)
    return _avg_pool(x, windows=windows)


def _windows(
    name: str, n: int, x: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple
) -> Windows:
    """Kernel, stride and padding, one int per dimension, checked against x."""
    _check(name, n, x)
    kernel = extents(name, "kernel_size", kernel_size, n, 1)
    steps = kernel if stride is None else extents(name, "stride", stride, n, 1)
    border = extents(name, "padding", padding, n, 0)
    if any(2 * p > k for p, k in zip(border, kernel, strict=True)):
        raise ValueError(f"{name}: expected padding of at most half the kernel {kernel}; got {border}")
    if not all(x.shape[2:]):  # a window would hold padding alone, and no place for its gradient
        raise ValueError(f"{name}: expected an image of at least one pixel; got input of shape {x.shape}")
    if any(s + 2 * p < k for s, p, k in zip(x.shape[2:], border, kernel, strict=True)):
        raise ValueError(
            f"{name}: expected windows no larger than the padded input; got kernel_size {kernel}, padding {border}, "
            f"input of shape {x.shape}"
        )
    return kernel, steps, border


def _check(name: str, n: int, x: Tensor) -> None:
    if x.ndim != n + 2:
        raise ValueError(f"{name}: expected input of {n + 2} dimensions, {n} of them spatial; got shape {x.shape}")
    if x.dtype.kind != "f":
        raise TypeError(f"{name}: expected a floating dtype; got {x.dtype}. Convert with to(mg.float32).")
