"""`derivative`: known derivatives lie within its own estimate of the error."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from minigrad._differences import derivative

KNOWN: dict[str, tuple[Callable[[float], float], float]] = {
    "constant": (lambda t: 3.0, 0.0),
    "zero": (lambda t: 0.0, 0.0),
    "line": (lambda t: 5.0 * t - 1, 5.0),
    "exp": (math.exp, 1.0),
    "sine far out": (lambda t: math.sin(1000 + t), math.cos(1000)),
    "cancelling": (lambda t: 1 - math.cos(1e-3 + t), math.sin(1e-3)),
    "buried": (lambda t: 1e8 + math.sin(t), 1.0),
    "rounded coarsely": (lambda t: (1e8 + math.sin(0.3 + t)) - 1e8, math.cos(0.3)),
    "log near its end": (lambda t: math.log(1e-4 + t) if t > -1e-4 else math.nan, 1e4),
    "kink near": (lambda t: abs(1e-5 + t), 1.0),
    "even": (lambda t: t * t, 0.0),
}


NOT_SO_EXACT = ("buried", "rounded coarsely", "kink near", "log near its end")


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("step", [1.0, 0.1, 1e-3])
def test_known_derivatives_lie_within_the_estimate(name: str, step: float) -> None:
    f, truth = KNOWN[name]
    found = derivative(f, step)
    assert abs(found.value - truth) <= found.error
    assert found.error <= 1e-9 * max(1.0, abs(truth)) or name in NOT_SO_EXACT
    assert 0 < found.step <= step


coefficient = st.floats(0.01, 100) | st.floats(-100, -0.01)


@settings(max_examples=300, deadline=None)
@given(a=coefficient, b=st.floats(-5, 5), c=coefficient, d=st.floats(-20, 20), e=coefficient, x=st.floats(-2, 2))
def test_the_estimate_covers_the_truth_for_smooth_functions(
    a: float, b: float, c: float, d: float, e: float, x: float
) -> None:
    found = derivative(lambda t: a * math.exp(b * (x + t)) + c * math.sin(d * (x + t)) + e * (x + t) ** 3, 0.1)
    terms = a * b * math.exp(b * x), c * d * math.cos(d * x), 3 * e * x * x
    own = 4e-16 * sum(abs(term) * (1 + abs(d * x)) for term in terms)  # the rounding of this truth itself
    assert abs(found.value - sum(terms)) <= 2 * found.error + own
    assert found.error <= 1e-8 * (abs(a) * math.exp(5 * abs(x)) + abs(c) + 10 * abs(e) + sum(map(abs, terms)))


def test_an_accidental_agreement_of_two_differences_is_seen_through() -> None:
    found = derivative(lambda t: t + math.sin(2 * math.pi * t / 0.125), 0.125)  # a wave of the first and second steps
    assert abs(found.value - (1 + 2 * math.pi / 0.125)) <= found.error < 1e-9


def test_where_there_is_no_derivative() -> None:
    nowhere = derivative(lambda t: math.nan, 0.1)
    assert math.isnan(nowhere.value) and nowhere.error == math.inf
    jump = derivative(lambda t: 1.0 if t > 0 else 0.0, 0.1)
    assert jump.error > 0.1 * abs(jump.value) > 0
    for step in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="positive, finite step"):
            derivative(math.exp, step)
