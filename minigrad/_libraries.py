"""`minigrad libraries`: what each library's spectral normalization computes, as a table or one library in detail."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable

from minigrad._errors import UsageError
from minigrad.spectral.emulation import LIBRARIES
from minigrad.spectral.libraries import SHAPE, TINY, Row, findings, measure, short
from minigrad.spectral.oracles import ORACLES

WIDTH = 100  # of the tables; in a terminal with fewer columns, each library is a paragraph
GRADIENTS, CALLS = (12, 21, 17, 17, 17, 7, 9), (12, 37, 27, 13, 10)
DIRECTIONS = (11, 15, 23, 23, 23)

Show = Callable[[str, str], None]  # a line and its style


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `minigrad libraries`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"show these in detail: {', '.join(LIBRARIES)}")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of the weight, the vectors and G (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Print the libraries; 0 if each meets exactly the oracle that the table says, else 1."""
    if unknown := [name for name in arguments.names if name not in LIBRARIES]:
        raise UsageError(f"libraries: there is no {unknown[0]!r}; choose among {', '.join(LIBRARIES)}")
    width, show = _terminal()
    rows = [measure(name, arguments.seed, arguments.device) for name in arguments.names or LIBRARIES]
    if arguments.names:
        for row in rows:
            _detail(show, row, width)
    else:
        (_tables if width >= WIDTH else _paragraphs)(show, rows, width)
        for finding in findings(rows):
            _wrapped(show, finding, width, "· ")
        show("", "")
    failed = sum(not row.passed for row in rows)
    show(f"{len(rows) - failed} as the table says, {failed} not", "bold red" if failed else "bold")
    return 1 if failed else 0


def _tables(show: Show, rows: list[Row], width: int) -> None:
    show("∂L/∂W against differences of three functions, over ‖G‖/σ; random G, u and v unconverged", "bold")
    heads = [f"({oracle.letter}) {oracle.name}" for oracle in ORACLES.values()]
    show(_columns(GRADIENTS, ["", "∂L/∂W", *heads, "meets", ""]), "dim")
    for row in rows:
        cells = [f"{held.residual:.1e} ± {held.error:.0e}" for held in row.held.values()]
        line = [row.name, row.gradient, *cells, _met(row), "ran" if row.library.ran else "read only"]
        show(_columns(GRADIENTS, line), "" if row.passed else "bold red")
    show("", "")
    show("What else a call does", "bold")
    show(_columns(CALLS, ["", "version", "evaluation uses", "W ← W̄", f"‖W̄‖ at {short(TINY)}"]), "dim")
    for row in rows:
        show(_columns(CALLS, [row.name, row.library.version, row.evaluation, row.overwritten, short(row.tiny, 4)]), "")
    show("", "")


def _paragraphs(show: Show, rows: list[Row], width: int) -> None:
    for row in rows:
        show(row.name, "bold" if row.passed else "bold red")
        known = _facts(row)
        for name in ("version", "∂L/∂W", *(f"({o.letter}) {o.name}" for o in ORACLES.values()), "meets", "evaluation"):
            _wrapped(show, known[name], width, f"  {_padded(name, 12)}")
        show("", "")


def _detail(show: Show, row: Row, width: int) -> None:
    show(row.name, "bold" if row.passed else "bold red")
    for name, fact in _facts(row).items():
        _wrapped(show, fact, width, f"  {_padded(name, 12)}")
    show("", "")
    held = list(row.held.values())
    wide = width >= WIDTH
    show("Along unit directions, over ‖G‖/σ" if wide else "|∂L/∂W − difference|, over ‖G‖/σ", "bold")
    heads = [f"({ORACLES[one.oracle].letter}) {one.oracle}" for one in held]
    widths = DIRECTIONS if wide else (11, 12, 10, 9)
    show(_columns(widths, ["", *(["∂L/∂W"] if wide else []), *heads]), "dim")
    for i, direction in enumerate(held[0].along):
        if wide:
            numbers = [f"{held[0].analytic[i]:+.10f}", *(f"{h.numeric[i]:+.10f} ± {h.errors[i]:.0e}" for h in held)]
        else:
            numbers = [f"{abs(h.analytic[i] - h.numeric[i]):.1e}" for h in held]
        show(_columns(widths, [direction, *numbers]), "")
    show("", "")


def _facts(row: Row) -> dict[str, str]:
    """All but the directions: name -> what was found."""
    outputs, inputs = SHAPE
    known = "ran: what it computed is in tests/golden" if row.library.ran else "read only, in its source"
    against = {}
    for h in row.held.values():
        where = h.along[h.worst].replace(" ", "\u00a0")
        against[f"({ORACLES[h.oracle].letter}) {h.oracle}"] = f"{h.residual:.1e} ± {h.error:.0e} of ‖G‖/σ, at {where}"
    tiny = f"{short(row.tiny, 4)} where ‖W‖ is {short(TINY)}, by its ε"
    return {
        "version": f"{row.library.version} ({known})",
        "W ↦ W̄": row.function,
        "∂L/∂W": f"{row.gradient}, the convention {row.library.gradient!r}",
        "measured": f"dense layer, {outputs} outputs, {inputs} inputs, float64, seed {row.seed}; u and v one sweep "
        f"from random, where uᵀMv is {row.cold:.1%} of σ₁; G random",
        **against,
        "meets": _met(row) + ("" if row.passed else f", where the table says {row.expected or 'none'}"),
        "training": f"W̄ is W/uᵀMv to {row.forward:.0e}",
        "the paper's": f"{row.angle:.2g}° from (G − λ u vᵀ)/σ, relative error {row.relative:.2g}",
        "⟨∂L/∂W, W⟩": f"{row.radial:.2g}, where λ = {row.lam:.2g}",
        "evaluation": f"{row.evaluation}, {row.evaluation_gap:.2g} from the W̄ of training",
        "W ← W̄": row.overwritten,
        "norm": f"‖W̄‖ is {row.converged:.6g} at converged u, v; {tiny}",
        "again": row.command,
        "evidence": row.evidence or f"read only: {row.caveat}",
    }


def _met(row: Row) -> str:
    return ", ".join(row.met) or "none"


# Text ----------------------------------------------------------------------------------------------------------------


def _terminal() -> tuple[int, Show]:
    """The columns there are, and a function that prints a line: in its style where there is a terminal and rich."""
    if not sys.stdout.isatty():
        return WIDTH, lambda line, style: print(line)
    width = min(WIDTH, shutil.get_terminal_size().columns)
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return width, lambda line, style: print(line)
    console = Console()
    return width, lambda line, style: console.print(Text(line, style), soft_wrap=True)


def _columns(widths: Iterable[int], cells: Iterable[str]) -> str:
    return "".join(map(_padded, cells, widths)).rstrip()


def _padded(text: str, width: int) -> str:
    """To a width in columns: the bar of W̄ takes none."""
    return text + " " * (width - sum(not unicodedata.combining(letter) for letter in text))


def _wrapped(show: Show, text: str, width: int, head: str) -> None:
    under = " " * sum(not unicodedata.combining(letter) for letter in head)
    for line in textwrap.wrap(text, width, initial_indent=head, subsequent_indent=under, break_on_hyphens=False):
        show(line, "")
