"""A run: for each case the sides begin, are compared, and are timed in turns."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from benchmarks.cases import Case
from benchmarks.timer import Pace, Stopwatch, interleave, wall_clock
from benchmarks.work import Array, LeftOut, Running

#: Steps after which the sides are compared: as many as CUDA graphs need to be captured, and the first replayed one.
STEPS = 4


class Side(Protocol):
    """A library that does work."""

    name: str
    version: str

    def start(self, case: Case) -> Running: ...
    def synchronize(self) -> None: ...


class Disagreement(Exception):
    """Two sides computed different numbers; they are not timed."""


@dataclass
class Result:
    """What came of a case: side -> seconds per call, round by round, and why others are left out."""

    case: Case
    seconds: dict[str, tuple[float, ...]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)  # from the first side
    left_out: dict[str, str] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)  # side -> bytes at the peak, in a process of its own
    failure: str = ""


def _class(module: str, name: str) -> Callable[[], Side]:
    return lambda: getattr(importlib.import_module(f"benchmarks.{module}"), name)()


#: Name -> the package that it needs, and what makes the side.
SIDES: dict[str, tuple[str, Callable[[], Side]]] = {
    "minigrad": ("minigrad", _class("eager", "Minigrad")),
    "minigrad, captured": ("minigrad", _class("eager", "CapturedMinigrad")),
    "torch": ("torch", _class("eager", "Torch")),
    "torch.compile": ("torch", _class("eager", "CompiledTorch")),
    "JAX jit": ("jax", _class("with_jax", "JAX")),
    "NumPy": ("numpy", _class("with_numpy", "NumPy")),
}


def made(name: str) -> Side:
    """The side, in this process. Its package comes before minigrad: its threads shall wait as they do without it."""
    package, make = SIDES[name]
    importlib.import_module(package)
    return make()


def difference(found: Array, expected: Array) -> float:
    """‖found − expected‖ / ‖expected‖; infinite for other shapes or dtypes, or what is not finite."""
    if found.shape != expected.shape or found.dtype != expected.dtype or not np.isfinite(found).all():
        return np.inf
    scale = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(found.astype(np.float64) - expected)) / (scale or 1.0)


def compare(case: Case, results: dict[str, dict[str, Array]]) -> dict[str, float]:
    """Side -> its largest difference from the first. Disagreement names the side, the array and the difference."""
    (first, expected), *others = results.items()
    largest: dict[str, float] = {}
    for name, found in others:
        if found.keys() != expected.keys():
            apart = sorted(found.keys() ^ expected.keys())
            raise Disagreement(f"{case.name}: only one of {first} and {name} computed {', '.join(apart)}")
        differences = {key: difference(found[key], expected[key]) for key in expected}
        worst = max(differences, key=differences.__getitem__)
        largest[name] = differences[worst]
        if not differences[worst] <= case.tolerance:
            raise Disagreement(
                f"{case.name}: {worst} of {name} and of {first} differ by {differences[worst]:.1e} of its norm; "
                f"expected at most {case.tolerance:.0e}"
            )
    return largest


def one(case: Case, sides: list[Side], pace: Pace, stopwatch: Stopwatch = wall_clock) -> Result:
    """Begin, compare, time. A peer that fails is left out; if the first side does, or two disagree, none is timed."""
    result = Result(case)
    running: dict[str, Running] = {}
    made: dict[str, dict[str, Array]] = {}
    for side in sides:
        try:
            if side.name in case.without:
                raise LeftOut(case.without[side.name])
            running[side.name] = work = side.start(case)
            for _ in range(STEPS):
                returned: Any = work.step()
            side.synchronize()
            made[side.name] = work.results(returned)
        except LeftOut as why:
            result.left_out[side.name] = str(why)
        except Exception as error:  # what a library fails at must not cost the cases that follow
            words = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            if side is sides[0]:
                result.failure = f"{case.name}: {side.name} failed with {words}"
                return result
            result.left_out[side.name] = f"failed with {words}"
            running.pop(side.name, None)
    try:
        result.differences = compare(case, made)
    except Disagreement as failure:
        result.failure = str(failure)
        return result
    result.seconds = interleave({name: work.step for name, work in running.items()}, pace, stopwatch)
    return result
