"""The largest singular value of a weight as an op, and its singular pair, whose own derivative makes Hessians true.

σ₁ is differentiable with gradient A₁ = u₁v₁ᵀ; A₁ moves with W, by du v₁ᵀ + u₁ dvᵀ. That map is the Hessian of σ₁ and
so its own transpose: forward and reverse mode are the same formula.
"""

from __future__ import annotations

from typing import Any

from minigrad._op import primitive
from minigrad._tensor import Tensor
from minigrad.ops._operands import to_dtype
from minigrad.ops.spectral import matrix_shape, vector_dtype


@primitive()
def _sigma_max(k: Any, weight: Any, *, dim: int) -> Any:
    return k.svd(weight, dim)


@primitive()
def _pair(k: Any, weight: Any, left: Any, values: Any, right: Any, *, dim: int) -> Any:
    return k.leading_pair(left, right, weight.shape, dim, weight.dtype)


@primitive()
def _turned(k: Any, d: Any, weight: Any, left: Any, values: Any, right: Any, *, dim: int) -> Any:
    return k.turned_pair(d, left, values, right, dim)


def _no_third_order(g: Tensor) -> Tensor:
    raise RuntimeError(
        "sigma_max: third derivatives of a singular pair are not provided; the first two are. "
        "The convention 'fixed_uv' has derivatives of every order."
    )


_sigma_max.vjp(weight=lambda g, weight, aux, dim: g * _pair(weight, *aux, dim=dim))
_pair.vjp(weight=lambda g, weight, left, values, right, dim: _turned(g, weight, left, values, right, dim=dim))
_turned.vjp(
    d=lambda g, weight, left, values, right, dim: _turned(g, weight, left, values, right, dim=dim),
    weight=_no_third_order,
)


def sigma_max(weight: Tensor, dim: int = 0) -> Tensor:
    """σ₁, the spectral norm of the weight's matrix, by a singular value decomposition in float64; 0-d.

    ∂σ₁/∂W = u₁v₁ᵀ. Second derivatives include how the pair turns,

        du = Σ_{i≥2} (σ₁D̃_{i1} + σ_iD̃_{1i})/(σ₁² − σ_i²) u_i with D̃ = UᵀDV, and dv with the roles exchanged,

    and are not finite where σ₂ = σ₁; third ones raise RuntimeError. At a repeated σ₁ the first derivative is one of
    several, at W = 0 all are 0. Arguments and other errors are those of `spectral_sigma`.
    """
    _, _, dim = matrix_shape("sigma_max", weight, dim)
    return _sigma_max(weight, dim=dim)[0]


def leading_vectors(weight: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """u₁ (m) and v₁ (n) of that decomposition, constants in the dtype of σ; some unit pair where W = 0."""
    _, _, dim = matrix_shape("leading_vectors", weight, dim)
    _, left, _, right = _sigma_max(weight.detach(), dim=dim)
    return to_dtype(left[:, 0], vector_dtype(weight)), to_dtype(right[0], vector_dtype(weight))
