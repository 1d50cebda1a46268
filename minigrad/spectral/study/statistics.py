"""The statistics of a paired comparison: Student's t, intervals over seeds, and Holm's correction."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass


def within(t: float, freedom: int) -> float:
    """P(|T| ≤ t) for Student's t with a whole number of degrees of freedom: the finite sums of Student (1908).

    With θ = atan(t/√ν): even ν, sin θ (1 + ½cos²θ + ⅜cos⁴θ + …); odd ν, (2/π)(θ + sin θ (cos θ + ⅔cos³θ + …)).

    >>> round(within(2.776, 4), 4)
    0.95
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


@functools.cache
def quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| ≤ t) = confidence, by bisection.

    >>> round(quantile(0.95, 4), 3)
    2.776
    """
    low, high = 0.0, 1.0
    while within(high, freedom) < confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < confidence else (low, middle)
    return high


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, half the width of its confidence interval, and the p-value of "the mean is 0"."""

    mean: float
    half: float
    p: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean ± t·s/√n over n ≥ 2 independent values; of paired differences, the paired t test."""
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)
    if spread == 0:
        return Interval(mean, 0.0, 1.0 if mean == 0 else 0.0)
    return Interval(mean, quantile(confidence, n - 1) * spread, 1 - within(mean / spread, n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the result is below α, and the family errs with probability ≤ α.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
