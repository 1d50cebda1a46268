"""The two networks of the study, each with and without spectral normalization."""

from __future__ import annotations

from typing import Any

import minigrad as mg
from minigrad._errors import UsageError
from minigrad.nn.utils import spectral_norm

MODELS = ("mlp", "conv")


class MLP(mg.nn.Module):
    """inputs → 128 → 64 → classes. SiLU between, smooth, so that finite differences through it mean something."""

    def __init__(self, example: tuple[int, ...], classes: int):
        super().__init__()
        self.flatten = mg.nn.Flatten()
        self.activation = mg.nn.SiLU()
        inputs = 1
        for extent in example:
            inputs *= extent
        self.hidden1 = mg.nn.Linear(inputs, 128)
        self.hidden2 = mg.nn.Linear(128, 64)
        self.output = mg.nn.Linear(64, classes)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        """Logits of a batch."""
        x = self.activation(self.hidden1(self.flatten(x)))
        return self.output(self.activation(self.hidden2(x)))


class Conv(mg.nn.Module):
    """3×3 convolution to 16 channels, 4×4 with stride 2 to 32, dense → classes; SiLU between."""

    def __init__(self, example: tuple[int, ...], classes: int):
        super().__init__()
        channels, height, width = example if len(example) == 3 else (1, *example)
        self.image = (channels, height, width)
        self.activation = mg.nn.SiLU()
        self.flatten = mg.nn.Flatten()
        self.conv1 = mg.nn.Conv2d(channels, 16, 3, padding=1)
        self.conv2 = mg.nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.output = mg.nn.Linear(32 * (height // 2) * (width // 2), classes)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        """Logits of a batch of images."""
        x = self.activation(self.conv1(x.reshape(x.shape[0], *self.image)))
        return self.output(self.flatten(self.activation(self.conv2(x))))


def plain(model: str, example: tuple[int, ...], classes: int) -> Any:
    """The network without normalization, for examples of a shape."""
    if model == "mlp":
        return MLP(example, classes)
    if len(example) not in (2, 3) or min(example[-2:]) < 2:
        raise UsageError(
            f"study --model conv: expected images (examples, height, width) or (examples, channels, height, width), "
            f"2×2 or larger; got examples of shape {example}. Reshape x, or use --model mlp."
        )
    return Conv(example, classes)


def layers(model: Any) -> list[str]:
    """The names of the layers that are normalized: every one with a weight."""
    return [name for name, module in model.named_children() if isinstance(module, mg.nn.Linear | mg.nn.Conv2d)]


def normalized(model: str, example: tuple[int, ...], classes: int, convention: str, seed: int) -> Any:
    """The network with spectral normalization on every layer, everything random in it drawn from the seed."""
    mg.manual_seed(seed)
    network = plain(model, example, classes)
    for name in layers(network):
        spectral_norm(getattr(network, name), gradient=convention)
    return network
