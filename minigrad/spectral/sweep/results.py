"""What a sweep has found: every cell as a row, and means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from minigrad.spectral.study.statistics import interval
from minigrad.spectral.study.tables import Row
from minigrad.spectral.sweep.plan import Cell

#: What is averaged over seeds and drawn.
MEASURES = {"accuracy": "test accuracy", "loss": "test loss"}
#: All that a cell may have measured; a training measures the first two.
COLUMNS = ("accuracy", "loss", "residual", "nearest", "passed", "failures", "seconds")


@dataclass(frozen=True)
class Mean:
    """Over the seeds: the mean, and half of its 95% interval (NaN for a single seed)."""

    value: float
    half: float


@dataclass(frozen=True)
class Group:
    """The cells that differ in their seed only."""

    convention: str
    width: int
    learning_rate: float
    finished: int
    cells: int
    means: dict[str, Mean]  # of what is finished
    residual: float | None
    nearest: float | None
    passed: int

    def __str__(self) -> str:
        return f"{self.convention}, width {self.width}, learning rate {self.learning_rate:g}"


@dataclass
class Results:
    """The cells of a sweep, and what came of those that have run."""

    cells: list[Cell]
    finished: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def study(self) -> bool:
        """Are the cells studies, which pass or do not?"""
        return self.cells[0].run == "study"

    @property
    def refuted(self) -> dict[Cell, str]:
        """The studies in which the convention did not meet exactly the oracle that it must, and where."""
        return {cell: str(m["failures"]) for cell, m in self.finished.items() if m.get("passed") is False}

    @property
    def rows(self) -> list[Row]:
        """One row per cell, whatever came of it."""
        rows = []
        for cell in self.cells:
            measures = self.finished.get(cell, {})
            state = "finished" if cell in self.finished else "failed" if cell in self.failed else "not run"
            told = {name: measures.get(name) for name in COLUMNS}
            rows.append(asdict(cell) | {"state": state} | told | {"error": self.failed.get(cell)})
        return rows

    @property
    def groups(self) -> list[Group]:
        """The means over seeds, in the order of the file."""
        return [self._group(point) for point in dict.fromkeys(cell.group for cell in self.cells)]

    def _group(self, point: tuple[str, int, float]) -> Group:
        cells = [cell for cell in self.cells if cell.group == point]
        found = [self.finished[cell] for cell in cells if cell in self.finished]
        means = {name: mean([one[name] for one in found]) for name in MEASURES} if found else {}
        residuals = [one["residual"] for one in found if one.get("residual") is not None]
        nearest = [one["nearest"] for one in found if one.get("nearest") is not None]
        passed = sum(one.get("passed") is True for one in found)
        return Group(
            *point, len(found), len(cells), means, max(residuals, default=None), min(nearest, default=None), passed
        )


def mean(values: Sequence[float]) -> Mean:
    """The mean and half of its 95% interval, by Student's t.

    >>> mean([1.0, 3.0])
    Mean(value=2.0, half=12.706...)
    """
    if len(values) < 2:
        return Mean(values[0], math.nan)
    found = interval(values)
    return Mean(found.mean, found.half)
