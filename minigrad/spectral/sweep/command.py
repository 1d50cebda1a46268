"""`minigrad sweep`: the arguments, and what happens from them to the exit code."""

from __future__ import annotations

import argparse
from typing import Any

from minigrad._errors import UsageError
from minigrad._interrupt import deferred
from minigrad.spectral.study._extras import require
from minigrad.spectral.sweep.plan import EXAMPLE, read

#: Packages that the report needs; asked for before the work starts, with the one that spreads it.
NEEDED = ("matplotlib", "rich", "jinja2", "sklearn")
#: What a shell says of a program that Ctrl-C has ended.
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `minigrad sweep`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"FILE.toml, where every key may be left out:\n\n{EXAMPLE}"
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE.toml", help="what to sweep over")
    add("--out", default="minigrad-sweep", metavar="FOLDER", help="for the results; cells finished there are not rerun")
    add("--jobs", type=int, default=-1, metavar="N", help="processes on this machine (default: one per core)")
    add("--dask", default=None, metavar="ADDRESS", help="a Dask scheduler, tcp://host:8786 for one, to run on instead")
    add("--seed", type=int, default=0, help="of the split of the data into training and test examples (default: 0)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Run what is not finished and write the report. 0: all cells passed; 1: some failed; 130: interrupted.

    UsageError for bad input: all but the data of a cell's own is looked at before the work starts.
    """
    if arguments.file is None:
        raise UsageError("sweep: expected a FILE.toml; `minigrad sweep --help` shows one")
    if arguments.jobs == 0 or arguments.jobs < -1:
        raise UsageError(f"sweep --jobs: expected at least 1, or -1 for one per core; got {arguments.jobs}")
    for package in (*NEEDED, "distributed" if arguments.dask else "joblib"):
        require(package, "sweep")
    from minigrad.spectral.study import models, output
    from minigrad.spectral.study.about import made_by
    from minigrad.spectral.study.data import load
    from minigrad.spectral.study.terminal import Terminal
    from minigrad.spectral.sweep import report
    from minigrad.spectral.sweep.results import Results
    from minigrad.spectral.sweep.store import Store

    plan = read(arguments.file, arguments.seed, arguments.device)
    data = load(plan.data, arguments.seed)
    models.plain(plan.cells[0].model, data.train_x.shape[1:], data.classes)  # UsageError if no cell could run on it
    folder = output.prepare(arguments.out, "sweep")
    store, terminal = Store(folder / "cells"), Terminal()
    results = Results(plan.cells, {cell: kept for cell in plan.cells if (kept := store.find(cell)) is not None})
    if results.finished:
        terminal.console.print(f"{len(results.finished)} of {len(plan.cells)} cells were finished before.")
    try:
        _conduct(results, store, data, terminal, arguments)
    except KeyboardInterrupt:
        results.interrupted = True
    told = made_by(_words(arguments), arguments.seed, "float32 training")
    summary = {"minigrad": told, "sentence": report.sentence(results), "interrupted": results.interrupted}
    page = report.render(results, told, plan.text)
    files = output.write(folder, page, summary, {"sweep": results.rows}, "sweep")
    good = report.mark(results) == "finished"
    terminal.console.print(f"[bold {'green' if good else 'red'}]{report.mark(results)}[/]  {report.sentence(results)}")
    terminal.console.print(f"Report: {files[-1]}, every cell: {folder / 'sweep.csv'}", soft_wrap=True, markup=False)
    return INTERRUPTED if results.interrupted else 0 if good else 1


def _conduct(results: Any, store: Any, data: Any, terminal: Any, arguments: argparse.Namespace) -> None:
    """Run the cells that are not finished, keeping each as it comes."""
    from minigrad.spectral.sweep import engine

    left = [cell for cell in results.cells if cell not in results.finished]
    if not left:
        return
    where = engine.cluster(arguments.dask) if arguments.dask else engine.processes(arguments.jobs)
    with where as start, terminal.stage("cells", len(left)) as done:
        for cell, outcome in start(left, data):
            if isinstance(outcome, str):
                results.failed[cell] = outcome
                terminal.console.print(f"failed: {cell}: {outcome}", style="red", markup=False, soft_wrap=True)
            else:
                with deferred():  # so that the report has every cell that is kept
                    store.keep(cell, outcome)
                    results.finished[cell] = outcome
            done()


def _words(arguments: argparse.Namespace) -> list[str]:
    words = ["minigrad", "sweep", arguments.file, "--out", arguments.out, "--seed", str(arguments.seed)]
    return words + ["--device", arguments.device] * (arguments.device != "cpu")
