"""Networks written once for minigrad and torch: `lib.nn` and `lib.spectral_norm` are those of the library at hand."""

from __future__ import annotations

from typing import Any

from benchmarks.work import Build

Lib = Any


def weight(*shape: int) -> Build:
    """A module that is nothing but a normalized parameter: a forward call steps u and v and returns W̄."""

    def build(lib: Lib) -> Any:
        class Weight(lib.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.weight = lib.nn.Parameter(lib.root.randn(*shape))

            def forward(self) -> Any:
                return self.weight

        return lib.spectral_norm(Weight())

    return build


def softmax(lib: Lib) -> Any:
    """Over the last axis."""

    class Softmax(lib.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return lib.root.softmax(x, -1)

    return Softmax()


def layer(name: str, *arguments: Any, **options: Any) -> Build:
    """One layer of `nn`."""
    return lambda lib: getattr(lib.nn, name)(*arguments, **options)


def mlp(*widths: int) -> Build:
    """The SN-MLP: normalized dense layers with leaky ReLUs in between."""

    def build(lib: Lib) -> Any:
        nn, sn = lib.nn, lib.spectral_norm
        layers = [sn(nn.Linear(widths[0], widths[1]))]
        for i in range(1, len(widths) - 1):
            layers += [nn.LeakyReLU(0.1), sn(nn.Linear(widths[i], widths[i + 1]))]
        return nn.Sequential(*layers)

    return build


def cnn(channels: int) -> Build:
    """The SN-CNN: two convolutions and a dense layer, for images of 8×8 and ten classes."""

    def build(lib: Lib) -> Any:
        nn, sn = lib.nn, lib.spectral_norm
        return nn.Sequential(
            sn(nn.Conv2d(1, channels, 3, 1, 1)), nn.LeakyReLU(0.1),
            sn(nn.Conv2d(channels, 2 * channels, 4, 2, 1)), nn.LeakyReLU(0.1),
            nn.Flatten(), sn(nn.Linear(32 * channels, 10)),
        )  # fmt: skip

    return build


def convolutions(width: int = 64) -> list[tuple[int, int, int, int, int]]:
    """The seven of the SNDCGAN discriminator: channels in, out, kernel, stride, extent of the image."""
    w = width
    return [
        (3, w, 3, 1, 32), (w, w, 4, 2, 32), (w, 2 * w, 3, 1, 16), (2 * w, 2 * w, 4, 2, 16),
        (2 * w, 4 * w, 3, 1, 8), (4 * w, 4 * w, 4, 2, 8), (4 * w, 8 * w, 3, 1, 4),
    ]  # fmt: skip


def discriminator(width: int = 64) -> Build:
    """SNDCGAN's, for images of 32×32: table 3 of the spectral normalization paper."""

    def build(lib: Lib) -> Any:
        nn, sn = lib.nn, lib.spectral_norm
        layers = []
        for given, made, kernel, stride, _ in convolutions(width):
            layers += [sn(nn.Conv2d(given, made, kernel, stride, 1)), nn.LeakyReLU(0.1)]
        return nn.Sequential(*layers, nn.Flatten(), sn(nn.Linear(8 * width * 16, 1)))

    return build


def generator(width: int = 64) -> Build:
    """SNDCGAN's: 128 random numbers to an image of 32×32."""

    def build(lib: Lib) -> Any:
        nn = lib.nn
        layers = [nn.Linear(128, 8 * width * 16), nn.Unflatten(1, (8 * width, 4, 4))]
        for channels in (8 * width, 4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False),  # its bias would be the norm's
                nn.BatchNorm2d(channels // 2),
                nn.ReLU(),
            ]
        return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())

    return build
