"""The gradient conventions that libraries use for a spectrally normalized weight, as one table.

All compute W̄ = W/σ; they differ in what they take for ∂L/∂W, at first and at second order. G = ∂L/∂W̄, A = u vᵀ,
λ = ⟨G, W̄⟩. Source of the default: Miyato et al. 2018, arXiv 1802.05957, (12).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from minigrad._op import primitive
from minigrad._tensor import Tensor
from minigrad.ops._operands import to_dtype
from minigrad.ops.comparison import maximum
from minigrad.ops.linear_map import LinearMap, MatrixMap
from minigrad.ops.reduce import norm, sum
from minigrad.ops.singular import sigma_max
from minigrad.ops.spectral import ORDERS, check, divide


class Point(NamedTuple):
    """Where a convention is evaluated: constants all of them, σ = uᵀMv, M being the map of the weight."""

    u: Tensor
    v: Tensor
    sigma: Tensor
    n_power_iterations: int
    eps: float
    map: LinearMap
    order: str


class Convention(NamedTuple):
    """A row of the table: how W̄ is differentiated, by whom, and which finite differences it must agree with.

    `oracle`: "frozen" (W/uᵀMv with u, v fixed), "svd" (W/σ₁), "live" (the sweeps run again from the same vectors), or
    None if it is the gradient of nothing that W̄ could be.
    """

    name: str
    description: str
    formula: str
    libraries: str
    oracle: Literal["frozen", "svd", "live"] | None
    normalize: Callable[[Tensor, Point], Tensor]


def _fixed_uv(weight: Tensor, at: Point) -> Tensor:
    return at.map.normalize(weight, at.u, at.v, at.sigma)


def _detached(weight: Tensor, at: Point) -> Tensor:
    return divide(weight, at.sigma)


def _straight_through(weight: Tensor, at: Point) -> Tensor:
    return _pretend(weight, divide(weight.detach(), at.sigma))


def _unrolled(weight: Tensor, at: Point) -> Tensor:
    """The sweeps in public ops, from constant vectors; each clamps at its own eps σ, as `power_iteration` does."""
    u, v = at.u, at.v
    there, back = at.map.products(weight)
    for _ in range(at.n_power_iterations):
        floor = at.map.sweep(weight, u.detach(), v.detach(), 1, 0.0, at.order)[2] * at.eps
        if at.order == "uv":
            u = _unit(there(v), floor)
            v = _unit(back(u), floor)
        else:
            v = _unit(back(u), floor)
            u = _unit(there(v), floor)
    return divide(weight, sum(u * there(v)))


def _unit(x: Tensor, floor: Tensor) -> Tensor:
    return divide(x, maximum(norm(x), floor))


def _exact(weight: Tensor, at: Point) -> Tensor:
    if not isinstance(at.map, MatrixMap):
        raise ValueError(
            "gradient='exact': the singular pair of a convolution is not decomposed. Use gradient='fixed_uv', whose "
            "gradient is the same at convergence, or norm='matrix'."
        )
    return divide(weight, sigma_max(weight, at.map.dim))


def _elementwise(weight: Tensor, at: Point) -> Tensor:
    return _misread(weight, at.u, at.v, at.sigma, map=at.map)


# W̄ of two conventions is no function that could be differentiated to their gradient: ops of their own say it.


@primitive()
def _pretend(k: Any, weight: Any, value: Any) -> Any:
    """`value`, with the gradient of `weight`: weight + (value − weight).detach() without its rounding."""
    return value


@primitive()
def _misread(k: Any, weight: Any, u: Any, v: Any, sigma: Any, *, map: LinearMap) -> Any:
    return k.spectral_scale(weight, sigma)


@primitive()
def _once(k: Any, x: Any) -> Any:
    return x


def _misread_vjp(g: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, map: LinearMap) -> Tensor:
    """G ⊙ (1 − A ΣW̄)/σ: the derivative read as if each entry of W̄ depended on its own entry of W alone."""
    total = divide(sum(to_dtype(weight, sigma.dtype)), sigma)
    return _once(divide(g * (1 - map.slope(total, weight, u, v)), sigma))


def _no_double_backward(g: Tensor) -> Tensor:
    raise RuntimeError(
        "gradient='elementwise': its gradient is the derivative of nothing and cannot be differentiated. "
        "Use another convention for double backward, such as 'fixed_uv'."
    )


_pretend.vjp(weight=lambda g: g)
_misread.vjp(weight=_misread_vjp)
_once.vjp(x=_no_double_backward)


CONVENTIONS = {
    row.name: row
    for row in (
        Convention(
            "fixed_uv",
            "through σ with u, v fixed: the paper's",
            "(G − λ u vᵀ)/σ",
            "PyTorch (both APIs), Chainer, PaddlePaddle's hook, Flax, Haiku, Equinox, Keras on JAX, BigGAN-PyTorch",
            "frozen",
            _fixed_uv,
        ),
        Convention("detached", "σ as a constant", "G/σ", "code that computes σ outside the graph", None, _detached),
        Convention(
            "straight_through",
            "normalization passed over",
            "G",
            "AiDotNet",
            None,
            _straight_through,
        ),
        Convention(
            "projected",
            "normalization passed over, and W ← W̄ at every training forward",
            "G",
            "Keras on TensorFlow and on PyTorch, TensorFlow Addons",
            None,
            _straight_through,
        ),
        Convention(
            "unrolled",
            "through the sweeps, from constant vectors",
            "G/σ − λ/σ ∂σ/∂W, through the sweeps",
            "the differentiable helper of the paper's authors, deel-torchlip's functional form",
            "live",
            _unrolled,
        ),
        Convention(
            "exact",
            "σ₁ and its true singular pair, from the SVD",
            "(G − λ u₁v₁ᵀ)/σ₁",
            "none",
            "svd",
            _exact,
        ),
        Convention(
            "elementwise",
            "a known bug: right only where G is constant",
            "G ⊙ (1 − u vᵀ ΣW̄)/σ",
            "PaddlePaddle's SpectralNorm op",
            None,
            _elementwise,
        ),
    )
}


def convention(gradient: str) -> Convention:
    """The row of the table; ValueError for an unknown name."""
    if gradient not in CONVENTIONS:
        raise ValueError(f"gradient: expected one of {', '.join(CONVENTIONS)}; got {gradient!r}")
    return CONVENTIONS[gradient]


def apply(
    gradient: str,
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int = 0,
    order: str = "uv",
    sigma: Tensor | None = None,
) -> Tensor:
    """W̄ at u and v, to be differentiated by the convention named; in the shape and dtype of the weight.

    All but two take W/σ at the u and v given (`sigma`: uᵀMv, where it is known already). "unrolled" makes
    `n_power_iterations` sweeps from there (0 is allowed) with `eps` and `order` as in `power_iteration`; "exact" takes
    σ₁ and the pair of the SVD instead.

    Where σ = 0, W̄ = 0 and its gradient is 0; the gradient of "straight_through" and "projected" is G there too.
    Second order: "fixed_uv" with u, v fixed, "unrolled" through the sweeps, "exact" with the turning pair (the true
    Hessian); "detached" and the straight-through ones are linear in W, so that theirs is 0; "elementwise" raises
    RuntimeError on double backward. Other errors are those of `spectral_normalize`, and ValueError for an unknown name.

    >>> import minigrad as mg
    >>> from minigrad.ops.conventions import CONVENTIONS, apply
    >>> for name in CONVENTIONS:
    ...     w = mg.tensor([[3.0, 1.0], [0.0, 2.0]], dtype=mg.float64, requires_grad=True)
    ...     e = mg.tensor([0.6, 0.8], dtype=mg.float64)
    ...     apply(name, w, e, e).square().sum().backward()
    ...     print(f"{name:16s}", w.grad.numpy().round(3).tolist())
    fixed_uv         [[0.304, -0.339], [-0.587, -0.286]]
    detached         [[0.744, 0.248], [0.0, 0.496]]
    straight_through [[2.113, 0.704], [0.0, 1.408]]
    projected        [[2.113, 0.704], [0.0, 1.408]]
    unrolled         [[-0.051, -0.31], [-0.284, 0.231]]
    exact            [[-0.118, -0.178], [-0.207, 0.266]]
    elementwise      [[0.178, -0.003], [-0.0, -0.175]]
    """
    convention(gradient)
    if order not in ORDERS:
        raise ValueError(f"apply: expected order 'uv' or 'vu'; got {order!r}")
    if not eps >= 0:
        raise ValueError(f"apply: expected eps of at least 0; got {eps}")
    matrix = MatrixMap(check("apply", weight, u, v, dim))
    return normalize(
        gradient, weight, u, v, matrix, n_power_iterations=n_power_iterations, eps=eps, order=order, sigma=sigma
    )


def normalize(
    gradient: str,
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    map: LinearMap,
    *,
    n_power_iterations: int = 0,
    eps: float = 1e-12,
    order: str = "uv",
    sigma: Tensor | None = None,
) -> Tensor:
    """`apply` for any map that the weight makes, without its checks."""
    if sigma is None:
        sigma = map.sigma(weight.detach(), u, v)
    return convention(gradient).normalize(weight, Point(u, v, sigma, n_power_iterations, eps, map, order))
