"""The report of a sweep: one HTML page in the style of the study's, and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from minigrad.spectral.study import figures
from minigrad.spectral.study._extras import require
from minigrad.spectral.study.report import scientific, template
from minigrad.spectral.sweep.results import MEASURES, Group, Mean, Results


def mark(results: Results) -> str:
    """The outcome in one word."""
    return "interrupted" if results.interrupted else "failed" if results.failed or results.refuted else "finished"


def sentence(results: Results) -> str:
    """The outcome in one sentence or two, with its numbers."""
    told = f"{len(results.finished)} of {len(results.cells)} cells are finished"
    told += f", {len(results.failed)} failed." if results.failed else "."
    best = max((group for group in results.groups if group.means), key=_accuracy, default=None)
    if results.study and results.finished:
        wrong = f"{len(results.refuted)} of them" if results.refuted else "none"
        told += f" In {wrong} did a convention not meet exactly the oracle that it must."
    if best is not None:
        seeds = f"{best.finished} seed{'s' * (best.finished > 1)}"
        told += f" Highest mean test accuracy: {written(best.means['accuracy'])} over {seeds}, {best}."
    return told


def _accuracy(group: Group) -> float:
    return group.means["accuracy"].value


def written(mean: Mean | None) -> str:
    """A mean and its interval.

    >>> written(Mean(0.9712, 0.0134)), written(Mean(0.5, math.nan))
    ('0.9712\xa0±\xa00.0134', '0.5000')
    """
    if mean is None:
        return "—"
    return f"{mean.value:.4f}" + (f"\xa0±\xa0{mean.half:.4f}" if math.isfinite(mean.half) else "")


def render(results: Results, about: Mapping[str, Any], plan: str) -> str:
    """The page for whatever cells there are; `plan`: the file's text."""
    safe = require("markupsafe").Markup
    first = results.cells[0]
    page = template("sweep/report.html.j2").render(
        mark=mark(results),
        good=mark(results) == "finished",
        sentence=sentence(results),
        results=results,
        title=f"{'Studies' if results.study else 'Trainings'} swept · {first.data}, {first.model}, {first.steps} steps",
        about=about,
        plan=plan,
        groups=results.groups,
        conventions=list(dict.fromkeys(cell.convention for cell in results.cells)),
        measures=MEASURES,
        seeds=len({cell.seed for cell in results.cells}),
        figures=[[safe(svg) for svg in row] for row in panels(results)],
        written=written,
        residual=lambda value: "—" if value is None else scientific(value),
    )
    return str(page)


def panels(results: Results) -> list[list[str]]:
    """Each measure against the learning rate, or against the width if there is one rate only; a figure per other."""
    groups = [group for group in results.groups if group.means]
    values = {name: sorted({getattr(cell, name) for cell in results.cells}) for name in ("learning_rate", "width")}
    along, other = sorted(values, key=lambda name: len(values[name]) == 1)
    apart = {one: [group for group in groups if getattr(group, other) == one] for one in values[other]}
    words = other.replace("_", " ")
    return [
        [_panel(mine, groups, measure, along, values[along], f"{words} {one:g}") for one, mine in apart.items() if mine]
        for measure in MEASURES
        if groups
    ]


def _panel(
    groups: list[Group], everything: list[Group], measure: str, along: str, points: list[float], where: str
) -> str:
    """Means with their intervals at equally spaced points, the conventions side by side, scaled for `everything`."""
    conventions = list(dict.fromkeys(group.convention for group in everything))
    name = along.replace("_", " ")
    with figures.panel(f"{MEASURES[measure]} against {name}, {where}", 4.0, 2.9) as (axes, made):
        for i, convention in enumerate(conventions):
            mine = sorted((g for g in groups if g.convention == convention), key=lambda g: getattr(g, along))
            aside = 0.09 * (i - (len(conventions) - 1) / 2)  # so that intervals do not cover one another
            axes.errorbar(
                [points.index(getattr(group, along)) + aside for group in mine],
                [group.means[measure].value for group in mine],
                [_half(group.means[measure]) for group in mine],
                color=figures.colour(convention), marker="o", markersize=4.5, linewidth=1.3, capsize=2.5,
            )  # fmt: skip
        means = [group.means[measure] for group in everything]
        low, high = min(m.value - _half(m) for m in means), max(m.value + _half(m) for m in means)
        room = 0.05 * (high - low) or 0.05
        axes.set_ylim(low - room, high + room)
        axes.set_xticks(range(len(points)), [f"{point:g}" for point in points])
        axes.set_xlim(-0.6, len(points) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(name)
        axes.set_title(f"{MEASURES[measure]}, {where}")
    return made[0]


def _half(mean: Mean) -> float:
    return 0.0 if math.isnan(mean.half) else mean.half
