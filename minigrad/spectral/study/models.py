"""The two networks of the study, each with and without spectral normalization."""

from __future__ import annotations

from typing import Any

import minigrad as mg
from minigrad._errors import UsageError
from minigrad.nn.utils import spectral_norm

#: Model -> the width of its first layer, from which the others follow.
MODELS = {"mlp": 128, "conv": 16}


class MLP(mg.nn.Module):
    """inputs → width → width/2 → classes. SiLU between, smooth: finite differences through it mean something."""

    def __init__(self, example: tuple[int, ...], classes: int, width: int):
        super().__init__()
        self.flatten = mg.nn.Flatten()
        self.activation = mg.nn.SiLU()
        inputs = 1
        for extent in example:
            inputs *= extent
        self.hidden1 = mg.nn.Linear(inputs, width)
        self.hidden2 = mg.nn.Linear(width, width // 2)
        self.output = mg.nn.Linear(width // 2, classes)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        """Logits of a batch."""
        x = self.activation(self.hidden1(self.flatten(x)))
        return self.output(self.activation(self.hidden2(x)))


class Conv(mg.nn.Module):
    """3×3 convolution to `width` channels, 4×4 with stride 2 to twice as many, dense → classes; SiLU between."""

    def __init__(self, example: tuple[int, ...], classes: int, width: int):
        super().__init__()
        channels, height, width = example if len(example) == 3 else (1, *example)
        self.image = (channels, height, width)
        self.activation = mg.nn.SiLU()
        self.flatten = mg.nn.Flatten()
        self.conv1 = mg.nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = mg.nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.output = mg.nn.Linear(2 * width * (height // 2) * (width // 2), classes)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        """Logits of a batch of images."""
        x = self.activation(self.conv1(x.reshape(x.shape[0], *self.image)))
        return self.output(self.flatten(self.activation(self.conv2(x))))


def plain(model: str, example: tuple[int, ...], classes: int, width: int | None = None) -> Any:
    """The network without normalization, for examples of a shape; `width`: of its first layer."""
    width = width or MODELS[model]
    if model == "mlp":
        return MLP(example, classes, width)
    if len(example) not in (2, 3) or min(example[-2:]) < 2:
        raise UsageError(
            f"study --model conv: expected images (examples, height, width) or (examples, channels, height, width), "
            f"2×2 or larger; got examples of shape {example}. Reshape x, or use --model mlp."
        )
    return Conv(example, classes, width)


def layers(model: Any) -> list[str]:
    """The names of the layers that are normalized: every one with a weight."""
    return [name for name, module in model.named_children() if isinstance(module, mg.nn.Linear | mg.nn.Conv2d)]


def normalized(
    model: str, example: tuple[int, ...], classes: int, convention: str, seed: int, width: int | None = None
) -> Any:
    """The network with spectral normalization on every layer, everything random in it drawn from the seed."""
    mg.manual_seed(seed)
    network = plain(model, example, classes, width)
    for name in layers(network):
        spectral_norm(getattr(network, name), gradient=convention)
    return network
