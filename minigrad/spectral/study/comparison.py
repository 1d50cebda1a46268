"""Training one network from the same seeds under every convention, and what of the difference is more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import minigrad as mg
from minigrad.spectral.study import models
from minigrad.spectral.study.data import Dataset
from minigrad.spectral.study.opening import host
from minigrad.spectral.study.statistics import Interval, holm, interval
from minigrad.spectral.study.training import evaluate, train

#: Below this the corrected p-value of a difference counts as detected.
ALPHA = 0.05
#: What is compared at the end of training.
MEASURES = {"loss": "test loss", "accuracy": "test accuracy"}
#: What is followed over time, for one layer.
FOLLOWED = {"norm": "‖W‖", "sigma_hat": "σ̂", "achieved": "σ₁(W̄)", "lam": "λ"}


@dataclass(frozen=True)
class Record:
    """One run at one step; weight norm, σ̂, the true norm of W̄, and λ of one layer."""

    convention: str
    seed: int
    step: int
    layer: str
    loss: float
    accuracy: float
    norm: float
    sigma_hat: float
    achieved: float
    lam: float


@dataclass(frozen=True)
class Paired:
    """A convention minus the reference, seed by seed, at the last step."""

    convention: str
    reference: str
    measure: str
    difference: Interval
    adjusted_p: float

    @property
    def detected(self) -> bool:
        """Is the difference more than chance, after Holm's correction over all comparisons?"""
        return self.adjusted_p < ALPHA


def marks(steps: int, count: int = 10) -> list[int]:
    """The steps at which a run is recorded: from 0 to the last."""
    return sorted({round(steps * i / count) for i in range(count + 1)})


def run(
    model: str, data: Dataset, convention: str, seed: int, steps: int, layer: str, device: str
) -> Iterator[Record | None]:
    """One training run. Yields a Record at each mark and None at the other steps."""
    example = data.train_x.shape[1:]
    network = models.normalized(model, example, data.classes, convention, seed).to(device)
    probe = Probe(model, data)
    test_x, test_y = mg.tensor(data.test_x, device=device), mg.tensor(data.test_y, device=device)
    at = set(marks(steps))
    for step, _ in train(network, data, steps, seed, device):
        if step not in at:
            yield None
            continue
        value, right = evaluate(network, test_x, test_y)
        yield Record(convention, seed, step, layer, value, right, *probe(network, layer))


class Probe:
    """‖W‖, σ̂, σ₁(W̄) and λ of a layer of a network in training; a plain twin gives G = ∂L/∂W̄."""

    def __init__(self, model: str, data: Dataset, examples: int = 256):
        example = data.train_x.shape[1:]
        self.twin = models.plain(model, example, data.classes)
        self.x = mg.tensor(data.train_x[:examples])
        self.y = mg.tensor(data.train_y[:examples])

    def __call__(self, network: Any, layer: str) -> tuple[float, float, float, float]:
        normalized = {}
        with mg.no_grad():
            for name in models.layers(network):
                normalized[name] = host(getattr(network, name).weight)
                getattr(self.twin, name).weight.copy_(mg.tensor(normalized[name]))
                getattr(self.twin, name).bias.copy_(mg.tensor(host(getattr(network, name).bias)))
        self.twin.zero_grad()
        mg.nn.functional.cross_entropy(self.twin(self.x), self.y).backward()
        upstream = host(getattr(self.twin, layer).weight.grad)
        original = host(network.state_dict()[f"{layer}.parametrizations.weight.original"])
        norm = float(np.linalg.norm(original))
        sigma_hat = norm / float(np.linalg.norm(normalized[layer]))
        achieved = float(np.linalg.svd(normalized[layer].reshape(len(original), -1), compute_uv=False)[0])
        return norm, sigma_hat, achieved, float(np.vdot(upstream, normalized[layer]))


def differences(records: Sequence[Record], reference: str) -> list[Paired]:
    """Each convention against the reference: paired over seeds, 95% intervals, p-values corrected by Holm."""
    last = max((r.step for r in records), default=0)
    final = {(r.convention, r.seed): r for r in records if r.step == last}
    seeds = sorted({seed for convention, seed in final if convention == reference})
    pairs = []
    for convention in dict.fromkeys(r.convention for r in records):
        shared = [seed for seed in seeds if (convention, seed) in final]
        if convention == reference or len(shared) < 2:
            continue
        for measure in MEASURES:
            mine = [getattr(final[convention, s], measure) - getattr(final[reference, s], measure) for s in shared]
            pairs.append((convention, measure, interval(mine)))
    adjusted = holm([found.p for _, _, found in pairs])
    return [Paired(c, reference, m, found, p) for (c, m, found), p in zip(pairs, adjusted, strict=True)]
