"""The spectrum of a layer: of its weight's matrix, and of the convolution that it makes."""

from __future__ import annotations

import math

import numpy as np

from minigrad import _dtypes
from minigrad._mode import no_grad
from minigrad._tensor import Tensor
from minigrad.device import kernels
from minigrad.nn.conv import _ConvNd
from minigrad.nn.module import Module
from minigrad.nn.utils.spectral_norm import raw_weight
from minigrad.ops.conv import IntOrTuple
from minigrad.ops.creation import tensor
from minigrad.ops.linear_map import LinearMap, MatrixMap
from minigrad.ops.spectral import matrix_shape, vector_dtype
from minigrad.spectral.krylov import Array, leading_eigenvalues


def singular_values(
    module: Module,
    k: int,
    name: str = "weight",
    *,
    input_shape: IntOrTuple | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    """The k largest singular values of the raw weight's matrix, in decreasing order: shape (k,).

    The matrix is the one that `spectral_norm` takes: the raw weight of a normalized module along its `dim`, that of any
    other module along the default one. Decomposed in float64, returned as float64 or float32; not differentiable.

    With `input_shape`, those of the convolution as a map of images: see `operator_norm` for the two kinds of borders.

    ValueError: no such parameter, k outside 1 … min(m, n); and the errors of `operator_norm`.

    >>> import minigrad as mg
    >>> layer = mg.nn.Linear(2, 2)
    >>> with mg.no_grad():
    ...     layer.weight.copy_(mg.tensor([[3.0, 0.0], [0.0, 2.0]])) is layer.weight
    True
    >>> mg.spectral.singular_values(layer, 2)
    tensor([3., 2.])
    """
    who = "singular_values"
    if input_shape is not None:
        return _of_convolution(who, module, k, name, input_shape, padding_mode)
    if padding_mode != "zeros":
        raise ValueError(f"{who}: padding_mode={padding_mode!r} needs an input_shape; the matrix has no borders")
    weight, dim = raw_weight(who, module, name)
    m, n, dim = matrix_shape(who, weight, dim)
    _check_count(who, k, m, n)
    return Tensor(kernels(weight.device).singular_values(weight.data, k, dim), weight.device)


def operator_norm(conv: Module, input_shape: IntOrTuple, padding_mode: str = "zeros") -> Tensor:
    """The norm of a convolution as a linear map of images, max ‖conv(x)‖/‖x‖ (6): its largest singular value; 0-d.

    It is not that of the reshaped filters, but up to √(kernel's area) times it. `conv`: a convolutional or transposed
    layer, normalized or not (its raw weight is taken, its bias left out). `input_shape`: the extents in space of its
    input, an int or one per dimension.

    `padding_mode="zeros"`: the layer as it is, with its stride, padding, dilation and groups, by Lanczos iteration
    through it and its transpose. "circular": as if the image's borders were joined (the padding does not matter then),
    exactly, frequency by frequency (Sedghi, Gupta, Long 2019, arXiv 1805.10408); with a stride, which must divide the
    extents, the s-fold aliases together. In float64, returned as float64 or float32; not differentiable: for σ with a
    gradient, register `spectral_norm(conv, norm="operator", input_shape=…)`.

    ValueError: no convolution, an input that the filters do not fit into, a stride that does not divide it, an unknown
    padding_mode.

    >>> import minigrad as mg
    >>> conv = mg.nn.Conv2d(1, 1, 3, padding=1, bias=False)
    >>> with mg.no_grad():
    ...     _ = mg.nn.init.ones_(conv.weight)
    >>> one = mg.spectral.singular_values(conv, 1).item()
    >>> circular = mg.spectral.operator_norm(conv, 16, padding_mode="circular").item()
    >>> print(f"{one:.4f} {mg.spectral.operator_norm(conv, 16).item():.4f} {circular:.4f}")
    3.0000 8.7968 9.0000
    """
    value = _of_convolution("operator_norm", conv, 1, "weight", input_shape, padding_mode)
    with no_grad():
        return value[0]


def _of_convolution(
    who: str, conv: Module, k: int, name: str, input_shape: IntOrTuple, padding_mode: str
) -> Tensor:
    if not isinstance(conv, _ConvNd) or name != "weight":
        raise ValueError(f"{who}: expected a convolutional layer; got {name!r} of {type(conv).__name__}")
    weight, _ = raw_weight(who, conv, name)
    matrix_shape(who, weight, 0)
    found = conv.linear_map(input_shape)
    if padding_mode == "zeros":
        u, v = found.shapes(weight)
        _check_count(who, k, math.prod(u), math.prod(v))
        return tensor(leading_singular_values(found, weight, k), dtype=vector_dtype(weight), device=weight.device)
    if padding_mode != "circular":
        raise ValueError(f"{who}: expected padding_mode 'zeros' or 'circular'; got {padding_mode!r}")
    stride, dilation, groups = found.layout.stride, found.layout.dilation, found.layout.groups
    space = tuple(n - t for n, t in zip(found.narrow if conv.transposed else found.wide, found.tail, strict=True))
    wide = tuple(s * t for s, t in zip(space, stride, strict=True)) if conv.transposed else space
    if any(s % t for s, t in zip(wide, stride, strict=True)):
        raise ValueError(
            f"{who}: with padding_mode='circular' the stride must divide the input; got {space} with stride {stride}"
        )
    frequencies = math.prod(wide) // math.prod(stride)
    _check_count(who, k, weight.shape[0] * frequencies, weight.shape[1] * groups * math.prod(wide))
    values = kernels(weight.device).circular_singular_values(weight.data, k, wide, stride, dilation, groups)
    return Tensor(values, weight.device)


def _check_count(who: str, k: int, m: int, n: int) -> None:
    if not 1 <= k <= min(m, n):
        raise ValueError(f"{who}: expected k between 1 and {min(m, n)} for a matrix {(m, n)}; got {k}")


def leading_singular_values(map: LinearMap, weight: Tensor, k: int) -> Array:
    """The k largest singular values of the map that a weight makes, in float64; NaN if the weight is not finite."""
    weight = weight.detach()
    if isinstance(map, MatrixMap):
        values = kernels(weight.device).singular_values(weight.to(_dtypes.float64).data, k, map.dim)
        return np.array(Tensor(values, weight.device).to("cpu").numpy())
    scale = weight.abs().max().item()
    if not 0 < scale < math.inf:
        return np.full(k, 0.0 if scale == 0 else np.nan)
    there, back = map.products(weight.to(_dtypes.float64) / scale)
    _, shape = map.shapes(weight)

    def gram(x: Array) -> Array:
        images = tensor(np.ascontiguousarray(x.T).reshape(-1, *shape), device=weight.device)
        return back(there(images)).to("cpu").numpy().reshape(x.shape[1], -1).T

    return scale * np.sqrt(leading_eigenvalues(gram, math.prod(shape), k))
