"""Every convention's gradient through a user's own model and loss, against finite differences of that loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from minigrad._differences import ROUNDING, measure_noise
from minigrad._mode import enable_grad
from minigrad._tensor import Tensor
from minigrad.nn.conv import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from minigrad.nn.embedding import Embedding
from minigrad.nn.module import Module
from minigrad.ops.conventions import CONVENTIONS
from minigrad.ops.creation import tensor
from minigrad.spectral.emulation import LIBRARIES, emulate
from minigrad.spectral.libraries import square, sweep
from minigrad.spectral.oracles import ORACLES, Array, unit
from minigrad.spectral.residuals import Directions, Numeric, Residual, compare, differentiate, directions
from minigrad.spectral.table import MISSING, WEIGHT, Column, Row, Table
from minigrad.spectral.weights import Loss, Normalized, as_matrix, host, normalized_weights

Places = np.ndarray[Any, np.dtype[np.int64]]

EPS = 2.0**-52
HALVINGS = 16  # of the step, in float32
RANDOM = 4  # directions, beside G, W and u vᵀ
#: Libraries whose matrix has the inputs of a transposed convolution as rows, which others have the outputs as: theirs
#: is the last axis of (kh, kw, out, in), or the first of (in, out, kh, kw).
ROWS_OF_INPUTS = ("keras-jax", "keras-tf", "keras-torch", "haiku", "biggan")


def compare_gradients(
    model: Module,
    loss: Callable[[], Tensor],
    *,
    like: str | Sequence[str] | None = None,
    layers: str = "",
) -> Table:
    """The gradient of every convention through a user's model, against finite differences of the user's loss: a Table.

    `loss`: a callable without arguments, say `lambda: criterion(model(x), y)`, deterministic. u and v are frozen as
    they are stored. One normalized weight at a time is computed anew, the others keep what reading them gives. For each
    convention W̄ is put in by that convention's graph, from which the loss is differentiated; this is held against
    central differences of the loss through three functions of W in NumPy, along random directions, the upstream
    gradient G, W and u vᵀ. "frozen" is W/(uᵀMv), u and v constant; "svd" W/σ₁(W); "live" W/σ after as many sweeps from
    the stored vectors as the layer makes in training, run anew for every W.

    Rows, by `layer` and `parameter`: `convention`; for each oracle its name: the largest |analytic − difference| along
    a direction, in units of ‖G‖/σ̂, and `<oracle>_error`: the error that the difference itself has there, by its own
    estimate; `meets`: the oracles that it cannot be told from, along no direction by more than ten times that error;
    `relative` and `angle` (degrees): how far the whole gradient is from the frozen one, (G − λ u vᵀ)/σ̂. At converged u
    and v the oracles have the same derivative, and the conventions with an oracle meet all three.

    `like`: another library, or several, or "all", of `minigrad.spectral.emulation.LIBRARIES`: rows are these libraries
    instead, one training call of each from the stored u (and v), by `emulate`: `library`, `version`, `convention`, and
    `ran` (its numbers were recorded from it; else it was only read). The oracles are those of that library's own call:
    frozen at the vectors that its sweeps end with, svd of its matrix, live in its order, with norms not softened by ε.
    Its matrix is the one that it makes of this layer in its own layout: outputs as rows for Linear, Conv and cells (in
    Keras, Flax and Haiku the last axis of a kernel that is the transpose of ours); for a transposed convolution
    outputs too, but inputs for Keras, Haiku and BigGAN; for an embedding its rows, but for Keras, Flax and Haiku the
    features; "paddle-op" takes the layer's `dim`, "aidotnet" a padded square. Where that is not the matrix that the
    stored vectors belong to, unit vectors from a fixed seed are the start.

    `layers`: the path of a part of the model, to compare only what is below it.

    Differences need float64: in a float32 model rounding leaves three or four digits of them, which their error says
    and `meets` allows for; `model.to(mg.float64)`, and the data, sharpen all of it. float16 is refused.

    Nothing changes: no u, v, grad, buffer (running statistics, say), training flag, nor the default random generator,
    which is set back for every evaluation, so that a loss with dropout is deterministic. Modules outside of `model` are
    the loss's own affair.

    ValueError: no normalized weight; an unknown `like` or `layers`; a loss that is not a finite scalar Tensor, gives
    two values in two evaluations, or does not depend on a weight. TypeError: a float16 weight.

    >>> import minigrad as mg
    >>> _ = mg.manual_seed(0)
    >>> layer = mg.nn.utils.spectral_norm(mg.nn.Linear(4, 3, dtype=mg.float64), n_init_iterations=1)
    >>> x = mg.randn(5, 4, dtype=mg.float64)
    >>> table = mg.spectral.compare_gradients(layer, lambda: layer(x).sin().mean())
    >>> for row in table:
    ...     print(f"{row['convention']:16s} meets {' '.join(row['meets']) or 'none':6s} off by {row['relative']:.0%}")
    fixed_uv         meets frozen off by 0%
    detached         meets none   off by 74%
    straight_through meets none   off by 73%
    projected        meets none   off by 73%
    unrolled         meets live   off by 42%
    exact            meets svd    off by 58%
    elementwise      meets none   off by 78%
    >>> (row,) = mg.spectral.compare_gradients(layer, lambda: layer(x).sin().mean(), like="keras-tf")
    >>> row["version"], row["convention"], row["meets"]
    ('keras 3.15.1, tensorflow 2.21.0', 'projected', [])
    """
    who = "compare_gradients"
    weights = normalized_weights(who, model)
    chosen = normalized_weights(who, model, layers)
    libraries = None if like is None else _libraries(like)
    function = Loss(who, model, loss, weights)
    first, second = function({}), function({})
    if not math.isfinite(first):
        raise ValueError(f"{who}: expected a finite loss; loss() returned {first}")
    if first != second:
        raise ValueError(
            f"{who}: expected a deterministic loss; two evaluations gave {first!r} and {second!r}. Use the same batch "
            f"and the same random numbers each time, and put modules outside of the model into evaluation mode."
        )
    rows: list[Row] = []
    for weight in chosen:
        if weight.rule.original.dtype == np.float16:
            raise TypeError(f"{who}: {weight.full_name} is float16, too coarse for differences: model.to(mg.float64)")
        found = _conventions(weight, function) if libraries is None else _emulations(weight, function, libraries)
        with enable_grad():
            rows += [{"layer": weight.path, "parameter": weight.name} | row for row in found]
    return _gradient_table(model, rows, libraries is not None)


def _libraries(like: str | Sequence[str]) -> list[str]:
    names = list(LIBRARIES) if like == "all" else [like] if isinstance(like, str) else list(like)
    if unknown := [name for name in names if name not in LIBRARIES]:
        raise ValueError(
            f"compare_gradients: expected like to be of {', '.join(LIBRARIES)}, or 'all'; got {', '.join(unknown)}"
        )
    return names


class View:
    """The matrix of a weight, turned so that sweeps go u first: for the order "vu" it is the transpose.

    `places`: in the place of each entry of the matrix the number of the entry of the weight that stands there, from 1
    on in the weight's own order; 0 for none.
    """

    def __init__(self, places: Places, order: str):
        self.order = order
        self.places = places if order == "uv" else places.T

    def flat(self, weight: Array) -> Array:
        """The matrix of a weight."""
        entries: Array = np.append(0.0, weight)
        return entries[self.places]

    def back(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """The adjoint of `flat`, for a weight of this shape."""
        entries = np.bincount(self.places.ravel(), matrix.ravel(), math.prod(shape) + 1).astype(np.float64)
        return entries[1:].reshape(shape)

    def turned(self, u: Array, v: Array) -> tuple[Array, Array]:
        """u and v of the matrix before it was turned as those of the turned one, and the other way round."""
        return (u, v) if self.order == "uv" else (v, u)


class _Judge:
    """The three functions of one weight in NumPy, and the derivatives of the loss through each of them.

    `points`: the u and v of each oracle, for the matrix that the view makes of the weight.
    """

    def __init__(
        self, weight: Normalized, function: Loss, view: View, points: Mapping[str, tuple[Array, Array]], sweeps: int
    ):
        self.weight, self.function, self.view, self.points, self.sweeps = weight, function, view, points, sweeps
        raw = weight.raw()
        self.factor, self.floor = weight.scale(), function.floor(weight)
        sigmas = {name: abs(self._sigma(name, raw)) for name in ORACLES}
        if not all(sigma > 0 for sigma in sigmas.values()):
            raise ValueError(
                f"{function.who}: σ of {weight.full_name} is 0, where W/σ has no derivative. Leave it out with layers=."
            )
        upstream, slope = self._upstream("frozen", raw), view.back(np.outer(*points["frozen"]), raw.shape)
        named = {"G": upstream, "W": raw, "u vᵀ": slope}
        along = self.along = directions(raw, named, RANDOM, False, 0)
        self.scale = float(np.linalg.norm(upstream)) / sigmas["frozen"]
        sigma = self._sigma("frozen", raw)  # (12) in the entries of the weight: a convolution's matrix repeats them
        self.frozen = (upstream - np.vdot(upstream, raw) / sigma * slope) / sigma
        eps = max(function.eps, weight.eps())
        self.numeric = {
            name: _differences(partial(self._loss, name), raw, along, 0.1 * size, eps) for name, size in sigmas.items()
        }

    def _sigma(self, oracle: str, w: Array) -> float:
        with np.errstate(all="ignore"):
            return ORACLES[oracle].sigma(self.view.flat(w), *self.points[oracle], self.sweeps)

    def _w_tilde(self, oracle: str, w: Array) -> Tensor:
        with np.errstate(all="ignore"):
            return self.weight.tensor(self.factor * w / self._sigma(oracle, w))

    def _loss(self, oracle: str, w: Array) -> float:
        return self.function({self.weight.key: self._w_tilde(oracle, w)})

    def _upstream(self, oracle: str, w: Array) -> Array:
        """G = ∂L/∂W̄, where the oracle has W̄."""
        leaf = self._w_tilde(oracle, w).requires_grad_()
        (g,) = self.function.gradients({self.weight.key: leaf}, [leaf])
        if g is None or not host(g).any():
            raise ValueError(
                f"{self.function.who}: the loss does not depend on {self.weight.full_name}: its gradient is 0. Use it "
                f"in the loss, or leave it out with layers=."
            )
        return self.factor * host(g)

    def __call__(self, convention: str, gradient: Array | None) -> Row:
        """What a row says of a gradient."""
        found: dict[str, Residual] = {}
        if gradient is not None:
            for name in ORACLES:
                numbers = self.frozen, self.numeric[name], self.along, self.scale, self.floor
                found[name] = compare(convention, name, gradient, *numbers)
        row: Row = {"convention": convention}
        for name in ORACLES:
            residual = found.get(name)
            row |= {name: residual and residual.residual, f"{name}_error": residual and residual.error}
        frozen = found.get("frozen")
        row["meets"] = [name for name, residual in found.items() if residual.meets]
        return row | {"relative": frozen and frozen.relative, "angle": frozen and frozen.angle}


def _differences(
    f: Callable[[Array], float], weight: Array, along: Directions, step: float, eps: float
) -> Numeric:
    """The derivatives of f at the weight along each direction, f being computed to a relative precision of eps.

    In float32 steps cannot be so small as to be clear of a network's kinks, which extrapolation takes for accidents.
    There it is plain central differences, at the one step for all directions where they commonly differ least from
    those at neighbouring steps, which is their error. The noise of f is measured at points that float32 tells apart.
    """
    if eps == EPS:
        return differentiate(f, weight, along, step)
    steps = step * 0.5 ** np.arange(HALVINGS)
    values, errors = np.empty((2, len(along.rows), HALVINGS - 3))
    for i, row in enumerate(along.rows):
        through = partial(_through, f, weight, row.reshape(weight.shape))
        noise = max(measure_noise(through, np.ones((1, 1)), 2.0**18 * step)[0], eps * abs(f(weight)))
        with np.errstate(invalid="ignore", over="ignore"):
            slopes = np.array([(through(h) - through(-h))[0] / (2 * h) for h in steps])
            values[i] = slopes[1:-2]
            around = [slopes[k : HALVINGS - 3 + k] for k in range(4)]
            errors[i] = np.ptp(around, axis=0) + ROUNDING * noise / steps[1:-2]
    best = int(np.argmin(np.median(np.where(np.isfinite(errors), errors, np.inf), axis=0)))
    return Numeric(values[:, best], errors[:, best])


def _through(f: Callable[[Array], float], weight: Array, direction: Array, t: float) -> Array:
    return np.array([f(weight + t * direction)])


def _conventions(weight: Normalized, function: Loss) -> Iterator[Row]:
    """A row for each gradient convention, at the stored vectors."""
    rule = weight.rule
    view = View(weight.matrix(_numbers(weight)).astype(np.int64), rule.order)
    point = view.turned(*weight.flat_vectors())
    judge = _Judge(weight, function, view, dict.fromkeys(ORACLES, point), rule.n_power_iterations)
    for name in CONVENTIONS:
        if name == "exact" and not weight.reshaped:  # a convolution's singular pair is not decomposed
            yield judge(name, None)
            continue
        leaf = rule.original.detach().clone().requires_grad_()
        made = weight.normalize(name, leaf, rule.n_power_iterations)
        yield judge(name, _gradient(function, weight, made, leaf))


def _emulations(weight: Normalized, function: Loss, libraries: Sequence[str]) -> Iterator[Row]:
    """A row for each library's own call."""
    rule, judges = weight.rule, dict[tuple[int | None, str, str, float], _Judge]()
    n, like = rule.n_power_iterations, weight.vectors()[0]
    for name in libraries:
        library = LIBRARIES[name]
        axis = library_axis(name, weight.module, weight.axis)
        squared = library.rows == "square"
        places = square(_numbers(weight)) if squared else as_matrix(_numbers(weight), axis)
        if axis == weight.axis and weight.reshaped and not squared:
            u, v = weight.flat_vectors()
        else:
            rng = np.random.default_rng(0)
            u, v = (unit(rng.standard_normal(extent)) for extent in places.shape)
        kind = None if squared else axis, library.order, library.form, library.eps
        if kind not in judges:
            view = View(places, library.order)
            start = view.turned(u, v)
            end = start
            for _ in range(n):  # the view is turned: u first
                end = sweep(library._replace(order="uv"), view.flat(weight.raw()), *end)
            judges[kind] = _Judge(weight, function, view, {"frozen": end, "svd": end, "live": start}, n)
        leaf = rule.original.detach().clone().requires_grad_()
        vectors = (tensor(x, dtype=like.dtype, device=like.device) for x in (u, v))
        call = emulate(name, leaf, *vectors, axis=axis, n_power_iterations=n)
        gradient = _gradient(function, weight, weight.scaled(call.weight_bar), leaf)
        found = judges[kind](library.gradient, gradient)
        yield {"library": name, "version": library.version, "ran": library.ran} | found


def _numbers(weight: Normalized) -> Places:
    """1, 2, … in the shape of the weight."""
    return np.arange(1, weight.rule.original.numel() + 1).reshape(weight.rule.original.shape)


def _gradient(function: Loss, weight: Normalized, w_tilde: Tensor, leaf: Tensor) -> Array:
    """∂L/∂W for the W̃ that a graph makes of W."""
    (found,) = function.gradients({weight.key: w_tilde}, [leaf])
    assert found is not None
    return host(found)


def library_axis(like: str, module: Module, dim: int) -> int:
    """The axis that a library's matrix has as rows, in the layout that the weight of this module has here."""
    rows = LIBRARIES[like].rows
    if rows == "any":
        return dim
    if isinstance(module, Embedding):
        return 1 if rows == "last" else 0
    if isinstance(module, ConvTranspose1d | ConvTranspose2d | ConvTranspose3d):
        return 0 if like in ROWS_OF_INPUTS else 1
    return 0


def _gradient_table(model: Module, rows: list[Row], emulated: bool) -> Table:
    def residual(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: MISSING if row[name] is None else f"{row[name]:.0e} ±{row[f'{name}_error']:.0e}"

    def off(row: Mapping[str, Any]) -> str:
        x = row["relative"]
        return MISSING if x is None or x != x else f"{x:.1%}" if x >= 1e-3 else f"{x:.0e}"

    convention = Column("convention", "convention", text=True)
    columns = [WEIGHT, convention, *(Column(name, name, residual(name)) for name in ORACLES)]
    if emulated:
        columns = [
            WEIGHT,
            Column("library", "library", text=True),
            Column("version", "version", text=True),
            Column("ran", "code", lambda row: "ran" if row["ran"] else "read only", text=True),
            convention,
            Column("frozen", "frozen", residual("frozen")),
        ]
    columns += [
        Column("meets", "meets", lambda row: ", ".join(row["meets"]) or "none", text=True),
        Column("relative", "off\u00a0by", off),
        Column("angle", "angle", ".2f"),
    ]
    whose = "each library's" if emulated else "each convention's"
    note = (
        "frozen: W/(uᵀMv) with u, v constant; svd: W/σ₁(W); live: the sweeps run anew. Below these names the largest "
        "|analytic − difference| along a direction, in units of ‖G‖/σ̂, ± the difference's own error. Off by, and the "
        "angle in degrees: from the gradient with u, v frozen."
    )
    return Table(rows, columns, f"{type(model).__name__}: {whose} gradient against differences of the loss", note)
