"""The statistics of `minigrad study` against a printed table, by hand, and on differences that are known."""

import math

import numpy as np
import pytest

from minigrad.spectral.study import comparison
from minigrad.spectral.study.statistics import holm, interval, quantile, within


@pytest.mark.parametrize(
    "confidence, freedom, known",  # a printed table of Student's t
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 4, 2.776), (0.99, 5, 4.032), (0.90, 9, 1.833), (0.95, 30, 2.042)],
)
def test_students_t(confidence, freedom, known):
    assert quantile(confidence, freedom) == pytest.approx(known, abs=6e-4)
    assert within(quantile(confidence, freedom), freedom) == pytest.approx(confidence, abs=1e-12)


def test_an_interval_by_hand():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.half == pytest.approx(2.77645 * math.sqrt(2.5 / 5), abs=1e-4)
    assert found.p == pytest.approx(0.0132, abs=1e-4)
    assert interval([0.0, 0.0, 0.0]).p == 1
    assert interval([0.5, 0.5, 0.5]).p == 0


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_difference_is_detected_where_there_is_one_and_not_where_there_is_none():
    rng = np.random.default_rng(0)
    records = [
        comparison.Record(name, seed, 9, "layer", loss, 0.9, 1.0, 1.0, 1.0, 0.0)
        for seed in range(6)
        for base in [rng.standard_normal()]
        for name, loss in (("fixed_uv", base), ("exact", base + 0.01 * rng.standard_normal()), ("detached", base + 1))
    ]
    found = {(p.convention, p.measure): p for p in comparison.differences(records, "fixed_uv")}
    assert found["detached", "loss"].detected and not found["exact", "loss"].detected
    assert not found["detached", "accuracy"].detected and found["detached", "accuracy"].difference.half == 0
