"""Whole training steps on the device, spectral normalization and all: as on the CPU, which has other oracles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import minigrad as mg
from minigrad.nn.utils import spectral_norm
from minigrad.ops.conventions import CONVENTIONS

pytestmark = pytest.mark.usefixtures("second_device")


def critic(device: str, **options: object) -> mg.nn.Module:
    mg.manual_seed(0)
    model = mg.nn.Sequential(
        mg.nn.Conv2d(1, 3, 3, stride=2, padding=1), mg.nn.LeakyReLU(0.1), mg.nn.Flatten(), mg.nn.Linear(12, 2)
    ).to(mg.float64)
    spectral_norm(model, where=lambda path, module: hasattr(module, "weight"), n_init_iterations=1, **options)
    return model.to(device)


def trained(model: mg.nn.Module, device: str, loss: Callable[[mg.nn.Module, mg.Tensor], mg.Tensor]) -> list[np.ndarray]:
    """The state after three steps of Adam."""
    optimizer = mg.optim.Adam(model.parameters(), lr=0.05)
    rng = np.random.default_rng(1)
    for _ in range(3):
        x = mg.tensor(rng.standard_normal((3, 1, 4, 4)), device=device)
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()
    return [tensor.to("cpu").numpy() for tensor in model.state_dict().values()]


def squares(model: mg.nn.Module, x: mg.Tensor) -> mg.Tensor:
    return model(x).square().mean()


def penalty(model: mg.nn.Module, x: mg.Tensor) -> mg.Tensor:
    """A gradient of a gradient: through the convolution's two adjoints, and the node."""
    x.requires_grad_()
    (slope,) = mg.grad(model(x).sum(), x, create_graph=True)
    return (slope.square().sum((1, 2, 3)).sqrt() - 1).square().mean() + squares(model, x)


def same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_every_convention_trains(gradient: str, device: str) -> None:
    same(*(trained(critic(where, gradient=gradient), where, squares) for where in (device, "cpu")))


def test_double_backward_and_a_learned_scale(device: str) -> None:
    same(*(trained(critic(where, learnable_scale=True), where, penalty) for where in (device, "cpu")))


@pytest.mark.parametrize("layer", [mg.nn.Conv2d(1, 2, 3, padding=1), mg.nn.ConvTranspose2d(1, 2, 2, stride=2)])
def test_the_norm_of_a_convolution(layer: mg.nn.Module, device: str) -> None:
    def normalized(where: str) -> mg.nn.Module:
        mg.manual_seed(2)
        fresh = type(layer)(1, 2, layer.kernel_size, stride=layer.stride, padding=layer.padding).to(mg.float64)
        return spectral_norm(fresh, norm="operator", input_shape=4, n_init_iterations=1).to(where)

    same(*(trained(normalized(where), where, squares) for where in (device, "cpu")))
    for mode in ("zeros", "circular"):
        found = [mg.spectral.operator_norm(normalized(where), 4, mode).item() for where in (device, "cpu")]
        assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_the_tools_for_models(device: str) -> None:
    """Diagnosis, comparison with differences, Lipschitz bounds and true Hessians of a model on the device."""
    x = np.random.default_rng(3).standard_normal((3, 1, 4, 4))
    found = []
    for where in (device, "cpu"):
        model, batch = critic(where), mg.tensor(x, device=where)
        weight = model[3].parametrizations.weight.original

        def loss(model: mg.nn.Module = model, batch: mg.Tensor = batch) -> mg.Tensor:
            return squares(model, batch)

        rows = [*mg.spectral.diagnose(model, loss), *mg.spectral.compare_gradients(model, loss, layers="3")]
        bounds = mg.spectral.lipschitz_bounds(model, batch)
        name = "3.parametrizations.weight.original"
        product = mg.spectral.model_hvp(model, loss, {name: weight.detach()}).product[name]
        numbers = [row[key] for row in rows for key in ("sigma_hat", "lam", "grad_norm", "relative") if key in row]
        found.append(([row.get("meets") for row in rows], [*numbers, bounds.lower, bounds.upper], product.to("cpu")))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found[0][2].numpy(), found[1][2].numpy(), rtol=1e-8, atol=1e-10)
