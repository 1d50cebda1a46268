"""Second derivatives through σ₁ itself: what spectral normalization with u and v fixed leaves out of a Hessian.

With the leading singular pair in the place of u and v, the paper's gradient (12) is that of W ↦ ℓ(W/σ₁(W)). Its
Hessian is not: the pair turns with W, and A₁ = u₁v₁ᵀ moves along D by du v₁ᵀ + u₁ dvᵀ. With G = ∂ℓ/∂W̄, λ = ⟨G, W̄⟩,

    ∇²[ℓ(W/σ₁)] D  =  HVP with u, v fixed  −  (λ/σ₁)(du v₁ᵀ + u₁ dvᵀ).

The term belongs to one weight alone: the mixed second derivatives of two weights are right as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from minigrad._mode import enable_grad
from minigrad._tensor import Tensor
from minigrad.autograd import grad
from minigrad.nn._calls import substituted
from minigrad.nn.module import Module
from minigrad.nn.utils.spectral_norm import SpectralParametrization
from minigrad.ops._operands import to_dtype
from minigrad.ops.creation import zeros_like
from minigrad.ops.linear_map import MatrixMap
from minigrad.ops.reduce import sum
from minigrad.ops.singular import leading_vectors, sigma_max
from minigrad.ops.spectral import divide, spectral_normalize


class TrueHvp(NamedTuple):
    """A Hessian-vector product, and the two terms that it is the sum of."""

    product: Tensor
    fixed_uv: Tensor
    turning: Tensor


class ModelHvp(NamedTuple):
    """The same for all parameters of a model, by their names."""

    product: dict[str, Tensor]
    fixed_uv: dict[str, Tensor]
    turning: dict[str, Tensor]


def true_hvp(loss: Callable[[Tensor], Tensor], weight: Tensor, direction: Tensor, dim: int = 0) -> TrueHvp:
    """The Hessian of W ↦ ℓ(W/σ₁(W)) times a direction D: (product, fixed_uv, turning), product being their sum.

    `fixed_uv` is what differentiating (12) again gives with u, v = u₁, v₁ held fixed: with A = u₁v₁ᵀ, d = ⟨A, D⟩,
    W̄′ = (D − dW̄)/σ₁ and H = ∇²ℓ[W̄′],

        (H − ⟨H, W̄⟩A)/σ₁ − [dG + ⟨G, D⟩A − 2dλA]/σ₁².

    `turning` = −(λ/σ₁)(du v₁ᵀ + u₁ dvᵀ) with, for D̃ = UᵀDV and σ_i = 0 in null spaces,

        du = Σ_{i≥2} (σ₁D̃_{i1} + σ_iD̃_{1i})/(σ₁² − σ_i²) u_i,   dv = Σ_{i≥2} (σ₁D̃_{1i} + σ_iD̃_{i1})/(σ₁² − σ_i²) v_i,

    which grows as 1/(σ₁ − σ₂): where σ₁ is repeated there is no second derivative, and the result is not finite. Each
    term is the product with a symmetric matrix. The pair of cW is that of W: along W `turning` is 0, and the product
    −∂ℓ/∂W.

    loss: W̄ ↦ a scalar, differentiable twice. weight: any shape with dimensions, floating; its matrix has the axis `dim`
    as rows, all others as columns. direction: of its shape and dtype. The results are too, and are not differentiable.
    σ₁ and the pair are those of a singular value decomposition in float64. Where W = 0 all terms are 0.

    ValueError: a direction of another shape, a weight without elements. TypeError: dtypes. IndexError: dim.
    RuntimeError: a loss that is no scalar, or requires no grad.

    Source: Miyato et al. 2018, arXiv 1802.05957, (12), differentiated again; du and dv are first-order perturbation
    theory of a simple singular value.

    >>> import minigrad as mg
    >>> w = mg.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=mg.float64)
    >>> d = mg.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=mg.float64)
    >>> for name, term in mg.spectral.true_hvp(lambda w_bar: w_bar.square().sum(), w, d)._asdict().items():
    ...     print(f"{name:8s}", term.numpy().round(4).tolist())
    product  [[0.3743, 0.0961], [0.1441, -0.5183]]
    fixed_uv [[0.0202, 0.4502], [0.4982, -0.1642]]
    turning  [[0.3541, -0.3541], [-0.3541, -0.3541]]
    """
    _check("true_hvp", "the direction", weight, direction)
    weight = weight.detach().requires_grad_()
    with enable_grad():
        w_bar = _normalized(weight, dim)
        (fixed,), (upstream,) = _differentiated(loss(w_bar), [weight], [direction], [w_bar])
    turning = _turning(upstream, w_bar, weight, direction, dim)
    return TrueHvp(fixed + turning, fixed, turning)


def model_hvp(model: Module, loss: Callable[[], Tensor], directions: Mapping[str, Tensor]) -> ModelHvp:
    """The Hessian of a loss in all parameters of a model times a direction, σ₁ of each weight differentiated exactly.

    loss: a callable without arguments that evaluates the model and returns a scalar; it is called once. While it runs,
    every weight under `spectral_norm` reads as γ · factor · W/σ₁(W), with the leading singular pair and not the stored
    u and v, which do not step and stay as they are; whatever the layers' `gradient`. What else the loss does (the
    running averages of a batch norm in training mode, say) it does.

    directions: name in `model.named_parameters()` -> tensor of that parameter's shape and dtype; those left out are 0.
    Returns three dictionaries over the names of all parameters that require grad: `fixed_uv`, the pairs held fixed;
    `turning`, −(λ/σ₁)(du v₁ᵀ + u₁ dvᵀ) at each raw weight and 0 elsewhere; `product`, their sum. See `true_hvp`.

    ValueError: a name that is no such parameter, another shape, a weight normalized by the norm of its operator.
    TypeError: another dtype. RuntimeError: a loss that is no scalar, or requires no grad.

    >>> import minigrad as mg
    >>> model = mg.nn.Sequential(mg.nn.utils.spectral_norm(mg.nn.Linear(3, 4)), mg.nn.Tanh(), mg.nn.Linear(4, 1))
    >>> x, name = mg.randn(5, 3), "0.parametrizations.weight.original"
    >>> raw = dict(model.named_parameters())[name]
    >>> found = mg.spectral.model_hvp(model, lambda: model(x).square().mean(), {name: raw.detach()})
    >>> list(found.product)
    ['0.bias', '0.parametrizations.weight.original', '2.weight', '2.bias']
    >>> found.product["2.bias"].abs().max().item() < 1e-6  # the scale of a normalized weight changes no other gradient
    True
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, direction in directions.items():
        if name not in parameters:
            raise ValueError(
                f"model_hvp: no parameter {name!r} that requires grad; there is {', '.join(parameters) or 'none'}"
            )
        _check("model_hvp", f"the direction of {name!r}", parameters[name], direction)
    along = {name: directions.get(name, zeros_like(p)) for name, p in parameters.items()}
    weights = {
        (module, name): rule
        for module in model.modules()
        for name, rule in module._parametrized().items()
        if isinstance(rule, SpectralParametrization)
    }
    dims = [rule.map.dim for rule in weights.values() if isinstance(rule.map, MatrixMap)]
    if len(dims) < len(weights):
        raise ValueError(
            "model_hvp: expected weights normalized by the norm of their matrix; got one with norm='operator', "
            "whose singular pair has no derivative here"
        )
    with enable_grad():
        bars = [_normalized(rule.original, dim) for rule, dim in zip(weights.values(), dims, strict=True)]
        scaled = [rule._scaled(w_bar) for rule, w_bar in zip(weights.values(), bars, strict=True)]
        with substituted(dict(zip(weights, scaled, strict=True))):
            value = loss()
        trained = [one for one in zip(weights.values(), bars, dims, strict=True) if one[1].requires_grad]
        products, upstreams = _differentiated(
            value, list(parameters.values()), list(along.values()), [w_bar for _, w_bar, _ in trained]
        )
    fixed = dict(zip(parameters, products, strict=True))
    turning = {name: zeros_like(p) for name, p in parameters.items()}
    names = {id(p): name for name, p in parameters.items()}
    for (rule, w_bar, dim), upstream in zip(trained, upstreams, strict=True):
        name = names[id(rule.original)]  # of several, where modules share it
        if name in directions:
            turning[name] = turning[name] + _turning(upstream, w_bar, rule.original, along[name], dim)
    return ModelHvp({name: fixed[name] + turning[name] for name in parameters}, fixed, turning)


def _check(who: str, what: str, weight: Tensor, direction: Tensor) -> None:
    if direction.shape != weight.shape:
        raise ValueError(f"{who}: expected {what} in the shape of the weight, {weight.shape}; got {direction.shape}")
    if direction.dtype != weight.dtype:
        raise TypeError(
            f"{who}: expected {what} in the dtype of the weight, {weight.dtype}; got {direction.dtype}. "
            f"Convert it with to()."
        )


def _normalized(weight: Tensor, dim: int) -> Tensor:
    """W/σ₁, to be differentiated with the leading pair fixed."""
    return spectral_normalize(weight, *leading_vectors(weight, dim), dim)[0]


def _differentiated(
    value: Tensor, inputs: Sequence[Tensor], along: Sequence[Tensor], bars: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The graph's Hessian times `along` for the inputs, and ∂value/∂W̄ for the normalized weights."""
    given = grad(value, [*inputs, *bars], create_graph=True, allow_unused=True)
    first = [(g, d) for g, d in zip(given, along, strict=False) if g is not None and g.requires_grad]
    second: Sequence[Tensor | None] = [None] * len(inputs)
    if first:
        second = grad([g for g, _ in first], inputs, [d for _, d in first], allow_unused=True)
    products, upstreams = (
        [zeros_like(x) if g is None else g.detach() for x, g in zip(xs, gs, strict=True)]
        for xs, gs in ((inputs, second), (bars, given[len(inputs) :]))
    )
    return products, upstreams


def _turning(upstream: Tensor, w_bar: Tensor, weight: Tensor, direction: Tensor, dim: int) -> Tensor:
    """−(λ/σ₁)(du v₁ᵀ + u₁ dvᵀ): the Hessian of σ₁, times what ℓ asks of σ₁."""
    weight = weight.detach().requires_grad_()
    with enable_grad():
        sigma = sigma_max(weight, dim)
        (pair,) = grad(sigma, weight, create_graph=True)
        (turned,) = grad(pair, weight, direction)
    lam = sum(to_dtype(upstream, sigma.dtype) * to_dtype(w_bar.detach(), sigma.dtype))
    return -divide(to_dtype(turned, sigma.dtype) * lam, sigma.detach()).to(weight.dtype)
