"""The figures, as SVG whose colours are CSS variables of the page: one drawing, legible in light and dark.

Matplotlib is given placeholder colours; afterwards each becomes `var(--name)`, and the font the page's own.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.spectral.study._extras import require
from minigrad.spectral.study.comparison import FOLLOWED, MEASURES, Paired, Record
from minigrad.spectral.study.convergence import ROUNDING, Falling, StepCurve
from minigrad.spectral.study.opening import Opened
from minigrad.spectral.study.statistics import interval

#: CSS variable -> the placeholder that Matplotlib draws with. Conventions have variables of their own names.
PLACEHOLDERS = {
    name: f"#0a0b{i + 16:02x}"
    for i, name in enumerate(
        (
            "ink", "muted", "rule", "paper", "fixed_uv", "detached", "straight_through", "projected", "unrolled",
            "exact", "elementwise",
        )
    )
}  # fmt: skip
INK, MUTED, RULE = (PLACEHOLDERS[name] for name in ("ink", "muted", "rule"))

#: Matplotlib's settings for every figure.
STYLE = {
    "svg.fonttype": "none", "font.size": 10, "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.linewidth": 0.7, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10, "axes.titlecolor": INK, "axes.titlelocation": "left",
    "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.major.width": 0.7, "ytick.major.width": 0.7, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.7,
}  # fmt: skip


def colour(convention: str) -> str:
    """The placeholder of a convention."""
    return PLACEHOLDERS.get(convention, MUTED)


def power(exponent: int) -> str:
    """A power of ten as one writes it.

    >>> power(-12)
    '10⁻¹²'
    """
    return "10" + str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


@contextmanager
def panel(name: str, width: float = 4.0, height: float = 2.9) -> Iterator[tuple[Any, list[str]]]:
    """Axes of one figure; the SVG is appended to the list at the end of the block."""
    matplotlib = require("matplotlib")
    require("matplotlib.figure")
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        made: list[str] = []
        yield axes, made
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":  # Matplotlib's own labels are TeX formulas, slow, and in a font of their own
                axis.set_major_formatter(lambda x, _: power(round(math.log10(x))))
                axis.minorticks_off()
        made.append(_svg(figure, name))


def _svg(figure: Any, name: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{name}">', text, count=1
    )
    text = re.sub(r'xlink:href="(#[^"]*)"', r'href="\1"', text)
    referred = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", text)
    for variable, placeholder in PLACEHOLDERS.items():
        text = text.replace(placeholder, f"var(--{variable.replace('_', '-')})")
    return text


def errors_against_sweeps(found: Falling, name: str = "errors against sweeps") -> str:
    """Relative errors of the gradient and of σ̂ over the sweeps, and the theory through the last clear point."""
    k = np.array(found.sweeps, float)
    rho = found.gap
    with panel(name) as (axes, made):
        _decay(axes, k, found.sigma, rho ** (4 * k - 2), MUTED)
        deep = np.array(found.unrolled_sweeps, float)
        _decay(axes, deep, found.unrolled, deep * rho ** (4 * deep - 2), colour("unrolled"))
        _decay(axes, k, found.fixed_uv, rho ** (2 * k - 1), colour("fixed_uv"))
        axes.set_yscale("log")
        axes.set_ylim(3e-16, 3 * max(10, *found.fixed_uv, *found.unrolled))
        axes.set_xlim(0, k[-1] + 1)
        axes.set_xlabel("sweeps k")
        axes.set_title("relative error")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return made[0]


def _decay(axes: Any, k: Any, errors: Sequence[float], rate: Any, ink: str) -> None:
    values = np.maximum(np.array(errors), 1e-17)
    axes.plot(k, values, color=ink, linewidth=1.6)
    clear = np.flatnonzero((values > 100 * ROUNDING) & (rate > 0))
    if len(clear):
        at = clear[-1]
        with np.errstate(under="ignore"):
            axes.plot(
                k, values[at] * rate / rate[at], color=ink, linewidth=6, alpha=0.22, solid_capstyle="butt", zorder=1
            )


def step_curve(curve: StepCurve) -> str:
    """The V of a plain central difference, in float64 and in float32, with the slopes h² and ε/h."""
    h = np.array(curve.steps)
    with panel("error of a finite difference against its step", 5.4, 3.4) as (axes, made):
        axes.loglog(h, np.maximum(curve.float32, 1e-17), color=MUTED, linewidth=1.2)
        axes.loglog(h, np.maximum(curve.float64, 1e-17), color=colour("fixed_uv"))
        large = h > 0.05 * h[0]
        truncation = np.array(curve.float64)[large][-1] * (h / h[large][-1]) ** 2
        rounding = np.median(np.array(curve.float64)[-30:] * h[-30:]) / h
        for guide in (truncation, rounding):
            shown = (guide > 1e-13) & (guide < 1)
            axes.loglog(h[shown], guide[shown], color=INK, linestyle=(0, (2, 2)), linewidth=1)
        axes.set_ylim(1e-14, 30)
        axes.set_xlabel("step h")
        axes.set_title("relative error of the difference")
    return made[0]


def training(records: Sequence[Record], measure: str, title: str) -> str:
    """One quantity over the steps: the mean over seeds of each convention, and its 95% interval."""
    with panel(f"training: {title}", 4.0, 2.7) as (axes, made):
        means: list[float] = []
        for convention in dict.fromkeys(r.convention for r in records):
            steps = sorted({r.step for r in records if r.convention == convention})
            mean, half = [], []
            for step in steps:
                values = [getattr(r, measure) for r in records if (r.convention, r.step) == (convention, step)]
                found = interval(values) if len(values) > 1 else None
                mean.append(found.mean if found else values[0])
                half.append(found.half if found else 0.0)
            low, high = np.subtract(mean, half), np.add(mean, half)
            axes.fill_between(steps, low, high, color=colour(convention), alpha=0.13, linewidth=0)
            axes.plot(steps, mean, color=colour(convention), linewidth=1.5)
            means += mean
        room = 0.35 * (max(means) - min(means)) or 1.0  # so that one wide interval does not flatten every curve
        low, high = axes.get_ylim()
        axes.set_ylim(
            max(low, min(means) - room), min(high, max(means) + room, 1.02 if measure == "accuracy" else high)
        )
        axes.set_title(title)
        axes.set_xlabel("step")
    return made[0]


def forest(pairs: Sequence[Paired], measure: str) -> str:
    """The paired differences from the reference with 95% intervals; hollow where no difference was detected."""
    shown = [p for p in pairs if p.measure == measure]
    with panel(f"paired difference in {MEASURES[measure]}", 5.4, 0.75 + 0.27 * len(shown)) as (axes, made):
        for row, pair in enumerate(reversed(shown)):
            ink = colour(pair.convention)
            axes.plot([pair.difference.low, pair.difference.high], [row, row], color=ink, linewidth=2)
            axes.plot(
                [pair.difference.mean], [row], marker="o", markersize=6, color=ink,
                markerfacecolor=ink if pair.detected else PLACEHOLDERS["paper"],
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), [p.convention for p in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{MEASURES[measure]}, minus {shown[0].reference}" if shown else "")
    return made[0]


def spectra(openings: Sequence[Opened], layer: str) -> str:
    """The singular values of W̄ at the first and the last step that were opened."""
    mine = sorted((o for o in openings if o.layer == layer), key=lambda o: o.step)
    with panel(f"singular values of {layer}", 4.0, 2.7) as (axes, made):
        for opening, ink in ((mine[0], MUTED), (mine[-1], colour("fixed_uv"))):
            values = np.array(opening.numbers.spectrum) / opening.numbers.sigma_hat
            axes.plot(range(1, len(values) + 1), values, color=ink, marker="o", markersize=2.5, linewidth=1.2)
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
        axes.set_xlabel("index i")
        axes.set_title("σᵢ of W̄")
    return made[0]


def all_training(records: Sequence[Record]) -> list[str]:
    """Loss, accuracy, and what is followed of one layer."""
    return [training(records, measure, title) for measure, title in (MEASURES | FOLLOWED).items()]
