"""All numbers of a study as plain rows: what goes into the JSON and the CSV files."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from minigrad.spectral.libraries import Row as Library
from minigrad.spectral.study.study import Results

Row = dict[str, Any]


def tables(results: Results) -> dict[str, list[Row]]:
    """Name -> rows, all rows of one table with the same keys; none where nothing was found."""
    return {
        "verdict": _verdict(results),
        "layers": _layers(results),
        "residuals": _residuals(results),
        "spectra": _spectra(results),
        "second_order": [asdict(one) for one in results.second],
        "lipschitz": _lipschitz(results),
        "libraries": [library(row) for row in results.libraries],
        "sweeps": _sweeps(results),
        "rates": [
            {"layer": one.layer, "gap": one.gap, "of": of, "measured": one.rate[of], "theory": one.theory[of]}
            for one in results.falling
            for of in one.rate
        ],
        "steps": _steps(results),
        "tests": [{"step": step, "loss": value, "accuracy": right} for step, value, right in results.tests],
        "losses": [{"step": step, "loss": value} for step, value in results.losses],
        "training": [asdict(record) for record in results.records],
        "differences": [
            {
                "convention": pair.convention, "minus": pair.reference, "measure": pair.measure,
                "difference": pair.difference.mean, "low": pair.difference.low, "high": pair.difference.high,
                "p": pair.difference.p, "holm_p": pair.adjusted_p, "detected": pair.detected,
            }
            for pair in results.differences
        ],
    }  # fmt: skip


def _verdict(results: Results) -> list[Row]:
    return [asdict(cell) for cell in results.verdict.cells] if results.verdict else []


def _layers(results: Results) -> list[Row]:
    rows = []
    for opened in results.openings:
        numbers = asdict(opened.numbers)
        numbers["lambda"] = numbers.pop("lam")
        del numbers["spectrum"]
        rows.append(
            {"step": opened.step, "layer": opened.layer, "shape": "x".join(map(str, opened.shape)),
             "upstream": opened.upstream_from, "entrywise": opened.entrywise} | numbers
        )  # fmt: skip
    return rows


def _lipschitz(results: Results) -> list[Row]:
    found = results.steepness
    if found is None:
        return []
    ends = (
        ("lower bound", found.lower, f"largest Jacobian norm at {found.examples} examples"),
        ("upper bound", found.upper, "product of the layers"),
        ("no bound", found.reshaped, "product with σ₁ of the reshaped weights"),
    )
    rows = list(map(asdict, found.factors))
    for kind, value, how in ends:
        rows.append(dict.fromkeys(rows[0]) | {"layer": "(network)", "kind": kind, "constant": value, "how": how})
    return [{"step": found.step} | row for row in rows]


def _residuals(results: Results) -> list[Row]:
    at_node = [
        {"where": "node", "step": opened.step, "layer": opened.layer, "vectors": state} | asdict(residual)
        for opened in results.openings
        for state, residuals in opened.residuals.items()
        for residual in residuals
    ]
    through = [
        {"where": "network", "step": one.step, "layer": one.layer, "vectors": "cold"} | asdict(residual)
        for one in results.throughs
        for residual in one.residuals
    ]
    return at_node + through


def library(row: Library) -> Row:
    """What was measured of one library, flat."""
    told: Row = {
        "library": row.name, "version": row.library.version, "ran": row.library.ran, "seed": row.seed,
        "function": row.function, "gradient": row.gradient, "convention": row.library.gradient,
        "meets": " ".join(row.met) or "none", "must_meet": row.expected or "none", "passed": row.passed,
    }  # fmt: skip
    for name, held in row.held.items():
        told |= {f"{name}_residual": held.residual, f"{name}_error": held.error, f"{name}_at": held.along[held.worst]}
    return told | {
        "angle_to_paper": row.angle, "relative_to_paper": row.relative, "sigma_over_sigma_1": row.cold,
        "lambda": row.lam, "radial": row.radial, "training_off": row.forward, "evaluation": row.evaluation,
        "evaluation_off": row.evaluation_gap, "overwritten": row.overwritten, "norm_converged": row.converged,
        "norm_tiny": row.tiny, "caveat": row.caveat, "command": row.command, "evidence": row.evidence,
    }  # fmt: skip


def _spectra(results: Results) -> list[Row]:
    return [
        {"step": opened.step, "layer": opened.layer, "index": i + 1, "singular_value": value}
        for opened in results.openings
        for i, value in enumerate(opened.numbers.spectrum)
    ]


def _sweeps(results: Results) -> list[Row]:
    rows = []
    for one in results.falling:
        unrolled = dict(zip(one.unrolled_sweeps, one.unrolled, strict=True))
        for k, fixed, sigma in zip(one.sweeps, one.fixed_uv, one.sigma, strict=True):
            rows.append(
                {"layer": one.layer, "gap": one.gap, "sweeps": k, "fixed_uv_error": fixed, "sigma_error": sigma,
                 "unrolled_error": unrolled.get(k), "theory_gradient": one.gap ** (2 * k - 1),
                 "theory_sigma": one.gap ** (4 * k - 2), "theory_unrolled": k * one.gap ** (4 * k - 2)}
            )  # fmt: skip
    return rows


def _steps(results: Results) -> list[Row]:
    curve = results.step_curve
    if curve is None:
        return []
    return [
        {"layer": curve.layer, "direction": curve.direction, "h": h, "float64_error": double, "float32_error": single}
        for h, double, single in zip(curve.steps, curve.float64, curve.float32, strict=True)
    ]


def finite(value: Any) -> Any:
    """The same with every NaN and infinity as None, which JSON can say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value
