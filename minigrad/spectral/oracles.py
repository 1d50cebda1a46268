"""What a gradient of spectral normalization is held against: three functions W ↦ W̄ in plain NumPy, float64.

They share no code with the ops they judge. Each also has its gradient in closed form: finite differences check that
form along directions, and the form then serves where a whole gradient is wanted (its angle, its relative error).

Notation: W is an m×n matrix, u and v unit vectors, A = u vᵀ, ⟨·,·⟩ the Frobenius product. For any scalar σ(W) the
gradient of ⟨G, W/σ⟩ is (G − ⟨G, W/σ⟩ ∂σ/∂W)/σ: the paper's equation (12), and the oracles differ in ∂σ/∂W alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Oracle:
    """One meaning of "the spectrally normalized weight", as a function of the raw weight."""

    name: str
    letter: str
    formula: str
    sigma: Callable[[Array, Array, Array, int], float]
    slope: Callable[[Array, Array, Array, int], Array]

    def normalize(self, weight: Array, u: Array, v: Array, sweeps: int = 1) -> Array:
        """W̄ = W/σ, equation (8)."""
        return weight / self.sigma(weight, u, v, sweeps)

    def gradient(self, upstream: Array, weight: Array, u: Array, v: Array, sweeps: int = 1) -> Array:
        """(G − ⟨G, W̄⟩ ∂σ/∂W)/σ, equation (12)."""
        sigma = self.sigma(weight, u, v, sweeps)
        return (upstream - np.vdot(upstream, weight) / sigma * self.slope(weight, u, v, sweeps)) / sigma


def unit(x: Array) -> Array:
    """x/‖x‖."""
    return x / np.linalg.norm(x)


def sweep(weight: Array, v: Array) -> tuple[Array, Array]:
    """One power iteration, equations (20–21) in the order u then v: u = Wv/‖Wv‖, v = Wᵀu/‖Wᵀu‖."""
    u = unit(weight @ v)
    return u, unit(weight.T @ u)


def _frozen_sigma(weight: Array, u: Array, v: Array, sweeps: int) -> float:
    return float(u @ weight @ v)


def _frozen_slope(weight: Array, u: Array, v: Array, sweeps: int) -> Array:
    return np.outer(u, v)


def _svd_sigma(weight: Array, u: Array, v: Array, sweeps: int) -> float:
    return float(np.linalg.svd(weight, compute_uv=False)[0])


def _svd_slope(weight: Array, u: Array, v: Array, sweeps: int) -> Array:
    left, _, right = np.linalg.svd(weight, full_matrices=False)
    return np.outer(left[:, 0], right[0])


def _live_sigma(weight: Array, u: Array, v: Array, sweeps: int) -> float:
    for _ in range(sweeps):
        u, v = sweep(weight, v)
    return float(u @ weight @ v)


def _live_slope(weight: Array, u: Array, v: Array, sweeps: int) -> Array:
    """∂σ/∂W through the sweeps, the first v constant: the chain rule by hand, from the last sweep to the first."""
    starts = []
    for _ in range(sweeps):
        starts.append(v)
        u, v = sweep(weight, v)
    slope = np.outer(u, v)
    to_u, to_v = weight @ v, weight.T @ u
    for start in reversed(starts):
        raw_u = weight @ start
        u = unit(raw_u)
        raw_v = weight.T @ u
        v = unit(raw_v)
        to_raw_v = (to_v - v * (v @ to_v)) / np.linalg.norm(raw_v)
        to_u = to_u + weight @ to_raw_v
        to_raw_u = (to_u - u * (u @ to_u)) / np.linalg.norm(raw_u)
        slope += np.outer(u, to_raw_v) + np.outer(to_raw_u, start)
        to_u, to_v = np.zeros_like(u), weight.T @ to_raw_u
    return slope


ORACLES = {
    oracle.name: oracle
    for oracle in (
        Oracle("frozen", "a", "W/(uᵀWv), u and v frozen", _frozen_sigma, _frozen_slope),
        Oracle("svd", "b", "W/σ₁(W), by SVD", _svd_sigma, _svd_slope),
        Oracle("live", "c", "W/σ̂(W), the sweeps re-run", _live_sigma, _live_slope),
    )
}
