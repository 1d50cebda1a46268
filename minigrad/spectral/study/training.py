"""Training a network on the data: plain SGD, every random number from the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

import minigrad as mg
from minigrad._errors import UsageError
from minigrad.spectral.study.data import Dataset
from minigrad.spectral.study.opening import loss

BATCH, RATE = 64, 0.1


def train(
    network: Any, data: Dataset, steps: int, seed: int, device: str, rate: float = RATE
) -> Iterator[tuple[int, float]]:
    """Run `steps` updates. Yields (updates done, loss of the last batch): first (0, NaN), before any."""
    rng = np.random.default_rng(seed)
    optimizer = mg.optim.SGD(network.parameters(), lr=rate)
    x = mg.tensor(data.train_x, device=device)
    y = mg.tensor(data.train_y, device=device)
    batch = min(BATCH, len(data.train_x))
    yield 0, math.nan
    done = 0
    while done < steps:
        order = rng.permutation(len(data.train_x))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = mg.tensor(order[start : start + batch], device=device)
            optimizer.zero_grad()
            value = loss(network, x[chosen], y[chosen])
            value.backward()
            optimizer.step()
            done += 1
            yield done, _finite(value.item(), f"at step {done}")
            if done == steps:
                return


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise UsageError(f"study: the loss became {value} {where}; the data may hold extreme values. Scale them.")
    return float(value)


def evaluate(network: Any, x: Any, y: Any, limit: int = 2000) -> tuple[float, float]:
    """Mean loss and accuracy on up to `limit` test examples, in eval mode, no sweeps. UsageError: no finite loss."""
    network.eval()
    with mg.no_grad():
        logits = network(x[:limit])
        value = mg.nn.functional.cross_entropy(logits, y[:limit]).item()
        right = (logits.argmax(1) == y[:limit]).to(mg.float32).mean().item()
    network.train()
    return _finite(value, "on the test examples"), float(right)
