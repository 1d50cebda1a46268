"""Spectral normalization as ops: σ, W/σ and the derivatives of both, of any order, with u and v fixed.

Notation and numbers in (brackets) are those of Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for
Generative Adversarial Networks", ICLR 2018, arXiv 1802.05957. W is seen as its matrix M (m, n): the axis `dim` as rows,
all others as columns. u (m) and v (n) are constants, A = u vᵀ in the layout of W, σ = uᵀMv = ⟨A, W⟩, W̄ = W/σ.

Where σ = 0 (a zero weight, say) there is nothing to normalize: W̄ and all its derivatives are 0, never NaN.
"""

from __future__ import annotations

from typing import Any

from minigrad import _dtypes
from minigrad._op import primitive
from minigrad._tensor import Tensor
from minigrad.ops import _arguments as arguments
from minigrad.ops._operands import to_dtype
from minigrad.ops.comparison import eq, where
from minigrad.ops.inplace import copy_
from minigrad.ops.reduce import sum
from minigrad.ops.unary import reciprocal

ORDERS = ("uv", "vu")


# σ and u vᵀ: each is the other's derivative ---------------------------------------------------------------------------


@primitive()
def _sigma(k: Any, weight: Any, u: Any, v: Any, *, dim: int, dtype: Any) -> Any:
    return k.spectral_sigma(weight, u, v, dim)


@primitive()
def _rank_one(k: Any, c: Any, u: Any, v: Any, *, shape: tuple[int, ...], dim: int, dtype: Any) -> Any:
    return k.rank_one(c, u, v, shape, dim, dtype)


_sigma.vjp(
    weight=lambda g, weight_shape, u, v, dim, dtype: _rank_one(g, u, v, shape=weight_shape, dim=dim, dtype=dtype)
)
_rank_one.vjp(c=lambda g, u, v, dim, dtype: _sigma(g, u, v, dim=dim, dtype=dtype))


def rank_one(c: Tensor, weight: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """c u vᵀ in the layout and dtype of W, for a 0-d c in the dtype of u."""
    return _rank_one(c, u, v, shape=weight.shape, dim=dim, dtype=weight.dtype)


# W̄ and its pullback: the derivative of W ↦ W/σ(W) is one fused op, and so closed under differentiation ----------------


@primitive()
def _normalize(k: Any, weight: Any, u: Any, v: Any, sigma: Any, *, dim: int) -> Any:
    return k.spectral_scale(weight, sigma)


@primitive()
def _pullback(k: Any, upstream: Any, weight: Any, u: Any, v: Any, sigma: Any, *, dim: int) -> Any:
    return k.spectral_pullback(upstream, weight, u, v, sigma, dim)


_normalize.vjp(weight=lambda g, weight, u, v, sigma, dim: _pullback(g, weight, u, v, sigma, dim=dim))
_pullback.vjp(
    upstream=lambda g, weight, u, v, dim: _pushforward(g, weight, u, v, dim),
    weight=lambda g, upstream, weight, u, v, dim: _curvature(g, upstream, weight, u, v, dim),
)


def _pushforward(d: Tensor, weight: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """How W̄ moves as W moves along D: W̄′ = (D − ⟨A, D⟩ W̄)/σ (10)."""
    w_bar, sigma = spectral_normalize(weight, u, v, dim)
    return divide(d - spectral_sigma(d, u, v, dim) * w_bar, sigma)


def _curvature(d: Tensor, upstream: Tensor, weight: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """How the pullback of G moves as W moves along D: −[⟨A, D⟩ G + (⟨G, D⟩ − 2 ⟨A, D⟩⟨G, W̄⟩) A]/σ²."""
    w_bar, sigma = spectral_normalize(weight, u, v, dim)
    slope = divide(spectral_sigma(d, u, v, dim), sigma)
    g = to_dtype(upstream, sigma.dtype)
    along_a = divide(sum(g * to_dtype(d, g.dtype)), sigma) - 2 * slope * sum(g * to_dtype(w_bar, g.dtype))
    return -divide(slope * upstream + rank_one(along_a, weight, u, v, dim), sigma)


def divide(x: Tensor, sigma: Tensor) -> Tensor:
    """x/σ for a 0-d σ of at least the precision of x, rounded once; 0, with all derivatives, where σ = 0."""
    zero = eq(sigma, 0)
    inverse = where(zero, 0.0, reciprocal(where(zero, 1.0, sigma)))
    return to_dtype(to_dtype(x, sigma.dtype) * inverse, x.dtype)


# Public ---------------------------------------------------------------------------------------------------------------


def vector_dtype(weight: Tensor) -> Any:
    """The dtype of u, v and σ: that of the weight, and float32 for float16."""
    return _dtypes.float64 if weight.dtype == _dtypes.float64 else _dtypes.float32


def matrix_shape(name: str, weight: Tensor, dim: int) -> tuple[int, int, int]:
    """m, n and the non-negative `dim`.

    TypeError for a weight without floats, IndexError for a `dim` that it does not have, ValueError for one without
    dimensions or with an axis of extent 0.
    """
    if arguments.tensor(name, weight).dtype.kind != "f":
        raise TypeError(f"{name}: expected a floating weight; got {weight.dtype}. Convert it with to(mg.float32).")
    if not weight.ndim or not weight.numel():
        raise ValueError(f"{name}: expected a weight with dimensions, none of extent 0; got shape {weight.shape}")
    dim = arguments.dim(name, weight, dim)
    return weight.shape[dim], weight.numel() // weight.shape[dim], dim


def check(name: str, weight: Tensor, u: Tensor, v: Tensor, dim: int) -> int:
    """Errors for what does not fit together; else the non-negative `dim`."""
    if _fits(weight, u, v, dim):
        return dim
    m, n, dim = matrix_shape(name, weight, dim)
    wanted = vector_dtype(weight)
    for x, letter, extent in ((u, "u", m), (v, "v", n)):
        if arguments.tensor(name, x).shape != (extent,):
            raise ValueError(
                f"{name}: expected {letter} of shape ({extent},) for a weight of shape {weight.shape} with dim={dim}; "
                f"got {x.shape}"
            )
        if x.dtype != wanted:
            raise TypeError(
                f"{name}: expected {letter} of dtype {wanted} for a weight of dtype {weight.dtype}; got {x.dtype}. "
                f"Convert it with to()."
            )
        if x.requires_grad:
            raise RuntimeError(
                f"{name}: {letter} is a constant of spectral normalization and may not require grad. "
                f"Pass {letter}.detach(), or use the convention 'unrolled' to differentiate through the sweeps."
            )
    return dim


def _fits(weight: Any, u: Any, v: Any, dim: int) -> bool:
    """Nothing is wrong, at a glance; False where a closer look is needed."""
    if not (isinstance(weight, Tensor) and isinstance(u, Tensor) and isinstance(v, Tensor)):
        return False
    w, dtype = weight.data, u.data.dtype
    return bool(
        0 <= dim < len(w.shape)
        and w.size
        and u.data.shape == w.shape[dim : dim + 1]
        and v.data.shape == (w.size // w.shape[dim],)
        and (w.dtype == dtype == v.data.dtype)
        and (dtype == _dtypes.float32 or dtype == _dtypes.float64)
        and not (u._requires_grad or v._requires_grad)
    )


def spectral_sigma(weight: Tensor, u: Tensor, v: Tensor, dim: int = 0) -> Tensor:
    """σ = uᵀMv, the estimate of the spectral norm (6) by the power-iteration vectors; ∂σ/∂W = u vᵀ.

    weight: any shape with dimensions, floating; M has its axis `dim` as rows, all others as columns. u (m), v (n):
    constants, float64 for a float64 weight, else float32. Returns a 0-d tensor in the dtype of u. It is linear in the
    weight and need be neither positive nor converged.

    ValueError: u or v of another shape, a weight without elements. TypeError: dtypes. IndexError: dim. RuntimeError: u
    or v requires grad.

    >>> import minigrad as mg
    >>> w = mg.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> mg.nn.functional.spectral_sigma(w, mg.tensor([1.0, 0.0]), mg.tensor([1.0, 0.0]))
    tensor(3.)
    """
    dim = check("spectral_sigma", weight, u, v, dim)
    return _sigma(weight, u, v, dim=dim, dtype=weight.dtype)


def spectral_normalize(weight: Tensor, u: Tensor, v: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """(W̄, σ): W̄ = W/σ (8) with σ = uᵀMv, u and v being constants.

    With G = ∂L/∂W̄ and λ = ⟨G, W̄⟩ the gradient is ∂L/∂W = (G − λ u vᵀ)/σ (12). It is exact for these u and v, converged
    or not, and so are all derivatives of it. W̄ has the shape and dtype of the weight, σ is as in `spectral_sigma`, and
    so are the arguments and errors. Where σ = 0, W̄ = 0 and its derivatives are 0.

    >>> import minigrad as mg
    >>> w = mg.tensor([[4.0, 0.0], [0.0, 2.0]], requires_grad=True)
    >>> w_bar, sigma = mg.nn.functional.spectral_normalize(w, mg.tensor([1.0, 0.0]), mg.tensor([1.0, 0.0]))
    >>> w_bar.tolist(), sigma.item()
    ([[1.0, 0.0], [0.0, 0.5]], 4.0)
    >>> w_bar.sum().backward()
    >>> w.grad.tolist()
    [[-0.125, 0.25], [0.25, 0.25]]
    """
    sigma = spectral_sigma(weight, u, v, dim)
    return normalize_at(weight, u, v, sigma, dim), sigma


def normalize_at(weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, dim: int) -> Tensor:
    """W̄ for a σ that is known to be uᵀMv: a sweep gives it for nothing."""
    return _normalize(weight, u, v, sigma.detach(), dim=arguments.dim("spectral_normalize", weight, dim))


def sweep(
    weight: Tensor, u: Tensor, v: Tensor, n_power_iterations: int, eps: float, dim: int, order: str
) -> tuple[Tensor, Tensor, Tensor]:
    """New u and v after some power iterations and σ at them, all constants; changes nothing."""
    dim = check("power_iteration", weight, u, v, dim)
    if n_power_iterations < 1:
        raise ValueError(f"power_iteration: expected n_power_iterations of at least 1; got {n_power_iterations}")
    if not eps >= 0:
        raise ValueError(f"power_iteration: expected eps of at least 0; got {eps}")
    if order not in ORDERS:
        raise ValueError(f"power_iteration: expected order 'uv' or 'vu'; got {order!r}")
    return _sweep(weight.detach(), u, v, n=n_power_iterations, eps=eps, dim=dim, order=order)


@primitive()
def _sweep(k: Any, weight: Any, u: Any, v: Any, *, n: int, eps: float, dim: int, order: str) -> Any:
    return k.power_iteration(weight, u, v, n, eps, dim, order)


def power_iteration(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int = 0,
    order: str = "uv",
) -> Tensor:
    """Step u and v in place by some power iterations, and return σ = uᵀMv at them as a 0-d tensor (Algorithm 1).

    order "uv": u ← Mv/‖Mv‖ (20, 21), v ← Mᵀu/‖Mᵀu‖ (18, 19), and M is read once. "vu", the paper's: v first; M is read
    twice. Norms are clamped at `eps` in the problem scaled to σ = 1, so that W and cW give the same vectors. Where Mv
    (or Mᵀu) is 0, or not finite, there is no direction to turn to: the vectors stay, and σ is 0 (or not finite). From
    vectors orthogonal to the leading pair it converges to σ₂ and stays there; of a repeated σ₁ it picks one pair.

    The weight may require grad; the step is outside of any graph. A graph that had saved u or v is told by their
    version. The other arguments are those of `spectral_sigma`.

    ValueError: n_power_iterations below 1, eps below 0, another order, shapes. TypeError: dtypes. IndexError: dim.
    RuntimeError: u or v requires grad.

    >>> import minigrad as mg
    >>> u, v = mg.tensor([0.6, 0.8]), mg.tensor([0.6, 0.8])
    >>> sigma = mg.spectral.power_iteration(mg.tensor([[3.0, 0.0], [0.0, 1.0]]), u, v, n_power_iterations=10)
    >>> round(sigma.item(), 4), [round(x, 4) for x in u.tolist()]
    (3.0, [1.0, 0.0])
    """
    new_u, new_v, sigma = sweep(weight, u, v, n_power_iterations, eps, dim, order)
    copy_(u, new_u)
    copy_(v, new_v)
    return sigma
