"""The checker checked: true gradients agree to nine digits, and wrong rules of every kind and size are found."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import minigrad as mg
from minigrad._comparisons import comparisons, second_order
from minigrad._gradcheck import GradcheckError, gradcheck, gradgradcheck
from minigrad._op import primitive

SMALLEST = 1e-8  # the relative error of a rule that is always caught: what the docstring of gradcheck promises
SIZES = [10.0**-n for n in range(1, 9)]


def normal(*shape: int, seed: int = 0) -> mg.Tensor:
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return mg.tensor(values, dtype=mg.float64, requires_grad=True)


def positive(*shape: int) -> mg.Tensor:
    return normal(*shape).detach().square().add(0.1).requires_grad_()


# True rules pass, tightly --------------------------------------------------------------------------------------------

TRUE: dict[str, tuple[Callable[..., Any], list[mg.Tensor]]] = {
    "product": (lambda x, y: x * y, [normal(3, 4), normal(4)]),
    "quotient": (lambda x, y: x / y, [normal(2, 1, 3), positive(4, 1)]),
    "power": (lambda x, y: x**y, [positive(5), normal(5)]),
    "exp(sin)": (lambda x: (3 * x.sin()).exp(), [normal(7)]),
    "log": (lambda x: x.log(), [positive(9)]),
    "rsqrt": (lambda x: x.rsqrt(), [positive(2, 3)]),
    "gelu": (mg.gelu, [normal(11)]),
    "silu of many": (mg.silu, [normal(20, 50)]),
    "relu of many": (lambda x: x.relu(), [normal(20, 50)]),
    "maximum": (mg.maximum, [normal(4, 5), normal(5)]),
    "softmax": (lambda x: x.softmax(1), [normal(3, 5)]),
    "logsumexp": (lambda x: x.logsumexp(0), [normal(3, 5)]),
    "variance": (lambda x: x.var(0), [normal(6, 3)]),
    "norm": (lambda x: x.norm(), [normal(8)]),
    "product of all": (lambda x: x.prod(0), [normal(5, 2)]),
    "matmul": (lambda x, y: x @ y, [normal(2, 3, 4), normal(4, 2)]),
    "cumsum": (lambda x: x.cumsum(0).tanh(), [normal(6)]),
    "index": (lambda x: x[1:, ::2] * 2, [normal(4, 5)]),
    "0-d": (lambda x: x.tanh(), [normal()]),
    "empty": (lambda x: x.exp(), [normal(0, 3)]),
    "empty in the sum": (lambda x: x.exp().sum(), [normal(0, 3)]),
    "several outputs of unlike size": (lambda x: (x.sin(), (x * 1e-6).sum(), x.exp() * 1e6), [normal(5)]),
    "an unused input": (lambda x, y: x.sin(), [normal(3), normal(2)]),
    "no gradient at all": (lambda x: x.sign(), [normal(3)]),
    "far from zero": (lambda x: (x * 1e-6).sin(), [(normal(4).detach() + 5e6).requires_grad_()]),
    "tiny inputs": (lambda x: x / x.norm(), [(normal(4).detach() * 1e-30).requires_grad_()]),
    "the edge of a domain near": (lambda x: x.sqrt(), [mg.tensor([1e-6, 1.0], dtype=mg.float64, requires_grad=True)]),
    "a kink near": (lambda x: x.relu(), [mg.tensor([1e-5, -1e-5, 1.0], dtype=mg.float64, requires_grad=True)]),
}


@pytest.mark.parametrize("name", TRUE)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_true_gradients_agree_to_nine_digits(name: str, order: int, device: str) -> None:
    fn, inputs = TRUE[name]
    inputs, names = [x.detach().to(device).requires_grad_() for x in inputs], None
    for _ in range(order - 1):
        if sum(x.numel() for x in inputs) > 500 and order == 3:
            return
        fn, inputs, names = second_order(fn, inputs)
    compared = list(comparisons(fn, inputs, names=names))
    for c in compared:
        assert c.excess <= 0.1, c  # ten times better than asked
    for output in {c.output for c in compared}:  # and no comparison is idle: the differences are good to nine digits
        mine = [c for c in compared if c.output == output]
        largest = max(abs(c.numeric) for c in mine)
        assert sorted(c.error for c in mine)[len(mine) // 2] <= 1e-9 * largest or largest < 1e-12


def test_it_returns_true_and_leaves_the_inputs_alone() -> None:
    x, u = normal(3, 4), normal(4).detach().clone()
    before = x.detach().numpy().copy(), u.numpy().copy()

    def fn(x: mg.Tensor, u: mg.Tensor, n: int) -> mg.Tensor:
        y = (x * u.clone()).sum(1) ** n
        with mg.no_grad():
            u.zero_()  # of the copy it was given
        return y

    assert gradcheck(fn, [x, u, 3]) is True
    assert gradgradcheck(fn, [x, u, 3]) is True
    assert np.array_equal(before[0], x.detach().numpy()) and np.array_equal(before[1], u.numpy())
    assert x.grad is None and x.requires_grad and not u.requires_grad


# Planted rules are caught --------------------------------------------------------------------------------------------


def wrong_by(factor: float, entries: Any = 1.0) -> Callable[[mg.Tensor], mg.Tensor]:
    """x³ + x with a rule that is off by a factor, everywhere or at some entries."""

    @primitive()
    def _cubic(k: Any, x: Any) -> Any:
        return x**3 + x

    _cubic.vjp(x=lambda g, x: g * (3 * x * x + 1) * (1 + (factor - 1) * entries))
    return _cubic


def wrong_again_by(factor: float) -> Callable[[mg.Tensor], mg.Tensor]:
    """x³ + x whose first rule is right, and whose second is off by a factor."""

    @primitive()
    def _slope(k: Any, x: Any) -> Any:
        return 3 * x**2 + 1

    @primitive()
    def _cubic(k: Any, x: Any) -> Any:
        return x**3 + x

    _slope.vjp(x=lambda g, x: g * 6 * x * factor)
    _cubic.vjp(x=lambda g, x: g * _slope(x))
    return _cubic


@pytest.mark.parametrize("shape", [(), (3,), (4, 16), (5, 13), (50, 40)])
@pytest.mark.parametrize("delta", [*SIZES, -1e-3, -SMALLEST])
def test_a_factor_is_caught(shape: tuple[int, ...], delta: float) -> None:
    x = normal(*shape)
    assert gradcheck(wrong_by(1.0), x)
    with pytest.raises(GradcheckError, match="disagrees with finite differences"):
        gradcheck(wrong_by(1 + delta), x)


@pytest.mark.parametrize("shape", [(), (3,), (4, 16), (5, 13), (50, 40)])
@pytest.mark.parametrize("delta", [*SIZES, -1e-3, -SMALLEST])
def test_a_factor_at_second_order_is_caught(shape: tuple[int, ...], delta: float) -> None:
    x = normal(*shape)
    assert gradgradcheck(wrong_again_by(1.0), x)
    assert gradcheck(wrong_again_by(1 + delta), x)  # its first order is right
    with pytest.raises(GradcheckError, match="disagrees with finite differences"):
        gradgradcheck(wrong_again_by(1 + delta), x)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(), (1,), (7,), (3, 5), (8, 8), (9, 8), (100,)]),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e3, 1e20]),
    delta=st.floats(SMALLEST, 0.1) | st.floats(-0.1, -SMALLEST),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_smallest_error_promised_is_caught_always(
    shape: tuple[int, ...], scale: float, delta: float, seed: int
) -> None:
    x = (normal(*shape, seed=seed).detach() * scale).requires_grad_()

    def fn(x: mg.Tensor) -> mg.Tensor:
        return wrong_by(1 + delta)(x / scale) * scale

    with pytest.raises(GradcheckError):
        gradcheck(fn, x)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scales_whose_squares_vanish_or_overflow(scale: float) -> None:
    x = (normal(4).detach() * scale).requires_grad_()
    assert gradcheck(lambda x: x * 3 + (x / scale).sin() * scale, x)
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: x * 3 + (x / scale).sin().detach() * scale, x)


@pytest.mark.parametrize("eps", [1e-6, 1e-3, 1.0])
def test_any_first_step_will_do(eps: float) -> None:
    assert gradcheck(wrong_by(1.0), normal(5), eps=eps)
    with pytest.raises(GradcheckError):
        gradcheck(wrong_by(1 + 1e-6), normal(5), eps=eps)


def test_what_lies_below_the_tolerance_passes() -> None:
    assert gradcheck(wrong_by(1 + 1e-10), normal(5))
    assert gradcheck(wrong_by(1 + 1e-4), normal(5), rtol=1e-3)
    assert gradcheck(wrong_by(1 + 1e-4), normal(5), atol=1e-2)


@pytest.mark.parametrize("delta", [1e-1, 1e-4, 1e-6])
def test_one_wrong_entry_among_a_thousand_is_caught(delta: float) -> None:
    x = mg.ones(20, 50, dtype=mg.float64, requires_grad=True)
    one = np.zeros((20, 50))
    one[7, 11] = 1.0
    with pytest.raises(GradcheckError, match="random direction"):
        gradcheck(wrong_by(1 + delta, mg.tensor(one, dtype=mg.float64)), x)


def planted(forward: Callable[..., Any], **rules: Callable[..., Any]) -> Callable[..., mg.Tensor]:
    op = primitive()(forward)
    op.vjp(**rules)
    return op


def _matmul(k: Any, x: Any, y: Any) -> Any:
    return x @ y


def _exp(k: Any, x: Any) -> Any:
    return np.exp(x)


def _spectral(k: Any, w: Any, u: Any, v: Any) -> Any:
    return w / (u @ w @ v)


def spectral_rule(g: mg.Tensor, w: mg.Tensor, sigma: Any, u: mg.Tensor, v: mg.Tensor) -> mg.Tensor:
    """Equation 12 of the paper: (G − ⟨G, W̄⟩ u vᵀ)/σ."""
    return (g - (g * w / sigma).sum() * u.unsqueeze(1) * v) / sigma


U, V = (normal(n).detach() for n in (4, 3))

WRONG_FIRST: dict[str, tuple[Callable[..., Any], list[mg.Tensor]]] = {
    "sign": (planted(_exp, x=lambda g, out: -g * out), [normal(5)]),
    "forgotten": (lambda x: x.detach().exp(), [normal(5)]),
    "a term dropped": (lambda x: x * x.detach(), [normal(5)]),
    "not transposed": (planted(_matmul, x=lambda g, y: g @ y, y=lambda g, x: x.mT @ g), [normal(3, 3), normal(3, 3)]),
    "NaN": (planted(_exp, x=lambda g, out: g * math.nan), [normal(5)]),
    "σ detached": (lambda w: w / (U @ w @ V).detach(), [normal(4, 3)]),
}

WRONG_SECOND: dict[str, tuple[Callable[..., Any], list[mg.Tensor]]] = {
    "saved as a constant": (planted(_exp, x=lambda g, out: g * out.detach()), [normal(5)]),
    "σ kept as a plain number": (
        lambda w: planted(_spectral, w=lambda g, w, u, v: spectral_rule(g, w, (u @ w @ v).item(), u, v))(w, U, V),
        [normal(4, 3)],
    ),
    "by the upstream gradient": (planted(_exp, x=lambda g, out: g * (g / g.detach()) * out), [normal(5)]),
    "an index swapped": (
        planted(
            _matmul,
            x=lambda g, y: planted(_matmul, x=lambda g, y: g @ y, y=lambda g, x: x.mT @ g)(g, y.mT),
            y=lambda g, x: x.mT @ g,
        ),
        [normal(3, 3), normal(3, 3, seed=1)],
    ),
}


@pytest.mark.parametrize("name", WRONG_FIRST)
def test_wrong_first_order_rules_are_caught(name: str) -> None:
    with pytest.raises(GradcheckError):
        gradcheck(*WRONG_FIRST[name])


@pytest.mark.parametrize("name", WRONG_SECOND)
def test_wrong_second_order_rules_are_caught(name: str) -> None:
    fn, inputs = WRONG_SECOND[name]
    assert gradcheck(fn, inputs)
    with pytest.raises(GradcheckError):
        gradgradcheck(fn, inputs)


def test_what_goes_wrong_only_where_gradients_of_several_outputs_meet_is_caught() -> None:
    def fn(x: mg.Tensor) -> list[mg.Tensor]:
        y = x.sin()
        if y.requires_grad:
            y.register_hook(lambda g: g * 2 if (g != 0).all() else g)
        return [y[:2] * 1, y[2:] * 1]

    with pytest.raises(GradcheckError, match="for all outputs, disagrees"):
        gradcheck(fn, normal(4))


def test_the_spectral_node_with_sigma_in_the_graph_passes_both() -> None:
    def node(w: mg.Tensor) -> mg.Tensor:
        return planted(_spectral, w=lambda g, w, u, v: spectral_rule(g, w, u @ w @ v, u, v))(w, U, V)

    assert gradcheck(node, normal(4, 3)) and gradgradcheck(node, normal(4, 3))


# What the messages say -----------------------------------------------------------------------------------------------


def test_a_failure_names_where_the_numbers_and_the_step() -> None:
    entries = np.zeros((2, 3))
    entries[1, 2] = 1.0
    x, y = normal(2, 3), normal(2, 3, seed=1)
    cubic = wrong_by(1.5, mg.tensor(entries, dtype=mg.float64))
    with pytest.raises(GradcheckError) as caught:
        gradcheck(lambda x, y: (x.sin(), x + cubic(y)), [x, y])
    text = str(caught.value)
    assert re.match(r"gradcheck: the gradient by input 1, entry \[1, 2\], for (output 1|all outputs), disagrees", text)
    analytic, numeric = (float(re.search(rf"by {how} +(\S+)", text)[1]) for how in ("the rules", "differences"))
    assert analytic / numeric == pytest.approx(1.5, rel=1e-8)
    for what in (r"± \d", r"steps down to \d", r"tolerance \d", r"of \d+ comparisons fail"):
        assert re.search(what, text), text


def test_second_order_names_the_upstream_gradient() -> None:
    fn, inputs = WRONG_SECOND["by the upstream gradient"]
    with pytest.raises(GradcheckError, match="gradgradcheck: the gradient by upstream gradient 0, entry"):
        gradgradcheck(fn, inputs)


def test_bad_arguments() -> None:
    x = normal(3)
    with pytest.raises(TypeError, match=r"expected float64 inputs; input 0, of shape \(3,\), is float32"):
        gradcheck(lambda x: x, mg.ones(3, requires_grad=True))
    with pytest.raises(TypeError, match=r"expected fn to compute in float64; its output 0 is float32"):
        gradcheck(lambda x: x.to(mg.float32), x)
    with pytest.raises(TypeError, match="expected fn to return tensors; output 0 is a float"):
        gradcheck(lambda x: [1.0], x)
    with pytest.raises(ValueError, match="no input requires grad"):
        gradcheck(lambda x: x, x.detach())
    with pytest.raises(ValueError, match="uses input 0 from outside"):
        gradcheck(lambda _: x * x, x)
    with pytest.raises(ValueError, match="positive eps"):
        gradcheck(lambda x: x, x, eps=0.0)
    with pytest.raises(ValueError, match=r"expected grad_outputs of shapes \[\(3,\)\]; got \[\(2,\)\]"):
        gradgradcheck(lambda x: x, x, normal(2))


def test_a_function_that_cannot_be_checked_says_why() -> None:
    state = iter(range(100))
    with pytest.raises(GradcheckError, match="not deterministic: two calls with the same inputs differ by 1"):
        gradcheck(lambda x: x + float(next(state)), mg.zeros(3, dtype=mg.float64, requires_grad=True))
    with pytest.raises(GradcheckError, match="not finite at these inputs"):
        gradcheck(lambda x: x.log(), mg.zeros(3, dtype=mg.float64, requires_grad=True))
    with pytest.raises(GradcheckError, match="do not settle"):
        gradcheck(lambda x: x.sqrt(), mg.zeros(3, dtype=mg.float64, requires_grad=True))
    with pytest.raises(GradcheckError, match="do not settle"):
        gradcheck(lambda x: x.sign() + mg.where(x >= 0, x, -x), mg.zeros(3, dtype=mg.float64, requires_grad=True))


def test_at_a_kink_the_difference_is_the_mean_of_the_slopes() -> None:
    x = mg.zeros(1, dtype=mg.float64, requires_grad=True)
    assert gradcheck(lambda x: x.abs(), x)  # (−1 + 1)/2 is the convention's 0
    with pytest.raises(GradcheckError, match=r"At a kink this is no error of the rule"):
        gradcheck(mg.relu, x)  # whose convention at 0 is 0
    (at_kink,), (half,) = comparisons(mg.relu, x), comparisons(lambda x: 0.5 * x, x)
    assert at_kink.numeric == pytest.approx(half.analytic, rel=1e-9)


def test_integer_outputs_are_left_out() -> None:
    assert gradcheck(lambda x: (x.sin(), x > 0, x.argmax()), normal(4))
