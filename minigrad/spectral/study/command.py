"""`minigrad study`: the arguments, and what happens from them to the exit code."""

from __future__ import annotations

import argparse

from minigrad.spectral.study._extras import require

#: Packages of the `study` extra, all asked for before the work starts.
NEEDED = ("matplotlib", "rich", "jinja2", "sklearn")
#: What a shell says of a program that Ctrl-C has ended.
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `minigrad study`."""
    add = parser.add_argument
    add("--model", default="mlp", help="the network: mlp or conv (default: mlp)")
    add(
        "--steps",
        type=int,
        default=None,
        help="training steps of each run (default: 150; conv 80; fewer with --quick)",
    )
    add("--layers", default=None, metavar="A,B", help="the layers to open, by name (default: all)")
    add("--conventions", default=None, metavar="A,B", help="the gradient conventions to study (default: all)")
    add("--data", default=None, metavar="FILE.npz", help="arrays x and y to train on (default: scikit-learn's digits)")
    add("--out", default="minigrad-study", metavar="FOLDER", help="where the report goes (default: minigrad-study)")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--quick", action="store_true", help="fewer steps, seeds and directions: under 15 seconds")


def run(arguments: argparse.Namespace) -> int:
    """Conduct the study and write its report. 0: passed; 1: a convention failed; 130: interrupted.

    UsageError for bad input: everything that can be wrong with it is looked at before the work starts.
    """
    for package in NEEDED:
        require(package)
    from minigrad.spectral.study.about import about
    from minigrad.spectral.study.data import load
    from minigrad.spectral.study.output import prepare, write
    from minigrad.spectral.study.report import mark, render, sentence
    from minigrad.spectral.study.settings import check
    from minigrad.spectral.study.study import Study
    from minigrad.spectral.study.tables import tables
    from minigrad.spectral.study.terminal import Terminal

    settings = check(arguments)
    data = load(settings.data, settings.seed)
    terminal = Terminal()
    study = Study(settings, data, terminal)
    folder = prepare(settings.out)
    results = study.conduct()
    rows = tables(results)
    told = about(settings)
    verdict = results.verdict
    passed = verdict is not None and verdict.passed
    summary = {
        "minigrad": told,
        "data": results.data,
        "passed": passed,
        "unfinished": results.unfinished,
        "sentence": sentence(verdict),
    }
    files = write(folder, render(results, told, [name for name in rows if rows[name]]), summary, rows)
    terminal.show(results, mark(verdict), sentence(verdict), files)
    return INTERRUPTED if results.unfinished else 0 if passed else 1
