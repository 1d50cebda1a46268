"""Batch normalization: by the statistics of the batch one op, its two gradients, and theirs; by given ones, two ops.

With ⟨·⟩ the mean over a channel, r = 1/√(var + ε), x̂ = (x − ⟨x⟩) r, and P g = g − ⟨g⟩ − x̂ ⟨g x̂⟩, which is symmetric,
y = w x̂ + b has ∂/∂x = w r P g and ∂/∂w = Σ g x̂. As ∂r/∂x = −r² x̂/n and ∂⟨h x̂⟩/∂x = r P h/n, the derivative of
⟨h, r P g⟩ in x is −r (x̂ ⟨h · r P g⟩ + ⟨g x̂⟩ r P h + ⟨h x̂⟩ r P g).
"""

from __future__ import annotations

from typing import Any

from minigrad import _dtypes
from minigrad._op import primitive
from minigrad._tensor import Tensor
from minigrad.ops.reduce import mean as average, sum, var as variance
from minigrad.ops.shape import reshape
from minigrad.ops.unary import rsqrt


@primitive()
def _batch_norm(k: Any, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    return k.batch_norm(x, weight, bias, eps)


@primitive()
def _sums(k: Any, y: Any, x: Any, mean: Any, var: Any, *, eps: float) -> Any:
    """Σ y and Σ y x̂, (2, C); and beside them the same in float64."""
    return k.batch_norm_sums(y, x, mean, var, eps)


@primitive()
def _project(k: Any, y: Any, x: Any, weight: Any, mean: Any, var: Any, sums: Any, *, eps: float) -> Any:
    """w r P y. `mean` and `var` are those of x, `sums` those of y and x: the rules are whole derivatives."""
    return k.batch_norm_input_grad(y, x, weight, mean, var, sums, eps)


def _input_grad(y: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return _project(y, x, weight, mean, var, _sums(y, x, mean, var, eps=eps)[1], eps=eps)


def _dims(x: Tensor) -> tuple[int, ...]:
    return 0, *range(2, x.ndim)


def _column(t: Tensor, x: Tensor) -> Tensor:
    """(C,) in the place of the channels of x."""
    return reshape(t, -1, *[1] * (x.ndim - 2))


def _standardized(x: Tensor, eps: float) -> Tensor:
    return _batch_norm(x, None, None, eps=eps)[0]


def _curvature(h: Tensor, y: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """The derivative of ⟨h, w r P y⟩ in x."""
    if weight is not None:
        h = h * _column(weight, x)
    hat, dims = _standardized(x, eps), _dims(x)
    along_h, along_y = (_input_grad(t, x, None, mean, var, eps) for t in (h, y))
    r = rsqrt(variance(x, dims, correction=0, keepdim=True) + eps)
    return -r * (
        hat * average(h * along_y, dims, keepdim=True)
        + average(y * hat, dims, keepdim=True) * along_h
        + average(h * hat, dims, keepdim=True) * along_y
    )


def _shared_sums(shared: list[Tensor], g: Tensor, x: Tensor, aux: tuple[Tensor, Tensor], eps: float) -> list[Tensor]:
    """All three gradients need them."""
    if not shared:
        shared += _sums(g, x, *aux, eps=eps)
    return shared


_batch_norm.vjp(
    x=lambda g, x, weight, aux, eps, shared: _project(
        g, x, weight, *aux, _shared_sums(shared, g, x, aux, eps)[1], eps=eps
    ),
    weight=lambda g, x, aux, eps, shared: _shared_sums(shared, g, x, aux, eps)[0][1],
    bias=lambda g, x, aux, eps, shared: _shared_sums(shared, g, x, aux, eps)[0][0],
)
_project.vjp(
    y=lambda g, x, weight, mean, var, eps: _input_grad(g, x, weight, mean, var, eps),
    weight=lambda g, y, x, mean, var, eps: sum(g * _input_grad(y, x, None, mean, var, eps), _dims(x)),
    x=lambda g, y, x, weight, mean, var, eps: _curvature(g, y, x, weight, mean, var, eps),
)
_sums.vjp(
    y=lambda g, x, eps: _column(g[0], x) + _column(g[1], x) * _standardized(x, eps),
    x=lambda g, y, x, mean, var, eps: _input_grad(_column(g[1], x) * y, x, None, mean, var, eps),
)


@primitive()
def _channel_affine(k: Any, x: Any, scale: Any, mean: Any, bias: Any) -> Any:
    return k.channel_affine(x, scale, mean, bias)


@primitive()
def _channel_sums(k: Any, y: Any, x: Any, mean: Any) -> Any:
    """Σ y and Σ y (x − mean), (2, C) in float64: the adjoint of `_channel_affine` in bias and scale."""
    zeros, ones = (k.full(y.shape[1:2], value, _dtypes.float64) for value in (0.0, 1.0))
    return k.batch_norm_sums(y, x, zeros if mean is None else mean, ones, 0.0)[1]


def _affine_sums(shared: list[Tensor], g: Tensor, x: Tensor, mean: Tensor | None) -> Tensor:
    """Three gradients need them."""
    if not shared:
        shared.append(_channel_sums(g, x, mean))
    return shared[0]


_channel_affine.vjp(
    x=lambda g, scale: _channel_affine(g, scale, None, None),
    scale=lambda g, x, mean, shared: _affine_sums(shared, g, x, mean)[1],
    mean=lambda g, x, scale, mean, shared: -scale * _affine_sums(shared, g, x, mean)[0],
    bias=lambda g, x, mean, shared: _affine_sums(shared, g, x, mean)[0],
)
_channel_sums.vjp(
    y=lambda g, x, mean: _channel_affine(x, g[1], mean, g[0]),
    x=lambda g, y: _channel_affine(y, g[1], None, None),
    mean=lambda g, y, x, mean: -g[1] * _channel_sums(y, x, mean)[0],
)


def channel_affine(x: Tensor, scale: Tensor, mean: Tensor, bias: Tensor | None = None) -> Tensor:
    """(x − mean) · scale + bias per channel, for x (N, C, …) and the others (C,) in float64, in one pass over x.

    >>> import minigrad as mg
    >>> scale, mean = (mg.tensor([value], dtype=mg.float64) for value in (10.0, 2.0))
    >>> mg.ops.batch_norm.channel_affine(mg.tensor([[1.0], [3.0]]), scale, mean).tolist()
    [[-10.0], [10.0]]
    """
    return _channel_affine(x, scale, mean, bias)


def standardize(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """(x − mean) / √(var + ε) · weight + bias per channel, for x (N, C, …); with mean and var (C,), in float64.

    mean and var are by-products: not differentiable, but the first result's derivative includes their dependence on x.

    >>> import minigrad as mg
    >>> y, mean, var = mg.ops.batch_norm.standardize(mg.tensor([[1.0], [3.0]]), eps=0.0)
    >>> y.tolist(), mean.item(), var.item()
    ([[-1.0], [1.0]], 2.0, 1.0)
    """
    return _batch_norm(x, weight, bias, eps=eps)
