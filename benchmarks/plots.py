"""The plots: ratios of all cases, time and memory against size, and starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report import ours, ratios
from benchmarks.suite import Result
from benchmarks.timer import Spread

#: Okabe and Ito's colours, told apart by everybody.
COLOURS = {
    "minigrad": "#d55e00", "minigrad, captured": "#cc79a7", "torch": "#0072b2", "torch.compile": "#009e73",
    "torch, CUDA graphs": "#009e73", "JAX jit": "#56b4e9", "NumPy": "#777777",
}  # fmt: skip
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 10, "axes.titleweight": "bold",
}  # fmt: skip


def draw(folder: Path, stem: str, results: Sequence[Result], starts: Sequence[dict[str, Any]]) -> list[Path]:
    """The plots that there is something for, as PNG files whose names begin with `stem`."""
    curves = [r for r in results if r.case.size and r.seconds]
    rows = [r for r in results if not r.case.size and len(r.seconds) > 1]
    made: list[Path] = []
    with matplotlib.rc_context(STYLE):
        figures = {"ratios": (rows, ratio_plot), "scaling": (curves, scaling_plot), "starts": (starts, start_plot)}
        for name, (found, plot) in figures.items():
            if found:
                made.append(folder / f"{stem}-{name}.png")
                plot(found).savefig(made[-1], dpi=150)  # type: ignore[operator]
    return made


def ratio_plot(results: Sequence[Result]) -> Figure:
    """Every case a line, every peer a point at the ratio of the medians, with the quartiles of the rounds."""
    groups = list(dict.fromkeys(result.case.group for result in results))
    lines = [(result, own) for result in results for own in ours([result]) if ratios(result, own)]
    heights = [sum(result.case.group == group for result, _ in lines) for group in groups]
    figure = Figure(figsize=(8.5, 0.24 * sum(heights) + 0.62 * len(groups) + 0.8), layout="constrained")
    all_axes = figure.subplots(len(groups), 1, sharex=True, height_ratios=[h + 0.6 for h in heights], squeeze=False)
    named: dict[str, Any] = {}
    for axes, group in zip(all_axes[:, 0], groups, strict=True):
        members = [(result, own) for result, own in lines if result.case.group == group]
        for y, (result, own) in enumerate(members):
            for peer, found in ratios(result, own).items():
                (low, high), colour = sorted((found.low, found.high)), COLOURS.get(peer, "black")
                axes.plot((low, high), (y, y), color=colour, alpha=0.45, linewidth=3, solid_capstyle="round")
                (named[peer],) = axes.plot(found.median, y, "o", color=colour, markersize=5)
        axes.axvline(1, color="#444444", linewidth=1)
        axes.set(title=group, ylim=(len(members) - 0.4, -0.6), xscale="log")
        names = [result.case.name + own.removeprefix("minigrad") for result, own in members]
        axes.set_yticks(range(len(members)), names)
        axes.grid(axis="y", visible=False)
    axes = all_axes[-1, 0]
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("peer's time / minigrad's: to the right of the line minigrad is faster")
    figure.legend(named.values(), named.keys(), loc="outside upper right", ncols=len(named) or 1, frameon=False)
    return figure


def scaling_plot(results: Sequence[Result]) -> Figure:
    """Time, and the peak of memory, against size: a column of panels for each group."""
    groups = list(dict.fromkeys(result.case.group for result in results))
    figure = Figure(figsize=(4.4 * len(groups), 6), layout="constrained")
    panels = figure.subplots(2, len(groups), sharex="col", squeeze=False)
    for (above, below), group in zip(panels.T, groups, strict=True):
        members = [result for result in results if result.case.group == group]
        for side in dict.fromkeys(name for result in members for name in result.seconds):
            timed = [r for r in members if side in r.seconds]
            spreads = [Spread.of(r.seconds[side]) for r in timed]
            sizes, colour = [r.case.size for r in timed], COLOURS.get(side, "black")
            above.plot(sizes, [1e3 * s.median for s in spreads], "o-", color=colour, label=side, markersize=4)
            above.fill_between(
                sizes, [1e3 * s.low for s in spreads], [1e3 * s.high for s in spreads], color=colour, alpha=0.2
            )
            weighed = [r for r in members if side in r.memory]
            peaks = [max(r.memory[side], 2**16) / 2**20 for r in weighed]
            below.plot([r.case.size for r in weighed], peaks, "o-", color=colour, markersize=4)
        above.set(title=group, ylabel="ms", xscale="log", yscale="log")
        below.set(ylabel="peak memory, MiB", xlabel="size", yscale="log")
        below.set_xticks([r.case.size for r in members], [str(r.case.size) for r in members], minor=False)
        below.xaxis.set_minor_formatter(NullFormatter())
        for axes in (above, below):
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        above.legend(frameon=False)
    return figure


def start_plot(starts: Sequence[dict[str, Any]]) -> Figure:
    """Import and first training step, stacked, with an empty and with a filled cache of compiled code."""
    figure = Figure(figsize=(8.5, 0.5 + 0.75 * len(starts)), layout="constrained")
    axes = figure.subplots()
    labels: list[tuple[float, str]] = []
    y = 0.0
    for row in starts:
        caches = [name for name in ("empty cache", "filled cache") if name in row]
        for cache in caches:
            colour, end = COLOURS.get(row["side"], "black"), row["import"] + row[cache]
            axes.barh(y, row["import"], color="#bbbbbb")
            axes.barh(y, row[cache], left=row["import"], color=colour, alpha=0.55 if cache != caches[-1] else 1)
            axes.text(end, y, f" {end:.2f} s", va="center", fontsize=8)
            labels.append((y, f"{row['side']}, {cache}" if len(caches) > 1 else row["side"]))
            y += 1
        y += 0.6
    axes.set_yticks(*zip(*labels, strict=True))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="import (grey) and first training step", xlabel="seconds")
    return figure
