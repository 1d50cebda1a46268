"""A network, batches and a step for the tests of captured steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import _random


def here() -> str:
    """The device of a test that runs `on_device`."""
    return mg.zeros(1).device


class Net(mg.nn.Module):
    """Two normalized weights, dropout and buffers; products as sums, to be small."""

    def __init__(self, dtype: Any = mg.float32) -> None:
        super().__init__()
        self.first = mg.nn.utils.spectral_norm(Product(3, 4))
        self.second = mg.nn.utils.spectral_norm(Product(4, 2), n_power_iterations=2, order="vu", learnable_scale=True)
        self.drop = mg.nn.Dropout(0.25)
        self.register_buffer("mean", mg.zeros(4))
        self.to(dtype).to(device=here())

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        h = self.first(x).tanh()
        if self.training:
            with mg.no_grad():
                self.mean.copy_(0.75 * self.mean + 0.25 * h.mean(0))
        return self.second(self.drop(h - self.mean))


class Product(mg.nn.Module):
    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.weight = mg.nn.Parameter(mg.randn(n, m))

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return (x[:, None, :] * self.weight).sum(2)


def batches(n: int, dtype: Any = mg.float32, size: int = 4) -> list[mg.Tensor]:
    rng = np.random.default_rng(0)
    return [mg.tensor(rng.standard_normal((size, 3)).astype(dtype)) for _ in range(n)]


def training(net: Net, optimizer: mg.optim.Optimizer) -> Callable[[mg.Tensor], mg.Tensor]:
    def step(x: mg.Tensor) -> mg.Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


def generator_in_use() -> mg.Generator:
    return _random.default
