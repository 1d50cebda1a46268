"""A network opened at one step of its training: the layers in float64, and each convention at each of them.

The upstream gradient G = ∂L/∂W̄ comes from a twin: the same network without normalization, its weights set to W̄. It
owes nothing to the rules under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.ops import conventions as ways
from minigrad.spectral.oracles import ORACLES, Array, sweep, unit
from minigrad.spectral.residuals import (
    Directions,
    Numeric,
    Residual,
    compare,
    differentiate,
    directions,
    first_step,
)

#: The vectors that the oracles and the conventions are given: as the training left them, and one sweep from a random
#: start, far from convergence, where the three oracles differ and the verdict is decided.
STATES = ("stored", "cold")


@dataclass(frozen=True)
class Layer:
    """One normalized layer in float64: the weight as an m×n matrix, the stored vectors, and G."""

    name: str
    shape: tuple[int, ...]
    weight: Array
    u: Array
    v: Array
    upstream: Array
    upstream_from: str
    device: str = "cpu"  # where minigrad's gradients of it are computed; the oracles' are NumPy's


@dataclass(frozen=True)
class Numbers:
    """What a practitioner asks of one layer at one step."""

    sigma_hat: float  # uᵀWv at the stored vectors
    sigma: float  # σ₁, by SVD
    gap: float  # σ₂/σ₁
    lam: float  # λ = ⟨G, W̄⟩, equation (12)
    gradient: float  # ‖∂L/∂W‖
    radial: float  # ⟨∂L/∂W, W⟩: 0, as the loss does not change with the scale of W
    norm: float  # ‖W‖, Frobenius
    spectrum: list[float]


@dataclass(frozen=True)
class Opened:
    """One layer at one step: its numbers and, for both states of the vectors, the residuals."""

    step: int
    layer: str
    shape: tuple[int, ...]
    upstream_from: str
    entrywise: bool
    numbers: Numbers
    residuals: dict[str, list[Residual]]
    #: How far apart the oracles' own derivatives are at the cold vectors, over the scale: what "meets" can tell.
    apart: dict[str, float]


def host(tensor: Any) -> Any:
    """The values of a tensor on any device, as a NumPy array of its own."""
    return np.array(tensor.detach().to("cpu").numpy())


def fill(twin: Any, network: Any, weights: dict[str, Array]) -> None:
    """Give the twin the biases of the network, and these weights (matrices, reshaped to fit)."""
    with mg.no_grad():
        for name, weight in weights.items():
            mine, its = getattr(twin, name), getattr(network, name)
            mine.weight.copy_(mg.tensor(weight.reshape(mine.weight.shape), dtype=mine.weight.dtype))
            mine.bias.copy_(mg.tensor(host(its.bias), dtype=mine.bias.dtype))


def loss(network: Any, x: Any, y: Any) -> Any:
    """The mean cross-entropy of a batch."""
    return mg.nn.functional.cross_entropy(network(x), y)


def open_layers(network: Any, twin: Any, names: Sequence[str], x: Any, y: Any, seed: int) -> list[Layer]:
    """Snapshots of the named layers; `twin`, `x`, `y` are in float64 on the CPU."""
    state = {key: host(value) for key, value in network.state_dict().items()}
    raw, weights = {}, {}
    for name in names:
        prefix = f"{name}.parametrizations.weight"
        original = state[f"{prefix}.original"].astype(np.float64)
        matrix = original.reshape(len(original), -1)
        u, v = (unit(state[f"{prefix}.0.{key}"].astype(np.float64)) for key in ("_u", "_v"))
        raw[name] = (original.shape, matrix, u, v)
        weights[name] = ORACLES["frozen"].normalize(matrix, u, v)
    fill(twin, network, weights)
    twin.zero_grad()
    loss(twin, x, y).backward()
    opened = []
    for name, (shape, matrix, u, v) in raw.items():
        upstream, source = host(getattr(twin, name).weight.grad).reshape(matrix.shape), "loss"
        if not upstream.any():  # nothing reaches this layer: any G tests the node as well
            upstream, source = np.random.default_rng(seed).standard_normal(matrix.shape), "random"
        opened.append(Layer(name, shape, matrix, u, v, upstream, source, getattr(network, name).bias.device))
    return opened


def analytic(convention: str, layer: Layer, u: Array, v: Array, sweeps: int = 1) -> Array:
    """The gradient that minigrad puts on the raw weight under a convention, for L = ⟨G, W̄⟩ with G frozen."""
    given = layer.weight, layer.upstream, u, v
    weight, upstream, *vectors = (mg.tensor(x, device=layer.device) for x in given)
    made = ways.apply(convention, weight.requires_grad_(), *vectors, n_power_iterations=sweeps)
    (gradient,) = mg.grad(made, [weight], upstream)
    return host(gradient)


def numbers(layer: Layer) -> Numbers:
    """σ̂, σ₁, gap, λ, ‖∂L/∂W‖ and ⟨∂L/∂W, W⟩ with the paper's gradient at the stored vectors."""
    spectrum = np.linalg.svd(layer.weight, compute_uv=False)
    sigma_hat = float(layer.u @ layer.weight @ layer.v)
    gradient = analytic("fixed_uv", layer, layer.u, layer.v)
    return Numbers(
        sigma_hat,
        float(spectrum[0]),
        float(spectrum[1] / spectrum[0]) if len(spectrum) > 1 else 0.0,
        float(np.vdot(layer.upstream, layer.weight)) / sigma_hat,
        float(np.linalg.norm(gradient)),
        float(np.vdot(gradient, layer.weight)),
        float(np.linalg.norm(layer.weight)),
        [float(s) for s in spectrum],
    )


def cold(weight: Array, seed: int) -> tuple[Array, Array]:
    """u and v after one sweep from a random start."""
    return sweep(weight, unit(np.random.default_rng(seed).standard_normal(weight.shape[1])))


def measure(
    step: int, layer: Layer, conventions: Sequence[str], random: int, entrywise: bool, seed: int
) -> Iterator[Opened | None]:
    """Every convention against every oracle at one layer. Yields None between parts; then the result."""
    vectors = {"stored": (layer.u, layer.v), "cold": cold(layer.weight, seed)}
    named = {"G": layer.upstream, "W": layer.weight} | {f"u vᵀ ({s})": np.outer(*vectors[s]) for s in STATES}
    along = directions(layer.weight, named, random, entrywise, seed)
    numeric: dict[str, dict[str, Numeric]] = {state: {} for state in STATES}
    for state in STATES:
        for name in ORACLES:
            if name == "svd" and state != STATES[0]:  # knows nothing of u and v
                numeric[state][name] = numeric[STATES[0]][name]
            else:
                numeric[state][name] = _differences(layer, name, vectors[state], along)
                yield None
    residuals = {s: _table(layer, *vectors[s], conventions, numeric[s], along) for s in STATES}
    scale = _scale(layer, *vectors["cold"])
    apart = {
        f"{a} {b}": float(np.abs(numeric["cold"][a].value - numeric["cold"][b].value).max()) / scale
        for a in ORACLES
        for b in ORACLES
        if a < b
    }
    yield Opened(step, layer.name, layer.shape, layer.upstream_from, entrywise, numbers(layer), residuals, apart)


def _differences(layer: Layer, oracle: str, vectors: tuple[Array, Array], along: Directions) -> Numeric:
    def pairing(weight: Array) -> float:
        return float(np.vdot(layer.upstream, ORACLES[oracle].normalize(weight, *vectors)))

    return differentiate(pairing, layer.weight, along, first_step(layer.weight))


def _scale(layer: Layer, u: Array, v: Array) -> float:
    """‖G‖/σ: the size that the gradient has before anything is projected out of it."""
    return float(np.linalg.norm(layer.upstream)) / float(u @ layer.weight @ v)


def _table(
    layer: Layer, u: Array, v: Array, conventions: Sequence[str], numeric: dict[str, Numeric], along: Directions
) -> list[Residual]:
    gradients = {name: analytic(name, layer, u, v) for name in conventions}
    closed = {name: oracle.gradient(layer.upstream, layer.weight, u, v) for name, oracle in ORACLES.items()}
    scale = _scale(layer, u, v)
    return [
        compare(convention, oracle, gradients[convention], closed[oracle], numeric[oracle], along, scale)
        for convention in conventions
        for oracle in ORACLES
    ]
