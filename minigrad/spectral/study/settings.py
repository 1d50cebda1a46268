"""What the user asked for, checked before any work starts."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

import minigrad as mg
from minigrad._errors import UsageError
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral.study.models import MODELS
from minigrad.spectral.study.training import RATE

#: Training steps by default: (is it the convolutional net?, --quick?).
STEPS = {(False, False): 150, (True, False): 80, (False, True): 40, (True, True): 25}
#: Training runs per convention.
SEEDS, QUICK_SEEDS = 5, 3


@dataclass(frozen=True)
class Settings:
    """The arguments of `minigrad study`, and what follows from them."""

    model: str
    steps: int
    layers: tuple[str, ...]  # empty: all
    conventions: tuple[str, ...]
    seed: int
    seeds: int
    device: str
    data: str | None
    out: str
    quick: bool
    width: int | None = None  # of the first layer; None: the model's own
    rate: float = RATE

    @property
    def opened_at(self) -> list[int]:
        """The steps at which the network is opened."""
        return sorted({0, self.steps} if self.quick else {0, self.steps // 10, self.steps})

    @property
    def random_directions(self) -> int:
        """Random directions per layer at the node."""
        return 16 if self.quick else 64

    @property
    def entries(self) -> int:
        """The smallest layer is differenced entry by entry, at the last step, if it has no more entries than this."""
        return 256 if self.quick else 1024

    @property
    def through_directions(self) -> int:
        """Random directions per layer through the network."""
        return 4 if self.quick else 64

    @property
    def reference(self) -> str:
        """The convention that the others are compared with in training."""
        return "fixed_uv" if "fixed_uv" in self.conventions else self.conventions[0]


def check(arguments: Namespace) -> Settings:
    """Settings out of parsed arguments; UsageError says what was expected, what came, and the way out."""
    quick = bool(arguments.quick)
    steps = arguments.steps if arguments.steps is not None else STEPS[arguments.model == "conv", quick]
    if steps < 1:
        raise UsageError(f"study --steps: expected at least 1 training step; got {steps}")
    seeds = QUICK_SEEDS if quick else SEEDS
    if arguments.seed < 0:
        raise UsageError(f"study --seed: expected a number that is not negative; got {arguments.seed}")
    if arguments.seed + seeds > 1 << 64:
        raise UsageError(
            f"study --seed: expected at most 2**64 - {seeds}, as {seeds} training runs count on from it; "
            f"got {arguments.seed}"
        )
    if arguments.model not in MODELS:
        raise UsageError(f"study --model: expected one of {', '.join(MODELS)}; got {arguments.model!r}")
    conventions = _names(arguments.conventions) or tuple(CONVENTIONS)
    if unknown := [name for name in conventions if name not in CONVENTIONS]:
        raise UsageError(f"study --conventions: there is no {unknown[0]!r}; choose among {', '.join(CONVENTIONS)}")
    if arguments.device not in ("cpu", "cuda"):
        raise UsageError(f"study --device: expected cpu or cuda; got {arguments.device!r}")
    if arguments.device == "cuda" and not mg.cuda.is_available():
        raise UsageError("study --device cuda: there is no usable CUDA device here. Use --device cpu.")
    return Settings(
        arguments.model,
        steps,
        _names(arguments.layers),
        conventions,
        arguments.seed,
        seeds,
        arguments.device,
        arguments.data,
        arguments.out,
        quick,
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def chosen_layers(settings: Settings, there: list[str]) -> list[str]:
    """The layers to open, in the network's order."""
    if unknown := [name for name in settings.layers if name not in there]:
        raise UsageError(
            f"study --layers: the {settings.model} network has no layer {unknown[0]!r}; choose among {', '.join(there)}"
        )
    return [name for name in there if not settings.layers or name in settings.layers]
