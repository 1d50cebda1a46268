"""How steep the trained network is: its Lipschitz constant between bounds, and what σ has to do with it.

(7) bounds it by the product of its layers' norms. For a convolution that is the norm as a map of images; spectral
normalization takes that of the reshaped weight, which is smaller, so that W̄ is no contraction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.spectral.study.opening import host


@dataclass(frozen=True)
class Factor:
    """One call of a layer; norms are those of the weight that is used, W̄."""

    layer: str
    kind: str
    constant: float  # its Lipschitz constant
    how: str
    reshaped: float | None  # σ₁ of the reshaped weight
    ratio: float | None  # the norm of a convolution as a map, over that
    circular: float | None  # the same with the image's borders joined; None where the stride does not divide it


@dataclass(frozen=True)
class Steepness:
    """lower ≤ the network's Lipschitz constant ≤ upper, and what σ₁ of the reshaped weights makes of it."""

    step: int
    lower: float
    upper: float
    reshaped: float  # the product with σ₁ of the reshaped weights in the place of the norms: no bound
    examples: int
    factors: list[Factor]


def steepness(step: int, network: Any, x: Any, done: Callable[[], None]) -> Steepness:
    """The bounds of a network in evaluation mode, in float64; x gives the lower one."""
    network = copy.deepcopy(network).to(mg.float64)
    bounds = mg.spectral.lipschitz_bounds(network, x)
    done()
    factors = [_factor(network, row) for row in bounds.layers]
    done()
    reshaped = math.prod(one.constant if one.reshaped is None else one.reshaped for one in factors)
    return Steepness(step, bounds.lower, bounds.upper, reshaped, len(x), factors)


def _factor(network: Any, row: Any) -> Factor:
    layer = dict(network.named_modules())[row["layer"]]
    reshaped = ratio = circular = None
    if isinstance(layer, mg.nn.Linear | mg.nn.Conv2d):
        weight = host(layer.weight)
        reshaped = float(np.linalg.norm(weight.reshape(len(weight), -1), 2))
    if isinstance(layer, mg.nn.Conv2d):
        ratio = row["constant"] / reshaped
        space = row["shape"][2:]
        if not any(s % t for s, t in zip(space, layer.stride, strict=True)):
            joined, alone = mg.spectral.operator_norm(layer, space, "circular"), mg.spectral.singular_values(layer, 1)
            circular = joined.item() / alone.item()
    return Factor(row["layer"], row["kind"], row["constant"], row["how"], reshaped, ratio, circular)


def summary(found: Steepness) -> str:
    """Between what bounds, in one sentence."""
    text = f"{found.lower:.3g} ≤ Lipschitz constant ≤ {found.upper:.3g}"
    wide = [f"{one.ratio:.2f} at {one.layer}" for one in found.factors if one.ratio is not None]
    return text + (f"; norm of the convolution over σ₁ reshaped: {', '.join(wide)}" if wide else "")
