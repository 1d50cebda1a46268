"""What a sweep's file asks for: its keys, checked, and the cells that they span."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minigrad._errors import UsageError
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral.study.models import MODELS
from minigrad.spectral.study.settings import STEPS
from minigrad.spectral.study.training import RATE

KINDS = ("training", "study")

EXAMPLE = """\
run = "training"                      # or "study": train with fixed_uv, hold the convention against differences
model = "mlp"                         # or "conv"
steps = 150                           # of training, in each cell
seeds = [0, 1, 2, 3, 4]               # error bars are over these
conventions = ["fixed_uv", "detached"]
widths = [64, 128]                    # of the first layer; the others follow from it
learning_rates = [0.03, 0.1, 0.3]
data = "own.npz"                      # arrays x and y, beside this file; left out: scikit-learn's digits
"""


@dataclass(frozen=True)
class Cell:
    """One run, and all that its result depends on."""

    run: str
    model: str
    data: str  # name and digest
    steps: int
    split: int  # the seed that split the data
    device: str
    seed: int
    convention: str
    width: int
    learning_rate: float

    @property
    def key(self) -> str:
        """The same for the same settings, and for no others."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]

    @property
    def group(self) -> tuple[str, int, float]:
        """What the cells that differ in their seed only have in common."""
        return self.convention, self.width, self.learning_rate

    def __str__(self) -> str:
        return f"{self.convention}, width {self.width}, learning rate {self.learning_rate:g}, seed {self.seed}"


class Key(NamedTuple):
    """What a key of the file may hold."""

    several: bool  # a list of them
    allowed: str
    fits: Callable[[Any], bool]


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and least <= x < 1 << 64  # True is an int to isinstance


def _rate(x: Any) -> bool:
    return type(x) in (int, float) and 0 < x <= sys.float_info.max  # an int may be larger


KEYS = {
    "run": Key(False, " or ".join(KINDS), KINDS.__contains__),
    "model": Key(False, " or ".join(MODELS), tuple(MODELS).__contains__),
    "steps": Key(False, "a whole number, at least 1", _whole(1)),
    "seeds": Key(True, "whole numbers, at least 0", _whole(0)),
    "conventions": Key(True, f"names out of {', '.join(CONVENTIONS)}", tuple(CONVENTIONS).__contains__),
    "widths": Key(True, "whole numbers, at least 2", _whole(2)),
    "learning_rates": Key(True, "finite numbers above 0", _rate),
    "data": Key(False, "the path of an .npz", lambda x: type(x) is str),
}


@dataclass(frozen=True)
class Plan:
    """The cells in the order in which they run: seed by seed, so that an interrupted sweep is one of fewer seeds."""

    text: str
    data: str | None
    cells: list[Cell]


def read(path: str, split: int, device: str) -> Plan:
    """The plan in a TOML file. UsageError names the file, the key, what is allowed, and what came."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        given = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"sweep: cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # tomllib's, and what is no UTF-8
        raise UsageError(f"sweep: expected TOML in {path}: {error}") from None
    for name, value in given.items():
        if name not in KEYS:
            raise UsageError(f"sweep: {path} has a key {name!r}, which is none of {', '.join(KEYS)}")
        _check(path, name, KEYS[name], value)
    model = given.get("model", "mlp")
    data = given.get("data")
    data = data and str(Path(path).parent / data)
    axes = (
        given.get("seeds", [0, 1, 2, 3, 4]),
        given.get("conventions", ["fixed_uv"]),
        given.get("widths", [MODELS[model]]),
        map(float, given.get("learning_rates", [RATE])),
    )
    shared = (given.get("run", "training"), model, _named(data), given.get("steps", STEPS[model == "conv", False]))
    cells = [Cell(*shared, split, device, *point) for point in itertools.product(*map(dict.fromkeys, axes))]
    return Plan(text, data, cells)


def _check(path: str, name: str, key: Key, value: Any) -> None:
    expected = f"sweep: {name} in {path}: expected {'a list of ' * key.several}{key.allowed}"
    if key.several and (type(value) is not list or not value):
        raise UsageError(f"{expected}; got {value!r}")
    for one in value if key.several else [value]:
        if not key.fits(one):
            raise UsageError(f"{expected}; got {one!r}")


def _named(data: str | None) -> str:
    """The data's name, and a digest of the file: other data under the same name is another sweep."""
    if data is None:
        return "scikit-learn digits"
    try:
        return f"{Path(data).name} {hashlib.sha256(Path(data).read_bytes()).hexdigest()[:12]}"
    except (OSError, ValueError) as error:  # the second for a NUL in the name
        raise UsageError(f"sweep: cannot read the data {data!r}: {getattr(error, 'strerror', error)}") from None
