"""At converged u and v the first derivative is exact and the second is not: how much of the Hessian is missing.

With u and v fixed, a Hessian-vector product lacks −(λ/σ)(du vᵀ + u dvᵀ), the turning of the pair, which grows without
bound as σ₂ → σ₁. Measured with the loss of the network as a function of one layer's raw weight, at the true pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import minigrad as mg
from minigrad._differences import derivative
from minigrad.ops.conventions import apply
from minigrad.spectral.oracles import ORACLES, Array, unit
from minigrad.spectral.residuals import first_step
from minigrad.spectral.study.end_to_end import Around
from minigrad.spectral.study.opening import Layer, fill, host, loss

#: Random directions along which a Hessian is felt.
DIRECTIONS = 4


@dataclass(frozen=True)
class Second:
    """One layer's Hessian-vector products H D, along random D; norms are Frobenius."""

    step: int
    layer: str
    gap: float  # ρ = σ₂/σ₁
    missing: float  # ‖H D − H_fixed D‖/‖H D‖, the mean over D
    most: float  # and the largest
    residual: float  # of ⟨E, H D⟩ against differences of the gradient, over ‖H D‖, E along what is missing
    error: float  # of that difference, as it estimates it
    identity: float  # ‖H W + ∂L/∂W‖/‖∂L/∂W‖, 0 for every loss
    identity_fixed: float  # the same with u and v fixed


def summary(found: list[Second]) -> str:
    """What is missing, in one sentence."""
    found = [one for one in found if not math.isnan(one.missing)]
    if not found:
        return "no gradient of the loss arrives at these layers"
    lacking = ", ".join(f"{one.missing:.1%} at {one.layer} (ρ = {one.gap:.3f})" for one in found)
    worst = max(one.identity for one in found)
    return f"with u, v fixed H·D lacks {lacking}; H·W = −∂L/∂W to {worst:.0e}"


class _Normalized(mg.nn.Parametrization):
    """W̄ at the true pair, by one convention."""

    def __init__(self, original: mg.nn.Parameter, convention: str, u: Array, v: Array):
        super().__init__(original)
        self.convention = convention
        self.u, self.v = (mg.tensor(x, device=original.device) for x in (u, v))

    def read(self) -> mg.Tensor:
        return apply(self.convention, self.original, self.u, self.v)


def second_order(step: int, layer: Layer, around: Around, seed: int) -> Iterator[Second | None]:
    """The Hessian of the loss in one layer's raw weight. Yields None between parts; then the result."""
    left, spectrum, right = np.linalg.svd(layer.weight, full_matrices=False)
    rng = np.random.default_rng(seed)
    along = [unit(rng.standard_normal(layer.weight.size)).reshape(layer.weight.shape) for _ in range(DIRECTIONS)]
    found = {}
    for convention in ("exact", "fixed_uv"):
        found[convention] = _products(layer, around, convention, left[:, 0], right[0], along)
        yield None
    lacking = [exact - fixed for exact, fixed in zip(found["exact"], found["fixed_uv"], strict=True)]
    missing = [_ratio(d, exact) for d, exact in zip(lacking, found["exact"], strict=True)][:DIRECTIONS]
    product = found["exact"][0]
    towards = unit(lacking[0]) if lacking[0].any() else along[0]
    gradient = _gradient(layer, around)
    numeric = derivative(lambda t: _dot(towards, gradient(layer.weight + t * along[0])), first_step(layer.weight))
    size = float(np.linalg.norm(product)) or math.nan  # 0: nothing of the loss arrives at this layer
    identity = {name: _ratio(of_weight + slope, slope) for name, (*_, of_weight, slope) in found.items()}
    yield Second(
        step=step,
        layer=layer.name,
        gap=float(spectrum[1] / spectrum[0]) if len(spectrum) > 1 else 0.0,
        missing=float(np.mean(missing)),
        most=float(np.max(missing)),
        residual=abs(_dot(towards, product) - numeric.value) / size,
        error=numeric.error / size,
        identity=identity["exact"],
        identity_fixed=identity["fixed_uv"],
    )


def _dot(x: Array, y: Array) -> float:
    return float(np.vdot(x, y))


def _ratio(x: Array, y: Array) -> float:
    return float(np.linalg.norm(x) / np.linalg.norm(y)) if y.any() else math.nan


def _products(layer: Layer, around: Around, convention: str, u: Array, v: Array, along: list[Array]) -> list[Array]:
    """H D for each D, then H W and ∂L/∂W, of the loss through a network whose one layer is normalized."""
    network = around.build()
    fill(network, around.network, around.normalized)
    module = getattr(network, layer.name)
    shape = module.weight.shape
    with mg.no_grad():
        module.weight.copy_(mg.tensor(layer.weight.reshape(shape)))
    network.to(layer.device)
    module.parametrize("weight", _Normalized(module.weight, convention, u, v))
    weight = module.parametrizations.weight.original
    value = loss(network, *(x.to(layer.device) for x in around.batch))
    (gradient,) = mg.grad(value, weight, create_graph=True)
    given = [mg.tensor(d.reshape(shape), device=layer.device) for d in (*along, layer.weight)]
    found = [mg.grad(gradient, weight, d, retain_graph=True)[0] for d in given]
    return [host(x).reshape(layer.weight.shape) for x in (*found, gradient)]


def _gradient(layer: Layer, around: Around) -> Callable[[Array], Array]:
    """W ↦ ∂L/∂W of the loss of W/σ₁(W): from the network without normalization, and the oracle's closed form."""
    twin = around.build()
    fill(twin, around.network, around.normalized)
    parameter = getattr(twin, layer.name).weight
    oracle = ORACLES["svd"]

    def gradient(weight: Array) -> Array:
        with mg.no_grad():
            parameter.copy_(mg.tensor(oracle.normalize(weight, layer.u, layer.v).reshape(parameter.shape)))
        (upstream,) = mg.grad(loss(twin, *around.batch), parameter)
        return oracle.gradient(host(upstream).reshape(weight.shape), weight, layer.u, layer.v)

    return gradient
