"""What `minigrad gradcheck` checks: every layer as a function of its inputs and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad import nn
from minigrad._comparisons import Function
from minigrad.nn import functional as F
from minigrad.nn.utils import spectral_norm


class Case(NamedTuple):
    """A function and the tensors to check it at."""

    name: str
    fn: Function
    inputs: list[mg.Tensor]


def layers(seed: int, device: str) -> Iterator[Case]:
    """Every layer and loss, at random inputs and with random parameters."""
    rng = np.random.default_rng(seed)
    mg.manual_seed(seed)

    def normal(*shape: int) -> mg.Tensor:
        return mg.tensor(rng.normal(size=shape), dtype=mg.float64, device=device, requires_grad=True)

    def layer(name: str, module: nn.Module, *shapes: tuple[int, ...], call: Callable[..., Any] | None = None) -> Case:
        module.to(mg.float64).to(device)
        return with_parameters(name, module, [normal(*shape) for shape in shapes], call or module)

    def constant(values: Any) -> mg.Tensor:
        return mg.tensor(values, device=device)

    def loss(name: str, fn: Function, *shapes: tuple[int, ...]) -> Case:
        return Case(name, fn, [normal(*shape) for shape in shapes])

    yield layer("Linear", nn.Linear(4, 3), (5, 4))
    yield layer("Conv1d, stride 2", nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 2, 7))
    yield layer("Conv2d", nn.Conv2d(2, 3, 3, padding=1), (2, 2, 4, 5))
    yield layer("Conv2d, groups 2", nn.Conv2d(4, 6, 3, groups=2), (1, 4, 4, 5))
    yield layer("Conv2d, dilation 2, stride 2", nn.Conv2d(2, 2, 2, stride=2, padding=1, dilation=2), (1, 2, 6, 5))
    yield layer("Conv3d", nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=1), (1, 2, 3, 3, 2))
    yield layer("ConvTranspose1d, stride 2", nn.ConvTranspose1d(3, 2, 3, stride=2, output_padding=1), (2, 3, 4))
    yield layer("ConvTranspose2d", nn.ConvTranspose2d(3, 2, 3, padding=1), (1, 3, 3, 4))
    grouped = nn.ConvTranspose2d(4, 4, 2, groups=2, dilation=2)
    yield layer("ConvTranspose2d, groups 2, dilation 2", grouped, (1, 4, 3, 2))
    yield layer("ConvTranspose3d, stride 2", nn.ConvTranspose3d(2, 2, 2, stride=2), (1, 2, 2, 1, 2))
    embedding, indices = nn.Embedding(5, 3), constant([[0, 2, 2], [4, 1, 0]])
    yield layer("Embedding", embedding, call=lambda: embedding(indices))
    yield layer("RNNCell", nn.RNNCell(3, 4), (2, 3), (2, 4))
    lstm = nn.LSTMCell(3, 4)
    yield layer("LSTMCell", lstm, (2, 3), (2, 4), (2, 4), call=lambda x, h, c: lstm(x, (h, c)))
    yield layer("GRUCell", nn.GRUCell(3, 4), (2, 3), (2, 4))
    yield layer("BatchNorm1d, training", nn.BatchNorm1d(3), (6, 3))
    yield layer("BatchNorm2d, training", nn.BatchNorm2d(3), (2, 3, 2, 4))
    trained = nn.BatchNorm2d(3)
    trained(mg.randn(4, 3, 2, 2))
    yield layer("BatchNorm2d, evaluation", trained.eval(), (2, 3, 2, 4))
    for activation in (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus):
        yield layer(activation.__name__, activation(), (3, 7))
    yield layer("AvgPool2d, padding 1", nn.AvgPool2d(2, stride=1, padding=1), (1, 2, 4, 5))
    yield layer("MaxPool2d, stride 1", nn.MaxPool2d(2, stride=1), (1, 2, 4, 5))
    yield layer("Upsample", nn.Upsample(scale_factor=2), (1, 2, 3, 4))
    yield loss("Dropout, a fixed mask", lambda x: F.dropout(x, 0.5, generator=mg.Generator(seed)), (4, 6))
    layered = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    yield layer("Conv2d, Tanh, Flatten, Linear", layered, (2, 1, 4, 4))

    yield loss("MSELoss", nn.MSELoss(), (4, 3), (4, 3))
    yield loss("L1Loss", nn.L1Loss(), (4, 3), (4, 3))
    targets, classes = constant(rng.uniform(size=(4, 3))), constant(rng.integers(0, 3, size=4))
    yield loss("BCEWithLogitsLoss", lambda x: F.binary_cross_entropy_with_logits(x, targets), (4, 3))
    yield loss("CrossEntropyLoss", lambda x: F.cross_entropy(x, classes), (4, 3))
    yield loss("CrossEntropyLoss, smoothing 0.1", lambda x: F.cross_entropy(x, classes, label_smoothing=0.1), (4, 3))
    yield loss("GAN losses (15)", gan_losses, (5, 1), (4, 1))
    yield loss("GAN hinge losses (16), (17)", hinge_losses, (5, 1), (4, 1))

    for name, module, shape in (
        ("Linear", nn.Linear(4, 3), (5, 4)),
        ("Conv2d", nn.Conv2d(2, 3, 3), (1, 2, 4, 4)),
        ("ConvTranspose2d", nn.ConvTranspose2d(2, 3, 3), (1, 2, 3, 3)),
        ("GRUCell, weight_hh", nn.GRUCell(3, 4), (2, 3)),
    ):
        normalized = spectral_norm(module, "weight_hh" if "weight_hh" in name else "weight", n_init_iterations=0)
        yield layer(f"spectral_norm({name})", normalized.eval(), shape)
    operator = spectral_norm(nn.Conv2d(2, 3, 3, padding=1), norm="operator", input_shape=4, n_init_iterations=0)
    yield layer("spectral_norm(Conv2d), operator norm", operator.eval(), (1, 2, 4, 4))
    scaled = spectral_norm(nn.Linear(4, 3), learnable_scale=True).eval()
    yield layer("spectral_norm(Linear), learnable scale", scaled, (5, 4))


def gan_losses(real: mg.Tensor, fake: mg.Tensor) -> Sequence[mg.Tensor]:
    """Of the discriminator and of the generator."""
    return F.gan_discriminator_loss(real, fake), F.gan_generator_loss(fake)


def hinge_losses(real: mg.Tensor, fake: mg.Tensor) -> Sequence[mg.Tensor]:
    """Of the discriminator and of the generator."""
    return F.hinge_discriminator_loss(real, fake), F.hinge_generator_loss(fake)


def with_parameters(name: str, module: nn.Module, inputs: list[mg.Tensor], call: Callable[..., Any]) -> Case:
    """`call`, which runs the module, as a function of its inputs and of the module's parameters."""
    places = [(owner, key) for owner in module.modules() for key, p in owner._parameters.items() if p is not None]
    parameters = [owner._parameters[key] for owner, key in places]

    def fn(*arguments: mg.Tensor) -> Any:
        try:
            for (owner, key), value in zip(places, arguments[len(inputs) :], strict=True):
                owner._parameters[key] = value  # any tensor will do for one call
            return call(*arguments[: len(inputs)])
        finally:
            for (owner, key), parameter in zip(places, parameters, strict=True):
                owner._parameters[key] = parameter

    values = [parameter.detach().requires_grad_() for parameter in parameters if parameter is not None]
    return Case(name, fn, [*inputs, *values])
