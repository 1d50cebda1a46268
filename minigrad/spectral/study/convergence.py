"""How the gradient's error falls with the sweeps, and a plain difference's error with its step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.spectral.oracles import ORACLES, sweep as one_sweep, unit
from minigrad.spectral.residuals import first_step
from minigrad.spectral.study.opening import Layer, analytic

#: Sweeps followed at least, and at most: with a gap near 1, or a start nearly orthogonal to u₁, there is no end.
SHORTEST, LONGEST = 8, 600
#: Sweeps that `unrolled` goes through: each is a part of its graph.
DEEP = (1, 2, 3, 4, 6, 8, 11, 14, 18, 24, 32)
#: Where rounding takes over from convergence.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Falling:
    """Relative errors against the exact gradient and σ₁, after k = 1, 2, … sweeps from one random start."""

    layer: str
    gap: float  # ρ = σ₂/σ₁
    sweeps: list[int]
    fixed_uv: list[float]
    sigma: list[float]
    unrolled_sweeps: list[int]
    unrolled: list[float]
    rate: dict[str, float]  # measured factor per sweep, where it has settled
    theory: dict[str, float]  # ρ² for the gradient, ρ⁴ for σ


@dataclass(frozen=True)
class StepCurve:
    """The relative error of (f(h) − f(−h))/2h over h, along one direction."""

    layer: str
    direction: str
    steps: list[float]
    float64: list[float]
    float32: list[float]


def falling(layer: Layer, seed: int) -> Iterator[Falling | None]:
    """Follow one layer from a random start. Yields None between parts; then the result."""
    weight = layer.weight
    spectrum = np.linalg.svd(weight, compute_uv=False)
    rho = float(spectrum[1] / spectrum[0]) if len(spectrum) > 1 else 0.0
    exact = ORACLES["svd"].gradient(layer.upstream, weight, layer.u, layer.v)
    size = float(np.linalg.norm(exact))
    start = unit(np.random.default_rng(seed).standard_normal(weight.shape[1]))
    fixed, sigma = [], []
    v = start
    for _ in range(LONGEST):
        u, v = one_sweep(weight, v)
        fixed.append(float(np.linalg.norm(analytic("fixed_uv", layer, u, v) - exact)) / size)
        sigma.append(abs(float(u @ weight @ v) / float(spectrum[0]) - 1))
        if len(fixed) >= SHORTEST and fixed[-1] < ROUNDING:
            break
    yield None
    counts = list(range(1, len(fixed) + 1))
    deep = [n for n in DEEP if n <= len(counts)]
    unrolled = []
    for n in deep:  # the vector u is not read in the order u then v
        unrolled.append(float(np.linalg.norm(analytic("unrolled", layer, u, start, n) - exact)) / size)
        yield None
    yield Falling(
        layer.name,
        rho,
        counts,
        fixed,
        sigma,
        deep,
        unrolled,
        {"fixed_uv": settled_rate(fixed, 1e-11), "sigma": settled_rate(sigma, 1e-13)},
        {"fixed_uv": rho**2, "sigma": rho**4},
    )


def settled_rate(errors: list[float], rounding: float) -> float:
    """The factor per sweep over the last quarter of the errors that are above rounding; NaN if there are too few."""
    clear = [e for e in errors if e > rounding]
    tail = clear[-max(3, len(clear) // 4) :]
    if len(tail) < 3:
        return math.nan
    return float((tail[-1] / tail[0]) ** (1 / (len(tail) - 1)))


def step_curve(layer: Layer, seed: int) -> StepCurve:
    """The V: truncation h² to the right, rounding ε/h to the left. The truth: the paper's gradient, u and v frozen."""
    rng = np.random.default_rng(seed)
    along = unit(rng.standard_normal(layer.weight.size)).reshape(layer.weight.shape)
    truth = float(np.vdot(analytic("fixed_uv", layer, layer.u, layer.v), along))
    oracle = ORACLES["frozen"]

    def error(h: float, dtype: Any) -> float:
        arrays = layer.weight, layer.u, layer.v, layer.upstream, along
        weight, u, v, upstream, d = (a.astype(dtype) for a in arrays)
        f = [np.vdot(upstream, oracle.normalize(weight + dtype(t) * d, u, v)) for t in (h, -h)]
        return abs(float(f[0] - f[1]) / (2 * h) / truth - 1)

    steps = [float(h) for h in np.logspace(0, -14, 85) * first_step(layer.weight) * 10]
    return StepCurve(
        layer.name,
        "random 1",
        steps,
        [error(h, np.float64) for h in steps],
        [error(h, np.float32) for h in steps],
    )
