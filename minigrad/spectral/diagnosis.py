"""Diagnosis of any model: what its spectrally normalized weights are like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from minigrad._mode import enable_grad
from minigrad._tensor import Tensor
from minigrad.autograd import grad
from minigrad.nn.module import Module
from minigrad.spectral.oracles import Array
from minigrad.spectral.table import WEIGHT, Column, Row, Table
from minigrad.spectral.weights import Loss, Normalized, host, normalized_weights


def diagnose(model: Module, loss: Callable[[], Tensor] | None = None) -> Table:
    """What each spectrally normalized weight of a model is like: a Table, whose rows read as dicts.

    `layer`, `parameter`; `shape` (m, n) of its matrix M (with norm="operator": of the convolution); `sigma_hat`: the σ̂
    by which reading it divides W, uᵀMv at the stored vectors (‖W‖ for a 1-d weight, σ₁ with gradient="exact"); `sigma`:
    the true σ₁ in float64, by an SVD (of a convolution by Lanczos iteration); `gap` σ₂/σ₁: the error of u and v falls
    by its square per sweep; `norm`: ‖W̄‖₂ = σ₁/σ̂, 1 once they have converged. γ and factor, W̃ = γ · factor · W̄, come in
    none of these: `scale` is their product.

    `loss`: a callable without arguments, say `lambda: criterion(model(x), y)`. It is called once with u and v frozen,
    every weight being what reading it gives, and the row then has `gradient` (the convention registered), `lam`:
    λ = ⟨∂L/∂W̄, W̄⟩ of (12), `grad_norm`: ‖∂L/∂W‖ by that convention (that of "unrolled" without a sweep), `radial`:
    ⟨∂L/∂W, W⟩, and `invariant`: whether that is 0 but for rounding, as it is for every function of W/σ(W), converged or
    not, since W and cW are the same to it; the footnote names weights for which it is not. `None` where the loss does
    not depend on the weight.

    Nothing changes: no u, v, grad, buffer (running statistics, say), training flag, nor the default random generator.
    Parameters that do not require grad are diagnosed as if they did.

    ValueError: no normalized weight; a loss that is not a finite scalar Tensor.

    >>> import minigrad as mg
    >>> _ = mg.manual_seed(0)
    >>> layer = mg.nn.utils.spectral_norm(mg.nn.Linear(4, 3), n_init_iterations=1, gradient="detached")
    >>> x = mg.randn(5, 4)
    >>> table = mg.spectral.diagnose(layer, lambda: layer(x).square().mean())
    >>> print(table)
    Spectral normalization in Linear
    weight  shape        σ̂       σ₁  σ₂/σ₁   ‖W̄‖₂  gradient     λ  ‖∂L/∂W‖  ⟨∂L/∂W, W⟩
    ----------------------------------------------------------------------------------
    weight  3×4    0.49611  0.79823  0.823  1.609  detached  3.72     4.26     3.7e+00
    ----------------------------------------------------------------------------------
    σ̂ at the stored u, v; σ₁ by SVD; W̄ = W/σ̂. Every function of W/σ(W) has ⟨∂L/∂W, W⟩ = 0: the gradient
    of weight (detached) is that of none.
    >>> f"{table[0]['norm']:.3f}"
    '1.609'
    """
    weights = normalized_weights("diagnose", model)
    slopes = None if loss is None else _slopes(Loss("diagnose", model, loss, weights), weights)
    rows = []
    for i, weight in enumerate(weights):
        sigma_hat, values = weight.spectrum()
        sigma = float(values[0])
        gap = (float(values[1]) if len(values) > 1 else 0.0) / sigma if sigma else math.nan
        norm = abs(sigma / sigma_hat) if sigma_hat else 0.0
        row: Row = {"layer": weight.path, "parameter": weight.name, "shape": weight.shape, "sigma_hat": sigma_hat}
        row |= {"sigma": sigma, "gap": gap, "norm": norm, "scale": weight.scale()}
        rows.append(row if slopes is None else row | slopes[i])
    columns = [
        WEIGHT,
        Column("shape", "shape", lambda row: "×".join(map(str, row["shape"])), text=True),
        Column("sigma_hat", "σ̂", ".5g"),
        Column("sigma", "σ₁", ".5g"),
        Column("gap", "σ₂/σ₁", ".3f"),
        Column("norm", "‖W̄‖₂", ".5g"),
    ]
    columns += [Column("scale", "γ·factor", ".4g")] * any(row["scale"] != 1 for row in rows)
    note = "σ̂ at the stored u, v; σ₁ by SVD; W̄ = W/σ̂."
    if slopes is not None:
        columns += [
            Column("gradient", "gradient", text=True),
            Column("lam", "λ", ".3g"),
            Column("grad_norm", "‖∂L/∂W‖", ".3g"),
            Column("radial", "⟨∂L/∂W,\u00a0W⟩", ".1e"),
        ]
        off = [f"{WEIGHT.show(row)} ({row['gradient']})" for row in rows if row["invariant"] is False]
        note += " Every function of W/σ(W) has ⟨∂L/∂W, W⟩ = 0"
        note += f": the gradient of {', '.join(off)} is that of none." if off else "."
    return Table(rows, columns, f"Spectral normalization in {type(model).__name__}", note)


def _slopes(function: Loss, weights: Sequence[Normalized]) -> list[Row]:
    leaves = [value.clone().requires_grad_() for value in function.read.values()]
    upstream = function.gradients(dict(zip(function.read, leaves, strict=True)), leaves)
    rows: list[Row] = []
    for weight, w_tilde, g in zip(weights, leaves, upstream, strict=True):
        row: Row = {"gradient": weight.rule.gradient, "lam": None, "grad_norm": None, "radial": None, "invariant": None}
        rows.append(row)
        if g is None:
            continue
        raw, gradient = weight.raw(), _registered(weight, g)
        row["lam"] = float(np.vdot(host(g), host(w_tilde)))
        row["grad_norm"] = float(np.linalg.norm(gradient))
        row["radial"] = float(np.vdot(gradient, raw))
        size = np.linalg.norm(host(g)) * np.linalg.norm(host(w_tilde))  # of ⟨∂L/∂W, W⟩, were nothing projected out
        row["invariant"] = bool(abs(row["radial"]) <= function.floor(weight) * size)
    return rows


def _registered(weight: Normalized, upstream: Tensor) -> Array:
    """∂L/∂W as the parametrization itself has it."""
    original = weight.rule.original
    trained, original.requires_grad = original.requires_grad, True
    try:
        with enable_grad():
            (found,) = grad(weight.rule.read(), [original], upstream)
    finally:
        original.requires_grad = trained
    assert found is not None
    return host(found)
