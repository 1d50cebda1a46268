"""`minigrad gradcheck`: every layer and every convention of spectral normalization, held against finite differences.

A layer must agree with differences of itself, at first and at second order. A convention must agree with the function
that it claims to differentiate, its oracle, written in plain NumPy; one that claims none must agree with no oracle.
Both are held at u and v that have not converged, where the conventions differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

import minigrad as mg
from minigrad._cases import Case, layers
from minigrad._comparisons import Comparison, Function, GradcheckError, comparisons, second_order
from minigrad.ops.conventions import CONVENTIONS, apply
from minigrad.spectral.oracles import ORACLES, Array, Oracle, sweep, unit

ENTRYWISE = 16  # larger inputs of a layer are checked along random directions
SWEEPS = 2  # of the live oracle, from vectors that have made one
WEIGHTS = {"(5, 4)": ((5, 4), 0), "(4, 3, 2, 2), dim 1": ((4, 3, 2, 2), 1)}
COLUMNS = "{:42}{:18}{:18}{:22}"  # of the table: 100 characters


class Residual(NamedTuple):
    """The worst of some comparisons, relative to the largest derivative among them."""

    residual: float
    error: float
    agrees: bool

    def __str__(self) -> str:
        return f"{self.residual:.1e} ± {self.error:.0e}"


class Row(NamedTuple):
    """One line of the table."""

    name: str
    first: Residual | str  # or why there is none
    second: Residual | str
    verdict: str
    passed: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `minigrad gradcheck`."""
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of inputs, parameters and directions (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, a row as soon as it is known; 0 if all checks passed, else 1."""
    cases = list(layers(arguments.seed, arguments.device))
    total = len(cases) + len(WEIGHTS) * len(CONVENTIONS)
    failed = 0
    with _terminal(total) as show:
        _head(show, "Layers, against differences of themselves")
        for case in cases:
            failed += _show(show, layer(case, arguments.seed))
        for weight in WEIGHTS:
            _head(show, f"Gradient conventions against their oracles, u and v unconverged, weight {weight}")
            for name in CONVENTIONS:
                failed += _show(show, convention(name, weight, arguments.seed, arguments.device))
    print(f"{total - failed} passed, {failed} failed")
    return 1 if failed else 0


def layer(case: Case, seed: int) -> Row:
    """A layer against differences of its values, and its first gradients against differences of those."""

    def first() -> Residual:
        return _worst(comparisons(case.fn, case.inputs, seed=seed, entrywise=ENTRYWISE))

    def second() -> Residual:
        fn, inputs, names = second_order(case.fn, case.inputs, seed=seed)
        return _worst(comparisons(fn, inputs, seed=seed, names=names, entrywise=ENTRYWISE))

    residuals = _tried(first, GradcheckError), _tried(second, GradcheckError)
    agrees = all(isinstance(residual, Residual) and residual.agrees for residual in residuals)
    return Row(case.name, *residuals, "agrees" if agrees else "WRONG", agrees)


def convention(name: str, weight: str, seed: int, device: str) -> Row:
    """A convention against the oracle that it must meet; one that must meet none against the nearest."""
    must = CONVENTIONS[name].oracle
    oracles = [oracle for oracle in ORACLES.values() if must in (None, oracle.name)]
    held = [_Held(name, oracle, *WEIGHTS[weight], seed, device) for oracle in oracles]
    firsts = [one.first() for one in held]
    nearest = min(range(len(held)), key=lambda i: firsts[i].residual)
    first, second = firsts[nearest], _tried(held[nearest].second, RuntimeError)
    label = f"{name}, against {oracles[nearest].name}"
    if must is None:
        met = [oracle.name for oracle, residual in zip(oracles, firsts, strict=True) if residual.agrees]
        return Row(label, first, second, f"MEETS {met[0]}" if met else "meets none, as known", not met)
    passed = first.agrees and isinstance(second, Residual) and second.agrees
    return Row(label, first, second, f"meets {must}" if passed else f"FAILS {must}", passed)


class _Held:
    """One convention held against one oracle, at a random weight and at vectors that have made one sweep."""

    def __init__(self, name: str, oracle: Oracle, shape: tuple[int, ...], dim: int, seed: int, device: str):
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=shape)
        self.oracle, self.dim, self.shape, self.seed = oracle, dim, shape, seed
        matrix = self._matrix(weight)
        self.u, self.v = sweep(matrix, unit(rng.normal(size=matrix.shape[1])))
        self.weight = mg.tensor(weight, dtype=mg.float64, device=device, requires_grad=True)
        u, v = (mg.tensor(x, dtype=mg.float64, device=device) for x in (self.u, self.v))
        self.fn: Function = lambda w: apply(name, w, u, v, n_power_iterations=SWEEPS, dim=dim)

    def _matrix(self, weight: Array) -> Array:
        return np.moveaxis(weight, self.dim, 0).reshape(self.shape[self.dim], -1)

    def _tensor(self, matrix: Array) -> mg.Tensor:
        others = self.shape[: self.dim] + self.shape[self.dim + 1 :]
        weight = np.moveaxis(matrix.reshape(self.shape[self.dim], *others), 0, self.dim)
        return mg.tensor(weight, dtype=mg.float64, device=self.weight.device)

    def first(self) -> Residual:
        """Its gradient against differences of the oracle."""

        def against(w: mg.Tensor) -> mg.Tensor:
            return self._tensor(self.oracle.normalize(self._matrix(w.numpy()), self.u, self.v, SWEEPS))

        return _worst(comparisons(self.fn, self.weight, seed=self.seed, against=against))

    def second(self) -> Residual:
        """Its second derivatives against differences of the oracle's gradient, which has a closed form."""

        def against(w: mg.Tensor, g: mg.Tensor) -> mg.Tensor:
            upstream, weight = self._matrix(g.numpy()), self._matrix(w.numpy())
            return self._tensor(self.oracle.gradient(upstream, weight, self.u, self.v, SWEEPS))

        first, inputs, names = second_order(self.fn, self.weight, seed=self.seed)
        return _worst(comparisons(first, inputs, seed=self.seed, names=names, against=against))


def _tried(compute: Callable[[], Residual], trouble: type[Exception]) -> Residual | str:
    try:
        return compute()
    except trouble as error:
        return str(error)


def _worst(comparisons: Iterable[Comparison]) -> Residual:
    compared = list(comparisons)
    scale = max(abs(c.numeric) for c in compared) or 1.0
    worst = max(compared, key=lambda c: c.residual)
    return Residual(worst.residual / scale, worst.error / scale, all(c.excess <= 1 for c in compared))


# The table -----------------------------------------------------------------------------------------------------------

Show = Callable[[str, str, int], None]  # a line, its style, and how many checks it completes


def _head(show: Show, title: str) -> None:
    show("", "", 0)
    show(title, "bold", 0)
    show(COLUMNS.format("", "order 1", "order 2", "verdict").rstrip(), "dim", 0)


def _show(show: Show, row: Row) -> bool:
    """Show a row; did it fail?"""
    numbers = [str(x) if isinstance(x, Residual) else "refused" for x in (row.first, row.second)]
    show(COLUMNS.format(row.name, *numbers, row.verdict).rstrip(), "" if row.passed else "bold red", 1)
    if not row.passed:
        for trouble in {x for x in (row.first, row.second) if isinstance(x, str)}:
            show(f"  {trouble}", "red", 0)
    return not row.passed


@contextmanager
def _terminal(total: int) -> Iterator[Show]:
    """A function that prints a line: in its style and above a progress bar where there is a terminal and rich."""
    try:
        from rich.console import Console
        from rich.progress import Progress
        from rich.text import Text
    except ImportError:
        Console = None  # type: ignore[assignment,misc]
    if Console is None or not sys.stdout.isatty():
        yield lambda line, style, checks: print(line, flush=True)
        return
    with Progress(console=Console(), transient=True) as progress:
        task = progress.add_task("checking", total=total)

        def show(line: str, style: str, checks: int) -> None:
            progress.console.print(Text(line, style), soft_wrap=True)
            progress.advance(task, checks)

        yield show
