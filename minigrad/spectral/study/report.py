"""The report: one HTML page that holds its figures and its style, and needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral.libraries import RANDOM, SHAPE, TINY, findings, short
from minigrad.spectral.oracles import ORACLES
from minigrad.spectral.residuals import FACTOR, FLOOR, Residual
from minigrad.spectral.study import figures
from minigrad.spectral.study._extras import require
from minigrad.spectral.study.comparison import MEASURES
from minigrad.spectral.study.opening import STATES
from minigrad.spectral.study.study import Results
from minigrad.spectral.study.verdict import Verdict, must_meet


def scientific(value: float, digits: int = 1) -> str:
    """A number as one writes it: 0.031, 8.1·10⁻¹⁴.

    >>> scientific(8.13e-14), scientific(0.0312), scientific(0.0)
    ('8.1·10⁻¹⁴', '0.031', '0')
    """
    if not math.isfinite(value):
        return "—"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    if -3 <= int(exponent) <= 2:
        return f"{value:.{max(0, digits - int(exponent))}f}".replace("-", "−")
    return f"{mantissa.replace('-', '−')}·{figures.power(int(exponent))}"


def typeset(text: str) -> str:
    """Powers of ten in a sentence, as one writes them.

    >>> typeset("x/max(‖x‖, 1e-12)")
    'x/max(‖x‖, 10⁻¹²)'
    """
    return re.sub(r"\b1e(-?\d+)\b", lambda found: figures.power(int(found[1])), text)


def signed(value: float, places: int = 4) -> str:
    """A difference, with its sign."""
    return f"{value:+.{places}f}".replace("-", "−")


def degrees(value: float) -> str:
    """An angle."""
    return "—" if math.isnan(value) else f"{value:.2f}°" if value >= 0.01 else f"{scientific(value, 0)}°"


def mark(verdict: Verdict | None) -> str:
    """The verdict in one word."""
    return "unfinished" if verdict is None else "passed" if verdict.passed else "failed"


def sentence(verdict: Verdict | None) -> str:
    """The verdict in one sentence, with its numbers."""
    if verdict is None:
        return "Nothing was measured."
    if verdict.failures:
        count = len({f.split(" ", 1)[0] for f in verdict.failures})
        of = len({c.convention for c in verdict.cells})
        return f"{count} of {of} conventions did not meet exactly the oracles that they must: {verdict.failures[0]}."
    met = [c for c in verdict.cells if c.must]
    missed = [c for c in verdict.cells if not c.must]
    others = [c.residual for c in missed if c.distinct]  # a weight of one row, say, tells no oracles apart
    told_apart = " that can be told apart" if len(others) < len(missed) else ""
    told = [
        f"{c.convention} meets ({ORACLES[c.oracle].letter}) {_MEANING[c.oracle]} "
        f"to {scientific(c.residual)}\u00a0±\u00a0{scientific(c.error, 0)}"
        for c in met
    ]
    text = "Every convention met exactly the oracles that it must"
    text += f": {', '.join(told)}" if told else ""
    return text + (
        f"; all other pairs{told_apart} differ by at least {scientific(min(others))}." if others else "."
    )


_MEANING = {"frozen": "frozen u, v", "svd": "the true σ₁", "live": "the live sweeps"}


def template(name: str) -> Any:
    """A page to fill in, with the filters that write numbers."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("minigrad.spectral", "."),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "sci": scientific,
        "degrees": degrees,
        "signed": signed,
        "percent": lambda value: "—" if math.isnan(value) else f"{value:.2%}",
        "css": lambda name: name.replace("_", "-"),
    }
    return environment.get_template(name)


def render(results: Results, about: Mapping[str, Any], files: list[str]) -> str:
    """The page for whatever results there are."""
    safe = require("markupsafe").Markup
    verdict = results.verdict
    settings = results.settings
    page = template("study/report.html.j2").render(
        mark=mark(verdict),
        sentence=sentence(verdict),
        verdict=verdict,
        unfinished=results.unfinished,
        about=about,
        data=results.data,
        model={"mlp": "multilayer perceptron", "conv": "convolutional net"}[settings.model],
        oracles=list(ORACLES.values()),
        conventions=settings.conventions,
        measures=MEASURES,
        floor=FLOOR,
        factor=int(FACTOR),
        method=_method(results, verdict),
        through=_through(results),
        first_table=_first_table(verdict) if verdict else [],
        hero=_hero(results, safe),
        libraries=_libraries(results),
        training=_training(results, safe),
        layer_sections=[_layer(results, name, safe) for name in results.layers] if verdict else [],
        second=results.second,
        steepness=results.steepness,
        curve=_curve(results, safe),
        graph=safe(results.graph),
        followed=results.followed,
        files=files,
    )
    return str(page)


def _method(results: Results, verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    settings = results.settings
    smallest = {o.layer for o in results.openings if o.entrywise}
    entries = f", and entry by entry at {', '.join(smallest)}, the smallest, at the last step" if smallest else ""
    test = f" It ended at {results.tests[-1][2]:.1%} test accuracy." if len(results.tests) > 1 else ""
    return (
        f"A network with spectral normalization on every layer was trained on {results.data} for {settings.steps} "
        f"steps of SGD with the paper's gradient and opened at steps {', '.join(map(str, verdict.steps))}, in float64."
        f"{test} At each of {verdict.layers} layers every convention was held against three oracles along "
        f"{settings.random_directions} random directions, G, W and u vᵀ{entries}: "
        f"{verdict.differences:,} directions per convention and oracle in all."
    )


def _through(results: Results) -> str:
    rows = [row for one in results.throughs for row in one.residuals]
    if not rows:
        return ""
    wrong = [row for row in rows if row.meets != (must_meet(row.convention) == row.oracle)]
    if wrong:
        named = ", ".join(sorted({f"{row.convention} with ({ORACLES[row.oracle].letter})" for row in wrong}))
        return f"End to end through the network, with G no longer frozen, it is otherwise for {named}: see the tables."
    met = max((row.residual for row in rows if row.meets), default=math.nan)
    missed = min((row.residual for row in rows if not row.meets), default=math.nan)
    return (
        f"End to end through the network, with the modules' own forward pass and G no longer frozen, the "
        f"same conventions meet the same oracles, to {scientific(met)}; "
        f"the others miss by at least {scientific(missed)}."
    )


def _first_table(verdict: Verdict) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "formula": CONVENTIONS[name].formula,
            "libraries": CONVENTIONS[name].libraries,
            "cells": [verdict.cell(name, oracle) for oracle in ORACLES],
        }
        for name in dict.fromkeys(c.convention for c in verdict.cells)
    ]


def _libraries(results: Results) -> dict[str, Any] | None:
    rows = results.libraries
    if not rows:
        return None
    outputs, inputs = SHAPE
    cold = [row.cold for row in rows]
    return {
        "rows": rows,
        "findings": map(typeset, findings(rows)),
        "directions": f"{RANDOM} random directions, G, W and u vᵀ",
        "layer": f"a dense layer of {outputs} outputs and {inputs} inputs",
        "cold": f"{min(cold):.0%} to {max(cold):.0%}",
        "tiny": typeset(short(TINY)),
        "short": lambda value: typeset(short(value, 4)),
        "function": lambda row: typeset(row.function).split("; "),
    }


def _hero(results: Results, safe: Any) -> dict[str, Any] | None:
    if not results.falling:
        return None
    chosen = next((f for f in results.falling if f.layer == results.followed), results.falling[0])
    measured, theory = chosen.rate, chosen.theory
    rates = (
        f"Measured per sweep: gradient ×{measured['fixed_uv']:.3f} (ρ² = {theory['fixed_uv']:.3f}), "
        f"σ̂ ×{measured['sigma']:.3f} (ρ⁴ = {theory['sigma']:.3f})."
    )
    svg = safe(figures.errors_against_sweeps(chosen, "gradient error against sweeps"))
    return {"svg": svg, "layer": chosen.layer, "gap": chosen.gap, "rates": rates}


def _training(results: Results, safe: Any) -> dict[str, Any] | None:
    if not results.records:
        return None
    pairs = results.differences
    if not pairs:
        told = "Too few runs were finished for a comparison."
    else:
        told = _detected(results)
    return {
        "sentence": f"The same network from the same seeds, trained under each convention. {told}",
        "figures": [safe(svg) for svg in figures.all_training(results.records)],
        "forests": [safe(figures.forest(pairs, measure)) for measure in MEASURES] if pairs else [],
        "pairs": pairs,
        "seeds": len({r.seed for r in results.records}),
        "layer": results.followed,
        "reference": results.settings.reference,
    }


def _detected(results: Results) -> str:
    reference = results.settings.reference
    said = []
    for convention in results.settings.conventions:
        mine = [p for p in results.differences if p.convention == convention and p.detected]
        if mine:
            said.append(
                f"{convention} ({', '.join(f'{MEASURES[p.measure]} {signed(p.difference.mean, 2)}' for p in mine)})"
            )
    if not said:
        return f"No difference detected between {reference} and any other in test loss or accuracy."
    return f"Differences from {reference} were detected for {', '.join(said)}; elsewhere no difference was detected."


def _layer(results: Results, name: str, safe: Any) -> dict[str, Any]:
    openings = [o for o in results.openings if o.layer == name]
    shape = openings[0].shape
    made = [
        {
            "svg": safe(figures.spectra(openings, name)),
            "caption": f"Singular values of W̄ = W/σ̂ at step {openings[0].step} (grey) and {openings[-1].step} (blue).",
        }
    ]
    for one in results.falling:
        if one.layer == name:
            svg = safe(figures.errors_against_sweeps(one, f"sweeps {name}"))
            told = "fixed_uv (blue), unrolled (orange), σ̂ (grey); pale: theory"
            made.append({"svg": svg, "caption": f"Errors against sweeps, ρ = {one.gap:.3f}: {told}."})
    tables = []
    for opened in reversed(openings):
        for state in reversed(STATES):
            where = {"cold": "u, v one sweep from a random start", "stored": "u, v as training left them"}[state]
            tables.append(
                _residual_table(opened.residuals[state], f"Step {opened.step}, at the node, {where}", opened.entrywise)
            )
    for through in results.throughs:
        if through.layer == name:
            title = f"Step {through.step}, end to end through the network, one sweep in the forward pass"
            tables.insert(1, _residual_table(through.residuals, title, False))
    source = (
        ""
        if all(o.upstream_from == "loss" for o in openings)
        else "No gradient of the loss arrives here, so G is random."
    )
    return {
        "name": name,
        "shape": "×".join(map(str, shape)),
        "matrix": f"{shape[0]}×{math.prod(shape[1:])}",
        "note": source,
        "openings": openings,
        "figures": made,
        "tables": tables,
    }


def _residual_table(residuals: list[Residual], title: str, entrywise: bool) -> dict[str, Any]:
    rows: dict[str, list[Any]] = {}
    for one in residuals:
        must = must_meet(one.convention) == one.oracle
        rows.setdefault(one.convention, []).append({**vars(one), "must": must})
    whole = max(one.whole_error for one in residuals)
    against = (
        "the oracle's entrywise differences"
        if entrywise
        else "the oracle's closed form, which the same differences check"
    )
    note = (
        f"{residuals[0].directions} directions. Relative error ‖g − g*‖/‖g*‖ and angle of the whole gradient are "
        f"against {against}; g* itself is good to {scientific(whole)} or better."
    )
    return {"title": title, "rows": [{"name": name, "cells": cells} for name, cells in rows.items()], "note": note}


def _curve(results: Results, safe: Any) -> dict[str, Any] | None:
    curve = results.step_curve
    if curve is None or not results.openings:
        return None
    reached = [
        r.residual
        for o in results.openings
        for r in o.residuals["stored"]
        if (r.convention, r.oracle) == ("fixed_uv", "frozen")
    ]
    return {
        "svg": safe(figures.step_curve(curve)),
        "layer": curve.layer,
        "best": float(np.min(curve.float64)),
        "best32": float(np.min(curve.float32)),
        "extrapolated": max(reached, default=math.nan),
    }
