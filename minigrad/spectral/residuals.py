"""Analytic gradients against finite differences, direction by direction, and what "meets" means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from minigrad._differences import Difference, derivative
from minigrad.spectral.oracles import Array

#: A convention meets an oracle if along every direction |analytic − numeric| ≤ max(FLOOR · scale, FACTOR · estimate),
#: where scale = ‖G‖/σ is the size a gradient has, the directions are of unit norm, and the estimate is that of the
#: difference's own error.
FLOOR, FACTOR = 1e-9, 10.0


@dataclass(frozen=True)
class Directions:
    """Unit directions in the space of the weight, one row each, and what they are called."""

    names: list[str]
    rows: Array


@dataclass(frozen=True)
class Numeric:
    """Derivatives along directions by central differences, and their estimated errors."""

    value: Array
    error: Array


@dataclass(frozen=True)
class Residual:
    """How far the gradient of one convention is from one oracle."""

    convention: str
    oracle: str
    residual: float  # largest |analytic − numeric|/scale
    error: float  # the difference's own estimated error there, over the scale
    direction: str  # where that is
    directions: int
    relative: float  # ‖analytic − oracle's‖/‖oracle's‖ of the whole gradient
    angle: float  # in degrees, between the whole gradients
    whole_error: float  # the error of that whole gradient, relative, as the differences show it
    meets: bool


def directions(weight: Array, named: Mapping[str, Array], random: int, entrywise: bool, seed: int) -> Directions:
    """`random` Gaussian directions, the named ones, and with `entrywise` every single entry of the weight."""
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal(weight.size) for _ in range(random)] + [d.ravel() for d in named.values()]
    names = [f"random {i + 1}" for i in range(random)] + list(named)
    kept = [(name, row / np.linalg.norm(row)) for name, row in zip(names, rows, strict=True) if np.linalg.norm(row)]
    if entrywise:
        kept += [
            (f"entry {i},{j}", row) for (i, j), row in zip(np.ndindex(*weight.shape), np.eye(weight.size), strict=True)
        ]
    return Directions([name for name, _ in kept], np.stack([row for _, row in kept]))


def differentiate(f: Callable[[Array], float], weight: Array, along: Directions, step: float) -> Numeric:
    """The derivatives of f at the weight along each direction."""

    def along_one(direction: Array) -> Difference:
        return derivative(lambda t: f(weight + t * direction), step)

    found = [along_one(row.reshape(weight.shape)) for row in along.rows]
    return Numeric(np.array([d.value for d in found]), np.array([d.error for d in found]))


def first_step(weight: Array) -> float:
    """The step that differences begin with: small beside σ₁, and beside the gap that keeps σ₁ smooth."""
    sigma = np.append(np.linalg.svd(weight, compute_uv=False), 0.0)
    return float(max(min(0.1 * sigma[0], 0.5 * (sigma[0] - sigma[1])), 1e-6 * sigma[0]))


def angle(x: Array, y: Array) -> float:
    """The angle between two gradients in degrees, accurate also when tiny; NaN if one is 0."""
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if not all(lengths):
        return math.nan
    apart = np.linalg.norm(x / lengths[0] - y / lengths[1]) / 2
    return math.degrees(2 * math.asin(min(1.0, float(apart))))


def compare(
    convention: str,
    oracle: str,
    analytic: Array,
    closed: Array,
    numeric: Numeric,
    along: Directions,
    scale: float,
    floor: float = FLOOR,
) -> Residual:
    """One cell of the table: `closed` is the oracle's own gradient, which the same differences check.

    `floor`: FLOOR, or more where the analytic gradient was not computed in float64.
    """
    gap = np.abs(along.rows @ analytic.ravel() - numeric.value)
    worst = int(np.argmax(np.where(np.isfinite(gap), gap, np.inf)))
    entries = [i for i, name in enumerate(along.names) if name.startswith("entry")]
    size = float(np.linalg.norm(closed)) or math.nan
    if entries:
        whole = numeric.value[entries].reshape(analytic.shape)
        whole_error = float(np.linalg.norm(numeric.error[entries])) / size
    else:
        whole = closed
        off = np.abs(along.rows @ closed.ravel() - numeric.value)
        whole_error = float(max(off.max(), numeric.error.max())) / size
    return Residual(
        convention,
        oracle,
        float(gap[worst]) / scale,
        float(numeric.error[worst]) / scale,
        along.names[worst],
        len(along.names),
        float(np.linalg.norm(analytic - whole)) / size,
        angle(analytic, whole),
        whole_error,
        bool(np.all(gap <= np.maximum(floor * scale, FACTOR * numeric.error))),
    )
