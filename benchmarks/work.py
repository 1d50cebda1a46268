"""The kinds of work that libraries are compared at, and the numbers that all of them get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
#: Makes a module of the library that it is given.
Build = Callable[[Any], Any]


class LeftOut(Exception):
    """A side cannot do this work; the message says why."""


class Running(NamedTuple):
    """Work on one side.

    `step` does it once and returns when it is done (on a GPU: when it is launched); `results` makes named arrays of
    what `step` returned, in torch's layouts.
    """

    step: Callable[[], Any]
    results: Callable[[Any], dict[str, Array]]


@dataclass(frozen=True)
class Derivative:
    """y = module(x) in training mode, and its backward pass from a random ∂L/∂y. `draw(rng)` gives the arguments."""

    build: Build
    draw: Callable[[np.random.Generator], tuple[Array, ...]] = lambda rng: ()
    dtype: str = "float32"


@dataclass(frozen=True)
class Training:
    """One step of Adam on the parameters of `build`'s module; `other`, if any, takes part and stays as it is.

    `loss(F, module, other, *batch)`: a scalar, with F the namespace `nn.functional` of the library at hand.
    """

    build: Build
    loss: Callable[..., Any]
    draw: Callable[[np.random.Generator], tuple[Array, ...]]
    other: Build | None = None
    dtype: str = "float32"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)


@dataclass(frozen=True)
class Adam:
    """A step of Adam alone, with given gradients; `fused`: by the library's fused implementation."""

    shapes: tuple[tuple[int, ...], ...]
    fused: bool = False


@dataclass(frozen=True)
class Matmul:
    """(m, k) @ (k, n)."""

    m: int
    k: int
    n: int


@dataclass(frozen=True)
class Function:
    """An op alone, forward: an entry of `FUNCTIONS`."""

    name: str
    shape: tuple[int, ...]


#: By the name of a `Function`: what it is in minigrad and in torch, given the library and x.
FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "x + its first row": lambda lib, x: x + x[0],
    "exp": lambda lib, x: lib.exp(x),
    "x ** 3": lambda lib, x: x**3,
    "GELU": lambda lib, x: lib.nn.functional.gelu(x),
    "where(x > 0, x, 0)": lambda lib, x: lib.where(x > 0, x, 0.0),
    "norm": lambda lib, x: x.norm(),
    "sum along rows": lambda lib, x: x.sum(1),
    "maximum along rows": lambda lib, x: x.amax(1),
    "product along rows": lambda lib, x: x.prod(1),
    "running sum": lambda lib, x: x.cumsum(1),
    "x @ its first row": lambda lib, x: x @ x[0],
    "softmax along columns": lambda lib, x: lib.softmax(x, 0),
    "transposed copy": lambda lib, x: x.T.contiguous(),
}


@dataclass(frozen=True)
class Copy:
    """So many float32 numbers from one array into another."""

    size: int


@dataclass(frozen=True)
class Several:
    """Pieces of work one after another, all of them so many times."""

    parts: tuple[Derivative, ...]
    times: int


Work = Derivative | Training | Adam | Matmul | Function | Copy | Several


def random() -> np.random.Generator:
    """Each side draws its inputs from this: the same for all."""
    return np.random.default_rng(0)


def normal(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """An upstream gradient."""
    return np.random.default_rng(1).standard_normal(shape, dtype=dtype)  # type: ignore[call-overload]
