"""The table of cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks import networks
from benchmarks.networks import layer
from benchmarks.work import (
    FUNCTIONS,
    Adam,
    Array,
    Build,
    Copy,
    Derivative,
    Function,
    Matmul,
    Several,
    Training,
    Work,
)  # fmt: skip

#: ‖a − b‖ / ‖b‖ up to which two sides are said to have computed the same numbers, sums of 65,536 of them included.
SAME = {"float32": 1e-4, "float64": 1e-12}
#: The same after some steps of training: Adam makes much of the signs of gradients that are nearly 0.
SAME_TRAINING = 1e-3
#: And for GANs: one of millions of leaky ReLUs that rounding carries over its kink moves a layer's gradient by 1e-3,
#: and of what D asks of G batch norms leave little. (In the small sizes of `--quick` they agree to 1e-5.)
SAME_GAN = 3e-2
#: A learning rate at which rounding does not grow into another network in some steps; the time is that of any other.
SLOWLY = 1e-6


@dataclass(frozen=True)
class Case:
    """A piece of work, where it stands in the table, and what it moves or computes at least.

    `without`: side -> why it is left out. `size`: its place on the axis of a group that is about scaling.
    """

    name: str
    group: str
    work: Work
    tolerance: float = SAME["float32"]
    flops: float = 0.0
    bytes: float = 0.0
    size: int = 0
    without: Mapping[str, str] = field(default_factory=dict)


UNCOMPILED = {"torch.compile": "would compile for minutes, size by size"}
ALL_KERNELS = {"minigrad, captured": "its time is minigrad's: on a CPU nearly all of it is the kernels'"}
#: The group whose rows are worth a look each.
TRAINING = "training steps"
#: Groups whose rows differ in size alone: they are drawn as curves, with the peak of memory.
SN_SCALING, STEP_SCALING = "SN node against size", "SNDCGAN D step against batch"
#: The case whose bytes per second others are compared with.
COPY = "copy"
#: The case, and the part of it that normalization is.
STEP, NODES = "SNDCGAN D step", "SNDCGAN D step, SN alone"


def times(shape: tuple[int, ...]) -> str:
    """
    >>> times((64, 27))
    '64×27'
    """
    return "×".join(map(str, shape))


def sn(shape: tuple[int, ...], group: str = "SN node", size: int = 0) -> Case:
    """Power iteration, W̄ and ∂L/∂W: at least seven passes over arrays of W's size (W, W, W̄; G, W, G, ∂L/∂W)."""
    moved, without = 7 * 4 * math.prod(shape), UNCOMPILED if size else {}
    return Case(times(shape), group, Derivative(networks.weight(*shape)), bytes=moved, size=size, without=without)


def derivative(build: Build, shape: tuple[int, ...], dtype: str = "float32") -> Derivative:
    """A layer on random numbers, forward and backward."""

    def draw(rng: np.random.Generator) -> tuple[Array, ...]:
        return (rng.standard_normal(shape, dtype=dtype),)  # type: ignore[call-overload]

    return Derivative(build, draw, dtype)


def op(name: str, build: Build, shape: tuple[int, ...]) -> Case:
    """A layer that is no convolution."""
    return Case(f"{name} {times(shape)}", "layers", derivative(build, shape), without=ALL_KERNELS)


def convolution(given: int, made: int, kernel: int, stride: int, extent: int, batch: int, dtype: str) -> Case:
    """One of SNDCGAN's, in 2·3 operations per weight and place."""
    work = derivative(layer("Conv2d", given, made, kernel, stride, 1), (batch, given, extent, extent), dtype)
    flops = 6 * batch * made * given * kernel**2 * (extent // stride) ** 2
    name = f"{given}→{made} k{kernel} s{stride} on {extent}²"
    return Case(name, f"convolutions, {dtype}", work, SAME[dtype], flops=flops, without=ALL_KERNELS)


def embedding(num: int, dim: int, shape: tuple[int, ...]) -> Case:
    """Rows of a table, and the gradient of the table."""
    work = Derivative(layer("Embedding", num, dim), lambda rng: (rng.integers(num, size=shape),))
    return Case(f"Embedding {times((num, dim))}, {times(shape)} indices", "layers", work, without=ALL_KERNELS)


def product(m: int, k: int, n: int) -> Case:
    """A matrix product."""
    return Case(times((m, k, n)), "matmul", Matmul(m, k, n), flops=2 * m * k * n)


def function(name: str, shape: tuple[int, ...]) -> Case:
    """An op alone, forward."""
    return Case(f"{name}, {times(shape)}", "ops", Function(name, shape))


def squared(F: Any, model: Any, _: Any, x: Any, y: Any) -> Any:
    """The SN-MLP's loss."""
    return F.mse_loss(model(x), y)


def classified(F: Any, model: Any, _: Any, x: Any, y: Any) -> Any:
    """The SN-CNN's."""
    return F.cross_entropy(model(x), y)


def discriminated(F: Any, discriminator: Any, generator: Any, real: Any, z: Any) -> Any:
    """Equation (15), as the discriminator's loss; the generator's parameters do not require grad."""
    return F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(generator(z))).mean()


def generated(F: Any, generator: Any, discriminator: Any, z: Any) -> Any:
    """The generator's; the discriminator's parameters do not require grad."""
    return F.softplus(-discriminator(generator(z))).mean()


def discriminator_step(width: int, batch: int) -> Training:
    """D(real) and D(G(z)), each with a power iteration of its own."""

    def draw(rng: np.random.Generator) -> tuple[Array, ...]:
        return rng.standard_normal((batch, 3, 32, 32), "float32"), rng.standard_normal((batch, 128), "float32")

    return Training(networks.discriminator(width), discriminated, draw, networks.generator(width), lr=SLOWLY)


def generator_step(width: int, batch: int) -> Training:
    """D(G(z)), and the gradient of G."""
    return Training(
        networks.generator(width), generated,
        lambda rng: (rng.standard_normal((batch, 128), "float32"),), networks.discriminator(width), lr=SLOWLY,
    )  # fmt: skip


def table(quick: bool = False, gpu: bool = False) -> list[Case]:
    """All cases, or small ones of each kind; for a GPU also those that fill it."""
    n, width, batch = (8, 4, 2) if quick else (64, 64, 64)
    widths = (8, 16, 16, 1) if quick else (64, 128, 128, 1)
    matrices: list[tuple[int, ...]] = [(64, 64), (128, 1024), (1024, 1024), (512, 2304), (512, 4608), (4096, 4096)]
    filters: list[tuple[int, ...]] = [(64, 3, 3, 3), (128, 128, 4, 4), (512, 256, 3, 3)]
    products = [(256, 256, 256), (1024, 1024, 1024), (64, 1024, 1024)]
    sizes, batches = [64, 128, 256, 512, 1024, 2048, 4096], [8, 16, 32, 64, 128]
    numbers, table, indices = 1 << 26, (10_000, 256), (64, 128)
    if gpu:
        matrices, products, numbers = [*matrices, (16384, 16384)], [*products, (8192, 8192, 8192)], 1 << 28
    if quick:
        matrices, filters, products = [(16, 16), (8, 24)], [(8, 3, 3, 3)], [(16, 16, 16), (8, 16, 16)]
        sizes, batches = [16, 32], [1, 2]
        numbers, table, indices = 1 << 10, (10, 8), (4, 6)
    convolutions = networks.convolutions(width)
    flat = [(made, given * k * k) for given, made, k, *_ in convolutions] + [(1, 128 * width)]
    found = [
        *map(sn, matrices),
        *map(sn, filters),
        Case(
            f"SN-MLP {'-'.join(map(str, widths))}, batch {n}", TRAINING,
            Training(
                networks.mlp(*widths), squared,
                lambda rng: (rng.standard_normal((n, widths[0]), "float32"), rng.standard_normal((n, 1), "float32")),
            ), SAME_TRAINING,
        ),
        Case(
            f"SN-CNN on 8×8, batch {n}", TRAINING,
            Training(
                networks.cnn(width // 2), classified,
                lambda rng: (rng.standard_normal((n, 1, 8, 8), "float32"), rng.integers(10, size=n)),
            ), SAME_TRAINING,
        ),
        Case(STEP, TRAINING, discriminator_step(width, batch), SAME_GAN),
        Case("SNDCGAN G step", TRAINING, generator_step(width, batch), SAME_GAN),
        Case(NODES, TRAINING, Several(tuple(Derivative(networks.weight(*shape)) for shape in flat), 2)),
        *(convolution(*c, batch=batch, dtype=dtype) for dtype in ("float32", "float64") for c in convolutions),
        *(product(*shape) for shape in products),
        op("Conv2d, depthwise, k3", layer("Conv2d", width, width, 3, padding=1, groups=width), (n // 2, width, 28, 28)),
        op("BatchNorm2d", layer("BatchNorm2d", 2 * width), (n, 2 * width, 16, 16)),
        op("LeakyReLU", layer("LeakyReLU", 0.1), (n, width, 32, 32)),
        op("softmax", networks.softmax, (8 * n, 16 * width)),
        op("MaxPool2d", layer("MaxPool2d", 2), (n, width, 32, 32)),
        op("AvgPool2d", layer("AvgPool2d", 2), (n, width, 32, 32)),
        op("Upsample ×2", layer("Upsample", scale_factor=2), (n, 2 * width, 16, 16)),
        embedding(*table, indices),
        adam(quick, fused=False),
        adam(quick, fused=True),
        *(
            function(name, (16 * n, 16 * width) if name != "product along rows" else (512 * n, width // 2))
            for name in FUNCTIONS
        ),
        Case(COPY, "memory", Copy(numbers), bytes=8 * numbers),
        *(sn((size, size), SN_SCALING, size) for size in sizes),
        *(
            Case(
                f"batch {m}", STEP_SCALING, discriminator_step(width, m), SAME_GAN, size=m,
                without=UNCOMPILED | ALL_KERNELS,
            )
            for m in batches
        ),
    ]  # fmt: skip
    if gpu:  # where launches cost more than many a kernel
        return [replace(c, without={k: why for k, why in c.without.items() if k not in ALL_KERNELS}) for c in found]
    return found


def adam(quick: bool, fused: bool) -> Case:
    """Ten million parameters in ten matrices."""
    shapes = ((10, 10),) * 3 if quick else ((1000, 1000),) * 10
    name = f"Adam, {sum(map(math.prod, shapes)) / 1e6:g} M parameters"
    numbers = sum(map(math.prod, shapes))
    return Case(name + (", fused=True" if fused else ""), "layers", Adam(shapes, fused), 1e-6, bytes=7 * 4 * numbers)
