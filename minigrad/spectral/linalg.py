"""The spectrum of a layer's weight."""

from __future__ import annotations

from minigrad._tensor import Tensor
from minigrad.device import kernels
from minigrad.nn.module import Module
from minigrad.nn.utils.spectral_norm import raw_weight
from minigrad.ops.spectral import matrix_shape


def singular_values(module: Module, k: int, name: str = "weight") -> Tensor:
    """The k largest singular values of the raw weight's matrix, in decreasing order: shape (k,).

    The matrix is the one that `spectral_norm` takes: the raw weight of a normalized module along its `dim`, that of any
    other module along the default one. Decomposed in float64, returned as float64 or float32; not differentiable.

    ValueError: no such parameter, or k outside 1 … min(m, n).

    >>> import minigrad as mg
    >>> layer = mg.nn.Linear(2, 2)
    >>> with mg.no_grad():
    ...     layer.weight.copy_(mg.tensor([[3.0, 0.0], [0.0, 2.0]])) is layer.weight
    True
    >>> mg.spectral.singular_values(layer, 2)
    tensor([3., 2.])
    """
    weight, dim = raw_weight("singular_values", module, name)
    m, n, dim = matrix_shape("singular_values", weight, dim)
    if not 1 <= k <= min(m, n):
        raise ValueError(f"singular_values: expected k between 1 and {min(m, n)} for a matrix {(m, n)}; got {k}")
    return Tensor(kernels(weight.device).singular_values(weight.data, k, dim), weight.device)
