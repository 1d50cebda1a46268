"""Did every convention meet exactly the oracles that it must?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral.oracles import ORACLES
from minigrad.spectral.residuals import FLOOR, Residual
from minigrad.spectral.study.opening import STATES, Opened

#: Two oracles whose derivatives differ by less than this (over the scale) cannot be told apart by a residual.
APART = 1e3 * FLOOR


@dataclass(frozen=True)
class Cell:
    """One convention against one oracle over all layers and steps, at the cold vectors.

    Shown is the residual that speaks loudest against the claim: the largest where the convention must meet the oracle,
    the smallest (how near it came) where it must not, and the oracle is another function than its own. `distinct`:
    False if that is so nowhere.
    """

    convention: str
    oracle: str
    must: bool
    residual: float
    error: float
    where: str
    passed: bool
    distinct: bool


@dataclass(frozen=True)
class Verdict:
    """All cells, what failed, and over how much it was decided."""

    cells: list[Cell]
    failures: list[str]
    layers: int
    steps: list[int]
    differences: int

    @property
    def passed(self) -> bool:
        """True iff every convention met exactly the oracles that it must."""
        return not self.failures

    def cell(self, convention: str, oracle: str) -> Cell:
        """The cell of a convention and an oracle."""
        return next(c for c in self.cells if (c.convention, c.oracle) == (convention, oracle))


def must_meet(convention: str) -> str | None:
    """The oracle that a convention must meet, or None."""
    return CONVENTIONS[convention].oracle


def judge(openings: Sequence[Opened], conventions: Sequence[str]) -> Verdict:
    """The verdict over everything that was opened."""
    cells, failures = [], []
    for convention in conventions:
        for oracle in ORACLES:
            cell = _judge_cell(openings, convention, oracle)
            cells.append(cell)
            if not cell.passed:
                does, must = ("misses", "must") if cell.must else ("meets", "must not")
                failures.append(
                    f"{convention} {does} oracle ({ORACLES[oracle].letter}) {oracle}, which it {must} meet: "
                    f"residual {cell.residual:.1e} ± {cell.error:.0e} at {cell.where}"
                )
    return Verdict(
        cells,
        failures,
        len({o.layer for o in openings}),
        sorted({o.step for o in openings}),
        sum(o.residuals[s][0].directions for o in openings for s in STATES),
    )


def _judge_cell(openings: Sequence[Opened], convention: str, oracle: str) -> Cell:
    must = must_meet(convention) == oracle
    found = [
        (o, s, r)
        for o in openings
        for s in STATES
        for r in o.residuals[s]
        if (r.convention, r.oracle) == (convention, oracle)
    ]
    shown = [(o, s, r) for o, s, r in found if s == "cold"]
    others = [(o, s, r) for o, s, r in shown if must or _distinct(o, convention, r)]
    if must:  # for any vectors, converged or not
        wrong = [(o, s, r) for o, s, r in found if not r.meets]
        opening, state, worst = max(wrong or shown, key=lambda entry: entry[2].residual)
    else:
        wrong = [(o, s, r) for o, s, r in others if r.meets]
        opening, state, worst = min(wrong or others or shown, key=lambda entry: entry[2].residual)
    where = f"{opening.layer}, step {opening.step}, {state} vectors, {worst.direction}"
    return Cell(convention, oracle, must, worst.residual, worst.error, where, not wrong, bool(others))


def _distinct(opening: Opened, convention: str, residual: Residual) -> bool:
    """Is the oracle another function here than the one that the convention must meet? (Not so for a 1×n weight.)"""
    own = must_meet(convention)
    return own is None or opening.apart[" ".join(sorted((own, residual.oracle)))] > APART
