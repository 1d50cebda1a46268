"""The gradients end to end: the module's own training forward inside the network, against differences of the loss.

One layer at a time carries spectral normalization, the others keep the W̄ that they have at this step. The training
forward sweeps once and then normalizes: so oracle (a) is frozen at the vectors after that sweep, and oracle (c) runs it
live from the vectors before. Here G changes along with W, the network's own curvature takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad.nn.utils import spectral_norm
from minigrad.spectral.oracles import ORACLES, Array, sweep
from minigrad.spectral.residuals import Residual, compare, differentiate, directions, first_step
from minigrad.spectral.study.opening import Layer, cold, fill, host, loss


@dataclass(frozen=True)
class Through:
    """The residuals of one layer's conventions through the whole network."""

    step: int
    layer: str
    residuals: list[Residual]


class Around(NamedTuple):
    """What the layer stands in."""

    build: Callable[[], Any]  # makes the network without normalization, in float64 on the CPU
    network: Any  # the trained one, for its biases
    normalized: dict[str, Array]  # the W̄ of every layer
    batch: tuple[Any, Any]  # x and y, on the CPU


def through(
    step: int, layer: Layer, around: Around, conventions: Sequence[str], random: int, seed: int
) -> Iterator[Through | None]:
    """Every convention against every oracle through the network. Yields None between parts; then the result."""
    before = cold(layer.weight, seed)
    after = sweep(layer.weight, before[1])
    points = {"frozen": after, "svd": after, "live": before}
    twin = around.build()
    fill(twin, around.network, around.normalized)
    parameter = getattr(twin, layer.name).weight

    def value(weight: Array, oracle: str) -> float:
        made = ORACLES[oracle].normalize(weight, *points[oracle])
        with mg.no_grad():
            parameter.copy_(mg.tensor(made.reshape(parameter.shape)))
            return float(loss(twin, *around.batch).item())

    def upstream(oracle: str) -> Array:
        value(layer.weight, oracle)
        twin.zero_grad()
        loss(twin, *around.batch).backward()
        return host(parameter.grad).reshape(layer.weight.shape)

    arriving = {name: upstream(name) for name in ORACLES}
    named = {"G": arriving["frozen"], "W": layer.weight, "u vᵀ": np.outer(*after)}
    along = directions(layer.weight, named, random, False, seed)
    numeric = {}
    for name in ORACLES:
        numeric[name] = differentiate(partial(value, oracle=name), layer.weight, along, first_step(layer.weight))
        yield None
    closed = {name: o.gradient(arriving[name], layer.weight, *points[name]) for name, o in ORACLES.items()}
    scale = float(np.linalg.norm(arriving["frozen"])) / float(after[0] @ layer.weight @ after[1]) or 1.0
    residuals = []
    for convention in conventions:
        fill(twin, around.network, around.normalized)
        gradient = _module_gradient(around.build(), twin, layer, before, convention, around.batch)
        residuals += [compare(convention, o, gradient, closed[o], numeric[o], along, scale) for o in ORACLES]
    yield Through(step, layer.name, residuals)


def _module_gradient(
    network: Any, twin: Any, layer: Layer, vectors: tuple[Array, Array], convention: str, batch: tuple[Any, Any]
) -> Array:
    """∂L/∂W of the raw weight, from `spectral_norm` on the one layer of a network otherwise equal to the twin."""
    network.load_state_dict(twin.state_dict())
    module = getattr(network, layer.name)
    with mg.no_grad():
        module.weight.copy_(mg.tensor(layer.weight.reshape(module.weight.shape)))
    spectral_norm(module, gradient=convention)
    state = network.state_dict()
    prefix = f"{layer.name}.parametrizations.weight"
    state |= {f"{prefix}.0._u": mg.tensor(vectors[0]), f"{prefix}.0._v": mg.tensor(vectors[1])}
    network.load_state_dict(state)
    network.to(layer.device).train()
    loss(network, *(x.to(layer.device) for x in batch)).backward()
    original = dict(network.named_parameters())[f"{prefix}.original"]
    return host(original.grad).reshape(layer.weight.shape)
