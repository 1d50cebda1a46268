"""Central differences, extrapolated to step zero, with an honest estimate of their own error.

Ridders' scheme ("Accurate computation of F′(x) and F′(x)F″(x)", 1982) on Richardson's extrapolation (1911): the
central difference D(h) = (f(h) − f(−h))/2h is f′ + c₁h² + c₂h⁴ + …, so that differences at the steps h, h/2, h/4, …
combine in a triangular tableau to ever higher order. The error of an entry is how far it lies from the two entries it
was made of (truncation), plus what the noise of f makes of it (rounding); the entry of least error is the answer.
The noise of f is measured, not assumed, as a function's own cancellations may make it far worse than eps·|f|: it is
what a parabola leaves over at points so close that a smooth f is one there (in the spirit of Moré and Wild, "Estimating
computational noise", 2011; their points are evenly spaced, and rounding can keep step with those).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

EPS = 2.0**-52
LEVELS = 40  # halvings of the step: more than enough to pass from any step to one where noise rules
ROUNDING = 4.0  # standard deviations of the noise of f, over h: what rounding may do to an extrapolated difference
FEWEST = 3  # steps before a result is believed: two differences may agree by accident
NEARBY = np.array([-1.0, -0.83, -0.41, -0.13, 0.17, 0.54, 0.79, 1.0])  # where noise is measured, times one of
NEAR, FARTHER = 2.0**-30, 2.0**-16  # of the step: the second where rounding swallows steps as small as the first


class Difference(NamedTuple):
    """A derivative by differences: its value, the estimate of its error, and the smallest step that it used."""

    value: float
    error: float
    step: float


class Differences(NamedTuple):
    """The same for several functions of one variable at once."""

    value: Array
    error: Array
    step: Array


def derivative(f: Callable[[float], float], step: float) -> Difference:
    """f′(0) by central differences with Richardson extrapolation, in float64, with an estimate of its error.

    `step`: the largest step, a tenth of the scale on which f varies; it is halved until rounding outweighs what is
    left of truncation, so that a large one costs evaluations (two per halving) and a small one digits. A kink or a
    pole of f is harmless while it is farther away than the steps in the end. `error` is truncation plus rounding; a
    smooth f has |value − f′(0)| ≤ error but for rare bad luck. Where f is not finite near 0, value is NaN, error ∞.

    ValueError unless `step` is positive and finite.

    >>> import math
    >>> from minigrad._gradcheck import derivative
    >>> slope = derivative(lambda t: math.exp(2 * t), 0.1)
    >>> abs(slope.value - 2) < slope.error < 1e-12
    True
    """
    if not 0 < step < float("inf"):
        raise ValueError(f"derivative: expected a positive, finite step; got {step}")

    def vector(t: float) -> Array:
        return np.array([f(t)], np.float64)

    one = np.ones((1, 1))
    found = differentiate(vector, one, step, measure_noise(vector, one, step))
    return Difference(float(found.value[0]), float(found.error[0]), float(found.step[0]))


def measure_noise(f: Callable[[float], Array], weights: Array, step: float) -> Array:
    """The standard deviation of the rounding errors in each of `weights @ f(t)`, near t = 0."""
    parabolas = np.linalg.qr(np.vander(NEARBY, 3))[0]
    values = np.stack([f(t) for t in NEAR * step * NEARBY])
    still = np.all(values == values[0], axis=0)
    if still.any():
        values = np.where(still, [f(t) for t in FARTHER * step * NEARBY], values)
    with np.errstate(invalid="ignore"):
        rest = values - parabolas @ (parabolas.T @ values)
        measured = size_of(np.ones((1, len(NEARBY))), rest @ weights.T)[0] / math.sqrt(len(NEARBY) - 3)
        return np.maximum(measured, EPS * size_of(weights, values[0]))


def differentiate(f: Callable[[float], Array], weights: Array, step: float, noise: Array) -> Differences:
    """The derivatives at 0 of the functions t ↦ `weights @ f(t)`: f gives a vector, `weights` has a row for each."""
    value = np.full(len(weights), np.nan)
    error = np.full(len(weights), np.inf)
    used = np.full(len(weights), step)
    above: list[Array] = []  # the tableau's row at the step before
    for level in range(LEVELS):
        h = step * 0.5**level
        right, left = f(h), f(-h)
        with np.errstate(invalid="ignore", over="ignore"):
            row = [weights @ (right - left) / (2 * h)]
            rounding = ROUNDING * (noise + EPS * np.maximum(size_of(weights, right), size_of(weights, left))) / h
            if level >= FEWEST and np.all(error <= rounding):
                break
            if not np.all(np.isfinite(row[0])):  # beyond the domain: begin again with smaller steps
                above = []
                continue
            if above:  # an accident if the differences lead away from what those of larger steps agreed on
                away = abs(row[0] - value) > abs(above[0] - value) + 2 * (rounding + error)
                error = np.where(away, np.inf, error)
            for order, before in enumerate(above, start=1):
                ratio = 4.0**order
                row.append((ratio * row[-1] - before) / (ratio - 1))
                estimate = np.maximum(abs(row[-1] - row[-2]), abs(row[-1] - before)) + rounding
                better = estimate < error
                value, error, used = np.where(better, (row[-1], estimate, np.full_like(used, h)), (value, error, used))
        above = row
    return Differences(value, error, used)


def size_of(weights: Array, values: Array) -> Array:
    """What independent relative errors in the values amount to in `weights @ values`."""
    largest = np.max(abs(values), initial=0.0) or 1.0  # so that no square overflows or vanishes
    return np.sqrt(weights**2 @ (values / largest) ** 2) * largest
