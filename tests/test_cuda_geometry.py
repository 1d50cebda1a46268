"""How CUDA kernels find an element's place: division by multiplication, and walks of any number of dimensions.

The oracles are Python's integers and NumPy's strides; the kernels here do nothing but ask.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

pytestmark = pytest.mark.usefixtures("on_cuda")
_MOST = (1 << 32) - 1


@pytest.fixture(scope="module")
def asked() -> Any:
    """Kernels of the test's own; declared late, as without a GPU or its simulator there is nothing to declare."""
    array, launch, places, numba = (
        importlib.import_module(f"minigrad.kernels.cuda.{name}") for name in ("array", "launch", "_places", "_numba")
    )

    @launch.kernel("u4 u4[] u4[] u4[] u4[]")
    def _quotients(size: Any, out: Any, x: Any, factors: Any, shifts: Any) -> None:
        for i in launch.items(size):
            out[i] = numba.divided(x[i], factors[i], shifts[i])

    @launch.kernel("u4 u4[] u4[] u4[] u4[]")
    def _places(size: Any, a: Any, b: Any, c: Any, layout: Any) -> None:
        for i in launch.items(size):
            a[i], b[i], c[i] = places.places(layout, i)

    yield array, _quotients, _places, numba.divisor
    for kernel in (_quotients, _places):
        del launch.KERNELS[kernel.name]


def test_a_division_by_multiplication_is_exact(asked: Any) -> None:
    array, quotients, _, divisor = asked
    rng = np.random.default_rng(0)
    near = [2**k + d for k in range(1, 33) for d in (-1, 0, 1) if 2 <= 2**k + d <= _MOST]
    divisors = [*range(2, 60), *near, *map(int, 2 + np.exp(rng.uniform(0, 22, 200)).astype(np.int64))]
    pairs = [
        (i, n) for n in divisors for m in (0, 1, _MOST // n // 2, _MOST // n) for i in (m * n - 1, m * n, m * n + n - 1)
        if 0 <= i <= _MOST
    ] + [(int(i), n) for n in divisors for i in rng.integers(0, 1 << 32, 3)]  # fmt: skip
    x, factors, shifts = (
        array.from_host(np.array(column, np.uint32))
        for column in zip(*((i, *divisor(n)) for i, n in pairs), strict=True)
    )
    out = array.empty(x.shape, np.uint32)
    quotients.each(out.size, out, x, factors, shifts)
    assert array.to_host(out).tolist() == [i // n for i, n in pairs]


@given(st.lists(st.tuples(st.integers(0, 7), *(st.integers(-40, 40) for _ in range(3))), max_size=5), st.integers(1, 3))
def test_places_are_those_of_the_strides(asked: Any, dimensions: list[tuple[int, ...]], operands: int) -> None:
    array, _, places, _ = asked
    shape, *strides = zip(*dimensions, strict=True) if dimensions else ((), (), (), ())
    strides = strides[:operands]
    out = [array.empty(shape, np.uint32) for _ in range(3)]
    places.each(out[0].size, *out, array.geometry(shape, *strides))
    for found, steps in zip(out, strides, strict=False):
        expected = sum(i * step for i, step in zip(np.indices(shape), steps, strict=True)) + np.zeros(shape, np.int64)
        np.testing.assert_array_equal(array.to_host(found), expected - expected.min(initial=0))  # from the lowest
