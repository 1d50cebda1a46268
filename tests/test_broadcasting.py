"""Shapes that broadcast and memory that is strided, drawn by Hypothesis: values and gradients against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

import minigrad as mg


def _half(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 where x > y, ½ at a tie."""
    return np.heaviside(x - y, 0.5)


#: name -> (the op, NumPy's, ∂/∂x, ∂/∂y), the last two as functions of x and y before the sum over stretched dimensions
BINARY = {
    "add": (mg.add, np.add, lambda x, y: 1 + 0 * x * y, lambda x, y: 1 + 0 * x * y),
    "sub": (mg.sub, np.subtract, lambda x, y: 1 + 0 * x * y, lambda x, y: -1 + 0 * x * y),
    "mul": (mg.mul, np.multiply, lambda x, y: y + 0 * x, lambda x, y: x + 0 * y),
    "div": (mg.div, np.divide, lambda x, y: 1 / y + 0 * x, lambda x, y: -x / y**2),
    "pow": (mg.pow, np.power, lambda x, y: y * x ** (y - 1), lambda x, y: x**y * np.log(x)),
    "maximum": (mg.maximum, np.maximum, _half, lambda x, y: _half(y, x)),
    "minimum": (mg.minimum, np.minimum, lambda x, y: _half(y, x), _half),
}
#: name -> (the op, NumPy's) of one strided array
MOVES = {
    "sum": (lambda x: x.sum(-1), lambda x: x.sum(-1)),
    "cumsum": (lambda x: x.cumsum(0), lambda x: x.cumsum(0)),
    "reshape": (lambda x: x.reshape(-1), lambda x: x.reshape(-1)),
    "T": (lambda x: x.T, lambda x: x.T),
    "flip": (lambda x: x.flip(0), lambda x: x[::-1]),
    "sigmoid": (mg.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "clone": (mg.clone, np.copy),
}


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    """Values in (0.5, 1.5) behind a view of that shape: permuted, stepped, reversed, or stretched with stride 0."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 2, -1, 0])) for _ in shape]
    memory = [1 if steps[d] == 0 else shape[d] * abs(steps[d]) for d in order]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    view = rng.uniform(0.5, 1.5, memory)[tuple(slice(None, None, steps[d] or 1) for d in order)]
    return np.broadcast_to(view.transpose([order.index(d) for d in range(len(shape))]), shape)


def stretched_sum(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    g = g.sum(tuple(range(g.ndim - len(shape))))
    return g.sum(tuple(d for d, n in enumerate(shape) if n == 1), keepdims=True)


@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
def test_any_two_shapes_that_broadcast(name: str, device: str, data: st.DataObject) -> None:
    op, reference, by_x, by_y = BINARY[name]
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4)).input_shapes
    x, y = (data.draw(strided(shape)) for shape in shapes)
    a, b = (mg.from_numpy(array.view()).to(device).requires_grad_() for array in (x, y))
    out = op(a, b)
    expected = np.asarray(reference(x, y))
    assert out.shape == expected.shape
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-14)
    g = np.random.default_rng(0).standard_normal(expected.shape)
    out.backward(mg.tensor(g, device=device))
    np.testing.assert_allclose(a.grad.numpy(), stretched_sum(g * by_x(x, y), x.shape), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(b.grad.numpy(), stretched_sum(g * by_y(x, y), y.shape), rtol=1e-12, atol=1e-13)


@given(data=st.data())
def test_shapes_that_do_not_broadcast_are_refused_with_both_named(data: st.DataObject) -> None:
    shapes = [data.draw(hnp.array_shapes(max_dims=3, max_side=4)) for _ in range(2)]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        with pytest.raises(ValueError, match="do not broadcast") as error:
            mg.zeros(shapes[0]) + mg.zeros(shapes[1])
        assert all(str(shape) in str(error.value) for shape in shapes)


@pytest.mark.parametrize("name", MOVES)
@given(data=st.data())
def test_any_strides(name: str, data: st.DataObject) -> None:
    """Values against NumPy; gradients to the bit those of a contiguous copy, whose correctness the op table shows."""
    op, reference = MOVES[name]
    array = data.draw(strided(data.draw(hnp.array_shapes(max_dims=4, max_side=4))))
    gradients = []
    for memory in (array, np.ascontiguousarray(array)):
        x = mg.from_numpy(memory.view()).requires_grad_()
        out = op(x)
        np.testing.assert_allclose(out.detach().numpy(), reference(array), rtol=1e-14)
        out.backward(mg.tensor(np.random.default_rng(1).standard_normal(out.shape)))
        gradients.append(x.grad.numpy())
    assert np.array_equal(*gradients)


@given(data=st.data())
def test_matmul_of_any_batches(data: st.DataObject) -> None:
    shapes = data.draw(
        hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=3)
    ).input_shapes
    x, y = (data.draw(strided(shape)) for shape in shapes)
    a, b = (mg.from_numpy(array.view()).requires_grad_() for array in (x, y))
    out = a @ b
    expected = np.asarray(x @ y)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-13)
    g = np.random.default_rng(2).standard_normal(expected.shape)
    out.backward(mg.tensor(g))
    rows, columns = np.atleast_2d(x), y if y.ndim > 1 else y[:, None]
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    full = g.reshape(*batch, rows.shape[-2], columns.shape[-1])
    to_x, to_y = full @ np.swapaxes(columns, -1, -2), np.swapaxes(rows, -1, -2) @ full
    close = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(a.grad.numpy(), stretched_sum(to_x, rows.shape).reshape(x.shape), **close)
    np.testing.assert_allclose(b.grad.numpy(), stretched_sum(to_y, columns.shape).reshape(y.shape), **close)
