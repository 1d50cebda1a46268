"""Copies in order, against NumPy's, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from minigrad.kernels.cpu import _jit, _layout

DTYPES = [np.float32, np.float64, np.int64, np.int32, np.int16, np.bool_]


def drawn(shape, dtype):
    """Of all bits: as floats NaN of all kinds, subnormal numbers and −0 too."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return (
        np.random.default_rng(0).integers(0, 2 if dtype is np.bool_ else 256, size, np.uint8).view(dtype).reshape(shape)
    )


def same(x):
    made = _layout.in_order(x)
    assert made.flags.c_contiguous and made.dtype == x.dtype and made.shape == x.shape
    assert made.tobytes() == np.ascontiguousarray(x).tobytes()


TURNED = {
    "a matrix": ((301, 259), lambda x: x.T),
    "powers of two": ((512, 256), lambda x: x.T),
    "channels last": ((5, 33, 21, 31), lambda x: x.transpose(0, 2, 3, 1)),
    "channels first": ((5, 21, 31, 33), lambda x: x.transpose(0, 3, 1, 2)),
    "a dimension in between": ((40, 50, 60), lambda x: x.transpose(2, 1, 0)),
    "a dimension of 1": ((300, 1, 301), lambda x: x.transpose(2, 1, 0)),
    "a part": ((400, 500), lambda x: x[3:, 5:].T),
    "backwards": ((300, 301), lambda x: x[::-1].T),
    "stretched": ((1, 301), lambda x: np.broadcast_to(x, (300, 301)).T),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
@pytest.mark.parametrize("name", TURNED)
def test_what_is_turned(name, dtype, monkeypatch):
    shape, view = TURNED[name]
    x = view(drawn(shape, dtype))
    before = x.copy()
    assert _layout._turned(x) is not None
    same(x)
    assert x.tobytes() == before.tobytes()
    monkeypatch.setattr(_jit, "_forked", True)  # the serial variant
    same(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not(dtype):
    """In order already, too small, of odd sizes, of too many dimensions, from any place in memory."""
    x = drawn((300, 300), dtype)
    assert _layout.in_order(x) is x
    odd = np.empty(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)
    odd[:] = x
    records = np.zeros(300, [("x", dtype, 300), ("y", np.uint8)])  # lines of an odd number of bytes
    records["x"] = x
    for other in (x[::2, ::2].T, x[:9, :9].T, x[:, ::-1], odd.T, records["x"].T, drawn((17, 16, 15, 18), dtype).T):
        same(other)


@pytest.fixture(scope="module")
def everything_is_large():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_layout, "_LARGE", 2)
        yield


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_walk(everything_is_large, data):
    n = data.draw(st.integers(0, 4))
    shape = [data.draw(st.integers(0, 40)) for _ in range(n)]
    order = data.draw(st.permutations(range(n)))
    steps = tuple(slice(None, None, data.draw(st.sampled_from([1, 1, 2, -1, -3]))) for _ in range(n))
    same(drawn(shape, data.draw(st.sampled_from(DTYPES))).transpose(order)[steps])
