"""What the study shows in the terminal: a progress bar, and tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigrad.spectral.libraries import summary as libraries
from minigrad.spectral.oracles import ORACLES
from minigrad.spectral.study._extras import require
from minigrad.spectral.study.comparison import MEASURES
from minigrad.spectral.study.lipschitz import summary as steepness
from minigrad.spectral.study.second_order import summary as second_order
from minigrad.spectral.study.study import Results

#: A table never asks for more columns than this.
WIDEST = 100


class Terminal:
    """A rich console: stages with progress bars while the study runs, tables when it has run."""

    def __init__(self) -> None:
        console = require("rich.console")
        self.console: Any = console.Console(highlight=False, emoji=False)
        if self.console.width > WIDEST or not self.console.is_terminal:
            self.console.width = WIDEST

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """A progress bar for a stage of so many parts."""
        progress = require("rich.progress")
        columns = (
            progress.TextColumn("{task.description:<31}"),
            progress.BarColumn(bar_width=None),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
        )
        with progress.Progress(*columns, console=self.console) as bar:
            task = bar.add_task(name, total=total)
            yield lambda: bar.advance(task)
            bar.update(task, completed=total)

    def show(self, results: Results, mark: str, sentence: str, files: list[Path]) -> None:
        """The layers, the verdict, the comparison, and where the report lies."""
        if results.openings:
            self.console.print(self._layers(results))
            self.console.print(self._verdict(results))
        if results.differences:
            self.console.print(self._differences(results))
        if results.libraries:
            self.console.print(f"Libraries: {libraries(results.libraries)}. [dim]minigrad libraries[/]")
        if results.second:
            self.console.print(f"Second order, true pair: {second_order(results.second)}.")
        if results.steepness:
            self.console.print(f"Steepness: {steepness(results.steepness)}.")
        if results.unfinished:
            self.console.print(
                f"[bold red]Interrupted[/] at “{results.unfinished}”; what was finished is in the report."
            )
        self.console.print(f"[bold {'green' if mark == 'passed' else 'red'}]{mark}[/]  {sentence}")
        for failure in results.verdict.failures if results.verdict else []:
            self.console.print(f"  [red]✗[/] {failure}")
        report = f"Report: {files[-1]} (and {len(files) - 1} files of numbers beside it)"
        self.console.print(report, soft_wrap=True, markup=False)

    def _table(self, title: str, *columns: str, left: int = 1) -> Any:
        table = require("rich.table").Table(
            title=title, title_justify="left", title_style="bold", box=require("rich.box").SIMPLE_HEAD
        )
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i < left else "right", no_wrap=True)
        return table

    def _layers(self, results: Results) -> Any:
        table = self._table("Layers", "layer", "step", "σ̂", "σ₁", "σ₂/σ₁", "λ", "‖∂L/∂W‖", "⟨∂L/∂W, W⟩")
        for opened in sorted(results.openings, key=lambda o: results.layers.index(o.layer)):
            n = opened.numbers
            table.add_row(
                opened.layer, str(opened.step), f"{n.sigma_hat:.4f}", f"{n.sigma:.4f}", f"{n.gap:.4f}", f"{n.lam:.3g}",
                f"{n.gradient:.3g}", f"{n.radial:.0e}",
            )  # fmt: skip
        return table

    def _verdict(self, results: Results) -> Any:
        verdict = results.verdict
        assert verdict is not None
        heads = [f"({o.letter}) {o.name}" for o in ORACLES.values()]
        table = self._table(
            "Residual ± error of the difference, at the node, u and v unconverged", "convention", *heads
        )
        for name in results.settings.conventions:
            cells = []
            for oracle in ORACLES:
                cell = verdict.cell(name, oracle)
                style = "bold red" if not cell.passed else "green" if cell.must else "dim"
                sign = "✗ " if not cell.passed else "✓ " if cell.must else ""
                cells.append(f"[{style}]{sign}{cell.residual:.1e} ± {cell.error:.0e}[/]")
            table.add_row(name, *cells)
        return table

    def _differences(self, results: Results) -> Any:
        table = self._table(
            f"Training: minus {results.settings.reference}, paired over seeds, 95% intervals, Holm's p",
            "convention", "measure", "difference", "p", "", left=2,
        )  # fmt: skip
        for pair in results.differences:
            found = pair.difference
            said = "[bold]detected[/]" if pair.detected else "[dim]none detected[/]"
            numbers = (
                f"{found.mean:+.4f} ± {found.half:.4f}",
                f"{pair.adjusted_p:.3f}" if pair.adjusted_p >= 0.001 else "<0.001",
            )
            table.add_row(pair.convention, MEASURES[pair.measure], *numbers, said)
        return table
