"""Where formulas break: kinks and ties by exact values, NaN and infinity, arguments at the ends of the range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from ops_table import TABLE, Row, inputs

import minigrad as mg

pytestmark = pytest.mark.usefixtures("on_device")

INF, NAN = math.inf, math.nan


def derivatives(f: Any, *values: Any, dtype: Any = mg.float64) -> list[Any]:
    """The gradients of the sum of f."""
    xs = [mg.tensor(v, dtype=dtype, requires_grad=True) for v in values]
    gs = mg.grad(f(*xs).sum(), xs, allow_unused=True)
    return [None if g is None else g.tolist() for g in gs]


def second(f: Any, value: Any) -> Any:
    """The gradient of the sum of the gradient of the sum of f."""
    x = mg.tensor(value, dtype=mg.float64, requires_grad=True)
    (g,) = mg.grad(f(x).sum(), x, create_graph=True)
    (h,) = mg.grad(g.sum(), x)
    return h.tolist()


@pytest.mark.parametrize(
    ("f", "at", "expected"),
    [
        (mg.relu, 0.0, 0.0),
        (mg.relu, -0.0, 0.0),
        (mg.abs, 0.0, 0.0),
        (mg.sign, 0.0, 0.0),
        (lambda x: mg.leaky_relu(x, 0.1), 0.0, 0.1),
        (lambda x: mg.elu(x, 1.5), 0.0, 1.5),
        (lambda x: mg.clip(x, 0, 1), 0.0, 1.0),
        (lambda x: mg.clip(x, 0, 1), 1.0, 1.0),
        (lambda x: mg.clip(x, 0, 1), 1.0000001, 0.0),
        (lambda x: mg.maximum(x, 2), 2.0, 0.5),
        (lambda x: mg.minimum(2, x), 2.0, 0.5),
        (mg.norm, [0.0, 0.0], [0.0, 0.0]),
        (lambda x: mg.norm(x, 1), [0.0, -2.0], [0.0, -1.0]),
        (lambda x: mg.norm(x, 3), [0.0, 0.0], [0.0, 0.0]),
        (lambda x: mg.norm(x, 0.5), [0.0, 4.0, -4.0], [0.0, 2.0, -2.0]),
        (lambda x: mg.norm(x, INF), [2.0, -2.0, 1.0], [0.5, -0.5, 0.0]),
        (mg.std, [3.0, 3.0], [0.0, 0.0]),
        (mg.sqrt, 0.0, INF),
        (mg.amax, [1.0, 3.0, 3.0], [0.0, 0.5, 0.5]),
        (mg.amin, [1.0, 2.0, 1.0, 1.0, 1.0], [0.25, 0.0, 0.25, 0.25, 0.25]),
        (mg.max, [3.0, 3.0], [0.5, 0.5]),
        (lambda x: mg.max(x, 0).values, [3.0, 3.0], [1.0, 0.0]),
        (lambda x: mg.min(x, 0).values, [3.0, 3.0], [1.0, 0.0]),
        (mg.prod, [2.0, 0.0, 3.0], [0.0, 6.0, 0.0]),
        (mg.prod, [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]),
        (lambda x: x**0, [0.0, 2.0], [0.0, 0.0]),
        (lambda x: x**1, [0.0, -2.0], [1.0, 1.0]),
        (lambda x: x**2, [0.0, -2.0], [0.0, -4.0]),
        (lambda x: x**3, [-2.0, 0.0], [12.0, 0.0]),
        (lambda x: x**-1, [-2.0], [-0.25]),
        (lambda x: x**0.5, [0.0], [INF]),
    ],
)
def test_derivatives_at_kinks_and_ties(f: Any, at: Any, expected: Any) -> None:
    assert derivatives(f, at) == [pytest.approx(expected, abs=0)]


def test_ties_between_two_tensors_share_the_gradient() -> None:
    assert derivatives(mg.maximum, [1.0, 2.0], [1.0, 3.0]) == [[0.5, 0.0], [0.5, 1.0]]
    assert derivatives(mg.minimum, [1.0, 2.0], [1.0, 3.0]) == [[0.5, 1.0], [0.5, 0.0]]
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    assert mg.grad(mg.maximum(x, x).sum(), x)[0].tolist() == [1.0, 1.0]


def test_an_infinite_gradient_passes_by_the_operand_that_was_not_chosen() -> None:
    """√ has an infinite slope at 0; the smaller operand gets 0, not 0 · ∞."""
    assert derivatives(lambda x, y: mg.maximum(x, y).sqrt(), [-1.0, 0.0], [0.0, 0.0]) == [[0.0, INF], [INF, INF]]
    assert derivatives(lambda x, y: mg.minimum(x, y).sqrt(), [1.0, 4.0], [0.0, 9.0]) == [[0.0, 0.25], [INF, 0.0]]


def test_second_derivatives_of_products_with_zeros() -> None:
    # Σ_j ∂²/∂x_i∂x_j of xyz is the sum of the products of what is left
    assert second(mg.prod, [2.0, 0.0, 3.0]) == [3.0, 5.0, 2.0]
    assert second(mg.prod, [0.0, 0.0, 3.0]) == [3.0, 3.0, 0.0]
    assert second(mg.prod, [0.0, 0.0, 0.0]) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_derivatives_of_products_are_products_of_all_others(dims: tuple[int, ...], device: str) -> None:
    """In rows with no zero, with one, and with two; also where the product of all would vanish or overflow."""
    x = np.random.default_rng(0).integers(-3, 4, (3, 5, 7)).astype(np.float64)
    x[0, 0, 0], x[1, 1, 1] = 1e-300, 1e300
    exact = np.empty_like(x)
    for place in np.ndindex(x.shape):
        others = x.copy()
        others[place] = 1
        row = tuple(slice(None) if d in dims else i for d, i in enumerate(place))
        exact[place] = others[row].prod()
    t = mg.tensor(x, device=device, requires_grad=True)
    (found,) = mg.grad(t.prod(dims).sum(), t)
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-14)


@pytest.mark.parametrize(
    ("f", "at", "expected"),
    [(lambda x: x**2, 0.0, 2.0), (lambda x: x**3, 0.0, 0.0), (lambda x: x**1, 0.0, 0.0), (mg.relu, 0.0, 0.0),
     (mg.square, 0.0, 2.0), (mg.abs, 0.0, 0.0), (mg.softplus, 0.0, 0.25), (mg.gelu, 0.0, math.sqrt(2 / math.pi))],
)  # fmt: skip
def test_second_derivatives_at_zero(f: Any, at: Any, expected: Any) -> None:
    assert second(f, at) == pytest.approx(expected, rel=1e-14, abs=0)


@pytest.mark.parametrize("dtype", [mg.float16, mg.float32, mg.float64])
@pytest.mark.parametrize("f", [mg.nn.functional.elu, mg.gelu, mg.nn.functional.silu, mg.softplus, mg.tanh, mg.sigmoid])
def test_activations_are_straight_far_out_to_third_order(f: Any, dtype: Any) -> None:
    far = 3e4 if dtype == mg.float16 else 1e30
    x = mg.tensor([-far, -2000.0, 2000.0, far], dtype=dtype, requires_grad=True)
    y = f(x)
    for order in range(1, 4):
        (y,) = mg.grad(y.sum(), [x], create_graph=True)
        assert y.tolist() == ([0.0, 0.0, y[2].item(), y[3].item()] if order == 1 else [0.0] * 4)


def test_powers_with_a_tensor_as_exponent() -> None:
    x, y = [0.0, 0.0, -2.0, 3.0, 2.0], [0.0, 2.0, 3.0, 0.0, -1.0]
    dx, dy = derivatives(mg.pow, x, y)
    assert mg.pow(mg.tensor(x), mg.tensor(y)).tolist() == [1.0, 0.0, -8.0, 1.0, 0.5]
    assert dx == [0.0, 0.0, 12.0, 0.0, -0.25]
    np.testing.assert_allclose(dy, [0.0, 0.0, NAN, math.log(3), 0.5 * math.log(2)], rtol=1e-15)
    torch = pytest.importorskip("torch")
    tx, ty = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, y))
    theirs = torch.autograd.grad((tx**ty).sum(), [tx, ty])
    np.testing.assert_array_equal(dx, theirs[0].numpy())
    np.testing.assert_array_equal(dy, theirs[1].numpy())


def test_a_power_is_smooth_in_its_exponent_at_zero() -> None:
    x, y = mg.tensor(3.0, dtype=mg.float64, requires_grad=True), mg.tensor(0.0, dtype=mg.float64, requires_grad=True)
    dx, dy = mg.grad(x**y, [x, y], create_graph=True)
    assert mg.grad(dx, y, retain_graph=True)[0].item() == pytest.approx(1 / 3)  # ∂²/∂x∂y = xʸ⁻¹ (1 + y log x)
    assert mg.grad(dy, x)[0].item() == pytest.approx(1 / 3)


def test_a_number_to_the_power_of_a_tensor() -> None:
    assert derivatives(lambda y: 0.0**y, [0.0, 2.0]) == [[0.0, 0.0]]
    assert derivatives(lambda y: 1.0**y, [0.0, 2.0]) == [[0.0, 0.0]]
    assert np.isnan(derivatives(lambda y: (-2.0) ** y, [2.0])).all()


ELEMENTWISE = [r for r in TABLE.values() if (3, 4) in r.shapes[0] and (0, 3) in r.shapes[-1]]


@pytest.mark.parametrize("row", ELEMENTWISE, ids=lambda row: row.name)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_nan_and_infinity_go_where_numpys_go(row: Row, dtype: str) -> None:
    """No warning either: the test run turns those into errors."""
    values = [NAN, INF, -INF, 0.0, 1.0, NAN], [1.0, 1.0, 1.0, NAN, NAN, NAN]
    a = [np.array(v, dtype) for v in values[: len(row.shapes[0])]]
    xs = [mg.tensor(v, requires_grad=True) for v in a]
    y = row.function(mg, *xs)
    with np.errstate(all="ignore"):
        expected = row.reference(*(v.astype(np.float64) for v in a))
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=DTYPES[dtype])
    mg.grad(y, xs, mg.ones_like(y))


DTYPES = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2}
WITHOUT_NAN = {"getitem mask", "where a number", "split", "split sizes", "chunk", "pad crops"}  # may leave the NaN out


@pytest.mark.parametrize("row", [r for r in TABLE.values() if r.name not in WITHOUT_NAN], ids=lambda row: row.name)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_every_op_takes_nan_and_infinity_without_a_warning(row: Row, bad: float) -> None:
    for shapes in row.shapes:
        arrays = inputs(row, shapes)
        for a in arrays:
            a[...] = bad
        xs = [mg.tensor(a, requires_grad=True) for a in arrays]
        y = row.function(mg, *xs)
        if math.isnan(bad) and y.numel() and all(x.numel() for x in xs):
            assert mg.isnan(y.detach()).any(), "a NaN was swallowed"
        mg.grad(y, xs, mg.ones_like(y), allow_unused=True)


def test_one_nan_spoils_what_it_enters_and_nothing_else() -> None:
    x = mg.tensor([[1.0, NAN, 3.0], [4.0, 5.0, 6.0]])
    for reduce in (mg.sum, mg.mean, mg.var, mg.std, mg.amax, mg.amin, mg.prod, mg.norm, mg.logsumexp):
        found = [math.isnan(v) for v in reduce(x, dim=1).tolist()]
        assert found == [True, False], reduce.__name__
    for along in (mg.softmax, mg.log_softmax):
        assert mg.isnan(along(x, 1)).tolist() == [[True] * 3, [False] * 3]
    assert (mg.argmax(x, 1).tolist(), mg.max(x, 1).indices.tolist()) == ([1, 2], [1, 2])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_nothing_overflows_on_the_way(dtype: str) -> None:
    big = 1e4
    x = mg.tensor([-big, big], dtype=dtype)
    assert mg.sigmoid(x).tolist() == [0.0, 1.0]
    assert mg.tanh(x).tolist() == [-1.0, 1.0]
    assert mg.softplus(x).tolist() == [0.0, big]
    assert mg.silu(x).tolist() == [0.0, big]
    assert mg.gelu(x).tolist() == [0.0, big]
    assert mg.elu(x).tolist() == [-1.0, big]
    assert mg.softmax(x, 0).tolist() == [0.0, 1.0]
    assert mg.logsumexp(x, 0).item() == big
    for f, expected in ((mg.sigmoid, [0, 0]), (mg.tanh, [0, 0]), (mg.softplus, [0, 1]), (mg.silu, [0, 1]),
                        (mg.gelu, [0, 1]), (mg.elu, [0, 1])):  # fmt: skip
        assert derivatives(f, [-big, big], dtype=dtype) == [expected], f.__name__


def test_digits_are_kept_at_small_and_large_arguments() -> None:
    tiny = mg.tensor([1e-300, -1e-300], dtype=mg.float64)
    assert mg.log1p(tiny).tolist() == mg.expm1(tiny).tolist() == tiny.tolist()
    x = mg.tensor([-30.0], dtype=mg.float64)
    assert mg.softplus(x).item() == pytest.approx(math.exp(-30), rel=1e-12)
    assert mg.sigmoid(x).item() == pytest.approx(math.exp(-30), rel=1e-12)
    assert mg.gelu(x).item() == pytest.approx(-15 * math.erfc(30 / math.sqrt(2)), rel=1e-12)  # 1 + erf would be 0
    assert mg.log_softmax(mg.tensor([0.0, 40.0], dtype=mg.float64), 0)[1].item() == pytest.approx(-math.exp(-40))
    pair = mg.tensor([1e9, 1e9 + 1], dtype=mg.float64)
    assert mg.var(pair).item() == 0.5


def test_logsumexp_of_infinities() -> None:
    rows = mg.tensor([[-INF, -INF], [-INF, 0.0], [INF, 0.0], [INF, INF]])
    assert mg.logsumexp(rows, 1).tolist() == [-INF, 0.0, INF, INF]
    assert mg.softmax(rows[1], 0).tolist() == [0.0, 1.0]
    assert mg.log_softmax(rows[1], 0).tolist() == [-INF, 0.0]
    assert derivatives(lambda x: mg.logsumexp(x, 0), [-INF, 0.0]) == [[0.0, 1.0]]


@pytest.mark.parametrize(("p", "scale"), [(2, 1e-42), (2, 1e-30), (2, 3e37), (3, 1e-36), (3, 1e30), (3, 3e37)])
def test_norms_and_their_gradients_hold_at_every_scale(p: float, scale: float) -> None:
    x = np.float32([3, -4]) * np.float32(scale)
    exact = float((np.abs(x.astype(float)) ** p).sum() ** (1 / p))
    assert mg.norm(mg.tensor(x), p).item() == pytest.approx(exact, rel=1e-6)
    expected = np.sign(x) * (np.abs(x.astype(float)) / exact) ** (p - 1)
    np.testing.assert_allclose(derivatives(lambda x: mg.norm(x, p), x, dtype=mg.float32)[0], expected, rtol=1e-5)


def test_float16_is_computed_in_float32_and_rounded_once() -> None:
    equal = mg.full((5000,), 16.0, dtype=mg.float16)  # their sum is too large for float16
    assert (equal.mean().item(), equal.var().item()) == (16.0, 0.0)
    assert mg.tensor([6e4, 6e4], dtype=mg.float16).mean().item() == np.float16(6e4)
    assert mg.tensor([6e4, 6e4, 1e-3, 1e-3], dtype=mg.float16).prod().item() == pytest.approx(3600, rel=2e-3)
    x = mg.tensor([1e-3], dtype=mg.float16)
    assert (x * 1e6).item() == np.float16(np.float32(x.item()) * np.float32(1e6))  # 1e6 is infinite in float16
    assert (x + 1e-9 - 1e-9).item() == x.item()
    assert mg.tensor([1e3] * 64, dtype=mg.float16).norm().item() == 8e3
    row = mg.full((1, 512), 10.0, dtype=mg.float16)
    assert (row @ row.T).item() == 51200
    assert mg.linear(row, row, mg.tensor([-51200.0], dtype=mg.float16)).item() == 0
