"""What the normalization of each library computes and what its gradient is the derivative of: measured, not quoted.

A dense layer with a random weight W is called once by `emulate`, from random unit vectors u and v that have nothing to
do with W, so that the three oracles differ, and differentiated with a random upstream gradient G. The oracles are plain
NumPy: frozen, W/uᵀMv at the vectors that the library's sweep ends with; svd, W/σ₁(M); live, the sweep run again from
the vectors before the call, in the library's order and with its ε. M is the matrix that the library makes of W.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minigrad._tensor import Tensor
from minigrad.autograd import grad
from minigrad.ops.conventions import CONVENTIONS
from minigrad.ops.creation import tensor
from minigrad.spectral.emulation import LIBRARIES, Emulated, Library, emulate
from minigrad.spectral.oracles import ORACLES, Array, unit
from minigrad.spectral.residuals import FACTOR, FLOOR, angle, differentiate, directions, first_step

#: Outputs × inputs of the layer, random directions beside G, W and u vᵀ, and σ₁ of a weight on which ε may be felt.
SHAPE, RANDOM, TINY = (6, 9), 16, 1e-6

#: What an evaluation call may make of W.
RAW, STORED, AGAIN = "W as it is", "W/uᵀMv at the stored u, v", "W/uᵀMv after another sweep"

_ROWS = {
    "0": "axis 0",
    "last": "last axis",
    "outputs": "outputs",
    "any": "any axis",
    "square": "the entries in a square",
}
_SAME = 1e-9  # relative: two arrays nearer than this are the same function of W
#: What is known of a row beyond its table entry, where the library was not run.
CAVEATS = {
    "aidotnet": "the square is as reported, while its source at e5efcb9 has outputs × inputs; it divides by σ + ε"
}

_FORMS = {"clamp": "x/max(‖x‖, {})", "add": "x/(‖x‖ + {})", "sqrt": "x/√(‖x‖² + {})"}


@dataclass(frozen=True)
class Held:
    """A library's gradient against differences of one oracle, along unit directions; numbers over ‖G‖/σ."""

    oracle: str
    along: list[str]
    analytic: Array
    numeric: Array
    errors: Array  # of the differences, as they estimate it

    @property
    def worst(self) -> int:
        """Where |analytic − numeric| is largest."""
        gap = np.abs(self.analytic - self.numeric)
        return int(np.argmax(np.where(np.isfinite(gap), gap, np.inf)))

    @property
    def residual(self) -> float:
        """The largest |analytic − numeric|."""
        return float(abs(self.analytic - self.numeric)[self.worst])

    @property
    def error(self) -> float:
        """The difference's own error there."""
        return float(self.errors[self.worst])

    @property
    def meets(self) -> bool:
        """Do they agree along every direction, as well as the differences can tell?"""
        return bool(np.all(np.abs(self.analytic - self.numeric) <= np.maximum(FLOOR, FACTOR * self.errors)))


@dataclass(frozen=True)
class Row:
    """What was found of one library; norms of matrices are spectral, and relative errors are in Frobenius norms."""

    name: str
    seed: int
    held: dict[str, Held]
    cold: float  # uᵀMv/σ₁(M) after the sweep: how far from convergence
    forward: float  # ‖W̄ − W/uᵀMv‖/‖W/uᵀMv‖ of the training call
    lam: float  # λ = ⟨G, W/uᵀMv⟩
    radial: float  # ⟨∂L/∂W, W⟩: 0 for a function that does not change with the scale of W
    relative: float  # ‖∂L/∂W − g‖/‖g‖ against the paper's gradient g, equation (12), at the same u and v
    angle: float  # between them, in degrees
    evaluation: str  # what an evaluation call makes of W, from the state that the training call left
    evaluation_gap: float  # ‖W̄ − W/uᵀMv‖/‖W/uᵀMv‖ of the evaluation call, σ being that of the training call
    overwritten: str  # when W̄ takes the place of W
    converged: float  # ‖W̄‖ for ‖W‖ = 1 and u, v the leading pair of M: 1 if it normalizes by the norm of W
    tiny: float  # the same for ‖W‖ = TINY: what ε does

    @property
    def library(self) -> Library:
        """The library's entry in the table of `emulation`."""
        return LIBRARIES[self.name]

    @property
    def gradient(self) -> str:
        """The formula of its ∂L/∂W."""
        return CONVENTIONS[self.library.gradient].formula

    @property
    def function(self) -> str:
        """The function W ↦ W̄ of a training call, in one line."""
        return function(self.library)

    @property
    def expected(self) -> str | None:
        """The oracle that it meets by the tables; None: none of them."""
        return CONVENTIONS[self.library.gradient].oracle

    @property
    def met(self) -> list[str]:
        """The oracles that it meets as measured."""
        return [held.oracle for held in self.held.values() if held.meets]

    @property
    def passed(self) -> bool:
        """Is that what the tables say?"""
        return self.met == ([self.expected] if self.expected else [])

    @property
    def command(self) -> str:
        """The command that makes this row again, with all its numbers."""
        return f"minigrad libraries {self.name} --seed {self.seed}"

    @property
    def evidence(self) -> str:
        """The command that compares the emulation with what the library itself computed, where that is recorded."""
        return f"python -m pytest -q tests/test_emulate.py -k {self.name}" if self.library.ran else ""

    @property
    def caveat(self) -> str:
        """What a reader of the row should know of its source; mostly nothing."""
        return CAVEATS.get(self.name, "")


def short(x: float, digits: int = 2) -> str:
    """A number of any size, as one writes it.

    >>> short(1e-4), short(1e12), short(2.449), short(1.0)
    ('1e-4', '1e12', '2.4', '1')
    """
    return (f"{x:.{digits}g}" if x >= 1e-3 else f"{x:.0e}").replace("e-0", "e-").replace("e+", "e")


def function(library: Library) -> str:
    """W ↦ W̄ of a training call: order of the sweep, normalizer, and which axis of W are the rows of M.

    >>> from minigrad.spectral.emulation import LIBRARIES
    >>> function(LIBRARIES["chainer"])
    'W/uᵀMv; v, then u; x/(‖x‖ + 1e-6); rows of M: axis 0 (transposed convolution: 1)'
    """
    order = ", then ".join(library.order)
    normalizer = _FORMS[library.form].format(short(library.eps))
    rows, _, other = library.rows.partition("; ")
    return f"W/uᵀMv; {order}; {normalizer}; rows of M: {_ROWS[rows]}" + (f" ({other})" if other else "")


class Problem:
    """What a library is given, all of it random, in float64, from the seed, and what its sweep makes of that."""

    def __init__(self, library: Library, seed: int):
        self.library = library
        self.axis = int(library.rows.startswith(("last", "outputs")))  # of a dense layer's outputs
        rng = np.random.default_rng(seed)
        weight, upstream = rng.standard_normal((2, *SHAPE))
        self.weight, self.upstream = (np.ascontiguousarray(x.T) if self.axis else x for x in (weight, upstream))
        matrix = self.matrix(self.weight)
        self.start = unit(rng.standard_normal(len(matrix))), unit(rng.standard_normal(matrix.shape[1]))
        self.directions = int(rng.integers(2**32))  # their seed
        self.u, self.v = sweep(library, matrix, *self.start)
        self.sigma = _pairing(matrix, self.u, self.v)

    def matrix(self, weight: Array) -> Array:
        """M: outputs × inputs, or the entries of W in a square, row after row, and zeros at its end."""
        if self.library.rows == "square":
            return square(weight)
        return weight.T if self.axis else weight

    @property
    def slope(self) -> Array:
        """∂σ/∂W with u and v frozen: u vᵀ in the layout of W."""
        flat = np.outer(self.u, self.v)
        return flat.ravel()[: self.weight.size].reshape(SHAPE) if self.library.rows == "square" else self.matrix(flat)

    @property
    def paper(self) -> Array:
        """The paper's gradient (12) at the library's u and v: (G − λ u vᵀ)/σ."""
        return (self.upstream - np.vdot(self.upstream, self.weight) / self.sigma * self.slope) / self.sigma

    def oracle(self, name: str, weight: Array) -> float:
        """⟨G, W/σ⟩ with the σ of an oracle."""
        matrix = self.matrix(weight)
        if name == "live":
            sigma = _pairing(matrix, *sweep(self.library, matrix, *self.start))
        else:
            sigma = ORACLES[name].sigma(matrix, self.u, self.v, 1)
        return float(np.vdot(self.upstream, weight)) / sigma


def measure(like: str, seed: int = 0, device: str = "cpu") -> Row:
    """One library's gradient against the three oracles, and what else its calls do to a weight.

    `like`: a name in `LIBRARIES`. W, G, the vectors and the directions are float64 and come from the seed; W has SHAPE,
    transposed for libraries whose dense layer has its outputs last. ValueError: an unknown `like`.

    >>> from minigrad.spectral.libraries import measure
    >>> for like in ("torch", "keras-tf"):
    ...     row = measure(like)
    ...     print(row.name, row.gradient, row.met, row.evaluation, f"{row.relative:.1f}", row.overwritten)
    torch (G − λ u vᵀ)/σ ['frozen'] W/uᵀMv at the stored u, v 0.0 never
    keras-tf G [] W as it is 2.8 training
    """
    if like not in LIBRARIES:
        raise ValueError(f"measure: expected like to be one of {', '.join(LIBRARIES)}; got {like!r}")
    given = Problem(LIBRARIES[like], seed)
    weight, matrix, normalized = given.weight, given.matrix(given.weight), given.weight / given.sigma

    def call(w: Array, vectors: tuple[Array, Array], training: bool = True) -> tuple[Tensor, Emulated]:
        x = tensor(w, device=device, requires_grad=True)
        u, v = (tensor(y, device=device) for y in vectors)
        return x, emulate(like, x, u, v, axis=given.axis, training=training)

    leaf, trained = call(weight, given.start)
    gradient = _host(grad(trained.weight_bar, leaf, tensor(given.upstream, device=device))[0])
    left = _host(trained.u), given.v if trained.v is None else _host(trained.v)
    _, evaluated = call(weight, left, training=False)
    made, used = _host(trained.weight_bar), _host(evaluated.weight_bar)
    leading, spectrum, trailing = np.linalg.svd(matrix)

    def norm_at(norm: float) -> float:
        scaled = weight * (norm / np.linalg.norm(weight, 2))
        _, called = call(scaled, (leading[:, 0], trailing[0]))
        return float(np.linalg.norm(_host(called.weight_bar), 2))

    return Row(
        name=like,
        seed=seed,
        held=_held(given, gradient),
        cold=given.sigma / float(spectrum[0]),
        forward=_apart(made, normalized),
        lam=float(np.vdot(given.upstream, normalized)),
        radial=float(np.vdot(gradient, weight)),
        relative=_apart(gradient, given.paper),
        angle=angle(gradient, given.paper),
        evaluation=_evaluation(given, used, left),
        evaluation_gap=_apart(used, normalized),
        overwritten=_overwritten(weight, (made, _host(trained.weight_after)), (used, _host(evaluated.weight_after))),
        converged=norm_at(1.0),
        tiny=norm_at(TINY),
    )


def square(entries: Any) -> Any:
    """The entries of an array in ⌈√N⌉ rows of that length, zeros at the end."""
    side = math.isqrt(entries.size - 1) + 1
    return np.pad(entries.ravel(), (0, side * side - entries.size)).reshape(side, side)


def sweep(library: Library, matrix: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """One power iteration in the library's order, with its ε in its place."""

    def normalized(x: Array) -> Array:
        size = float(np.linalg.norm(x))
        below = {"clamp": max(size, library.eps), "add": size + library.eps, "sqrt": math.sqrt(size**2 + library.eps)}
        return x / below[library.form]

    if library.order == "uv":
        u = normalized(matrix @ v)
        return u, normalized(matrix.T @ u)
    v = normalized(matrix.T @ u)
    return normalized(matrix @ v), v


def _held(given: Problem, gradient: Array) -> dict[str, Held]:
    """The gradient against differences of each oracle."""
    named = {"G": given.upstream, "W": given.weight, "u vᵀ": given.slope}
    along = directions(given.weight, named, RANDOM, False, given.directions)
    analytic = along.rows @ gradient.ravel()
    scale = float(np.linalg.norm(given.upstream)) / given.sigma
    step = first_step(given.matrix(given.weight))
    found = {name: differentiate(partial(given.oracle, name), given.weight, along, step) for name in ORACLES}
    return {
        name: Held(name, along.names, analytic / scale, numeric.value / scale, numeric.error / scale)
        for name, numeric in found.items()
    }


def _evaluation(given: Problem, used: Array, left: tuple[Array, Array]) -> str:
    """Which function of W the evaluation call has computed, out of those that there are."""
    matrix = given.matrix(given.weight)
    again = sweep(given.library, matrix, *left)
    sigmas = {RAW: 1.0, STORED: _pairing(matrix, *left), AGAIN: _pairing(matrix, *again)}
    found = [name for name, sigma in sigmas.items() if _apart(used, given.weight / sigma) < _SAME]
    return found[0] if found else "something else"


def _overwritten(weight: Array, *calls: tuple[Array, Array]) -> str:
    """When W̄ is what a call leaves; each call is its W̄ and the raw weight after it."""
    training, evaluation = (np.array_equal(after, made) and not np.array_equal(after, weight) for made, after in calls)
    return ("never", "evaluation", "training", "always")[2 * training + evaluation]


def _pairing(matrix: Array, u: Array, v: Array) -> float:
    return float(u @ matrix @ v)


def _apart(got: Array, wanted: Array) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def _host(x: Tensor) -> Array:
    return np.array(x.detach().to("cpu").numpy())


# In sentences ---------------------------------------------------------------------------------------------------------

#: What one would not expect of a layer that divides by σ: a sentence, which rows show it, and the number to tell.
FINDINGS: list[tuple[str, Callable[[Row], bool], Callable[[Row], str]]] = [
    (
        "The raw weight gets G itself, with no division by σ and no term along u vᵀ",
        lambda row: not row.met and row.library.gradient in ("straight_through", "projected"),
        lambda row: "",
    ),
    (
        "The derivative is taken entry by entry, as if an entry of W̄ depended on its own entry of W alone",
        lambda row: not row.met and row.library.gradient == "elementwise",
        lambda row: f"{row.angle:.0f}° from the paper's",
    ),
    ("Every training call overwrites W by W̄", lambda row: row.overwritten == "training", lambda row: ""),
    ("Every call overwrites W by W̄, in evaluation too", lambda row: row.overwritten == "always", lambda row: ""),
    ("Evaluation does not normalize: it uses W as it is", lambda row: row.evaluation == RAW, lambda row: ""),
    (
        "Evaluation sweeps again, so that its W̄ is not that of training",
        lambda row: row.evaluation == AGAIN and row.evaluation_gap > _SAME,
        lambda row: f"{row.evaluation_gap:.0%} off",
    ),
    (
        "Converged u and v do not give ‖W̄‖ = 1",
        lambda row: abs(row.converged - 1) > 1e-3,
        lambda row: f"{row.converged:.3f}",
    ),
    (
        f"Where ‖W‖ = {short(TINY)}, ε keeps ‖W̄‖ from being 1 even with converged u and v",
        lambda row: abs(row.tiny / row.converged - 1) > 1e-3,
        lambda row: short(row.tiny),
    ),
]


def findings(rows: list[Row]) -> list[str]:
    """The sentences of FINDINGS that some of these rows show, with their names."""
    told = [(what, [_named(row, tail(row)) for row in rows if shows(row)]) for what, shows, tail in FINDINGS]
    return [f"{what}: {', '.join(found)}." for what, found in told if found]


def summary(rows: list[Row]) -> str:
    """Which oracles these libraries meet, in one sentence."""
    by = {name: [row.name for row in rows if name in (row.met or ["none"])] for name in (*ORACLES, "none")}
    met = [f"{len(by[name])} of {len(rows)} meet ({o.letter}) {name}" for name, o in ORACLES.items() if by[name]]
    none = [f"{', '.join(by['none'])} meet none"] if by["none"] else []
    wrong = [row.name for row in rows if not row.passed]
    told = f"{'; '.join(met + none)}"
    return told + (f"; not as the tables say: {', '.join(wrong)}" if wrong else ", as the tables say")


def _named(row: Row, tail: str) -> str:
    told = ", ".join(([] if row.library.ran else ["read only"]) + ([tail] if tail else []))
    return f"{row.name} ({told})" if told else row.name
