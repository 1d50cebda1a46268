"""The walk back: what it computes, accumulates, keeps, frees and refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad._op import Op, primitive

pytestmark = pytest.mark.usefixtures("on_device")


def leaf(*values: float, dtype: Any = mg.float64) -> mg.Tensor:
    return mg.tensor(list(values), dtype=dtype, requires_grad=True)


# What is computed ----------------------------------------------------------------------------------------------------


def test_gradients_accumulate_until_they_are_cleared() -> None:
    x = leaf(1.0, 2.0)
    for expected in ([2.0, 4.0], [4.0, 8.0]):
        (x * x).sum().backward()
        assert x.grad is not None and x.grad.tolist() == expected
    x.grad = None
    (3 * x).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_a_tensor_used_many_times_collects_every_use() -> None:
    x = leaf(2.0)
    y = x * x
    (y * x + y + x).sum().backward()
    assert x.grad.tolist() == [3 * 4 + 2 * 2 + 1]


def test_derivatives_of_any_order() -> None:
    x = leaf(2.0)
    y, expected = x**5, [5 * 16, 20 * 8, 60 * 4, 120 * 2, 120]
    for value in expected:
        (y,) = mg.grad(y.sum(), x, create_graph=True)
        assert y.tolist() == [value]


def test_gradients_of_gradients_by_backward() -> None:
    x = leaf(2.0)
    (x**3).sum().backward(create_graph=True)
    g, x.grad = x.grad, None
    g.sum().backward()
    assert x.grad.tolist() == [12.0]
    x.grad = None


def test_a_gradient_stays_in_the_graph_of_its_upstream() -> None:
    x, u = leaf(1.0), leaf(3.0)
    (x + 0).backward(u, create_graph=True)  # the rule of add hands u through as it is
    (du,) = mg.grad((x.grad * x.grad).sum(), u)
    assert du.tolist() == [6.0]
    x.grad = None


def test_hessian_vector_products() -> None:
    x, y, v, w = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(1.0, -1.0), leaf(0.5, 2.0)
    hx, hy = mg.hvp(lambda x, y: (x * x * y).sum(), [x, y], [v.detach(), w.detach()])
    assert hx.tolist() == [2 * 3 * 1 + 2 * 1 * 0.5, 2 * 4 * -1 + 2 * 2 * 2.0]
    assert hy.tolist() == [2 * 1 * 1, 2 * 2 * -1]
    assert mg.hvp(lambda x: (3 * x).sum(), x.detach(), v.detach()).tolist() == [0.0, 0.0]
    with mg.no_grad():
        assert mg.hvp(lambda x: (x**3).sum(), x.detach(), v.detach()).tolist() == [6.0, -12.0]


# Recording -----------------------------------------------------------------------------------------------------------


def test_modes_nest_and_end_also_by_an_error() -> None:
    x = leaf(1.0)
    with mg.no_grad():
        assert not (x * 2).requires_grad
        with mg.enable_grad():
            assert (x * 2).requires_grad
        assert not mg.is_grad_enabled()
        with pytest.raises(ZeroDivisionError), mg.enable_grad():
            _ = 1 / 0
        assert not mg.is_grad_enabled()
    assert mg.is_grad_enabled()


def test_modes_are_decorators_and_reentrant() -> None:
    @mg.no_grad()
    def depth(n: int) -> list[bool]:
        return [mg.is_grad_enabled()] + (depth(n - 1) if n else [])

    assert depth(2) == [False] * 3 and mg.is_grad_enabled()
    mode = mg.no_grad()
    with mode, mode:
        assert not mg.is_grad_enabled()
    assert mg.is_grad_enabled()


def test_modes_refuse_to_decorate_what_runs_after_its_call() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def number() -> int:
        return 1

    for later in (numbers, number):
        with pytest.raises(TypeError, match=f"no_grad: .* got {later.__name__}, a generator or a coroutine"):
            mg.no_grad()(later)


def test_the_mode_belongs_to_its_thread() -> None:
    seen: list[bool] = []
    with mg.no_grad():
        thread = threading.Thread(target=lambda: seen.append(mg.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_threads_walk_graphs_of_their_own(most_elements: int) -> None:
    n, rounds = (64, 20) if most_elements > 64**3 else (5, 3)
    weight = mg.rand(n, n, dtype=mg.float64)

    def work(results: list[Any], i: int) -> None:
        x = mg.full((n, n), 1.0 + i, dtype=mg.float64, requires_grad=True)
        for _ in range(rounds):
            x.grad = None
            mg.softmax(x @ weight, 1).square().sum().backward()
        results[i] = x.grad.numpy()

    alone, together = [None] * 4, [None] * 4
    for i in range(4):
        work(alone, i)
    threads = [threading.Thread(target=work, args=(together, i)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_needs_no_gradient_records_nothing() -> None:
    x = leaf(1.0, 2.0)
    assert (mg.ones(2) * 2).node is None
    assert x.detach().node is None and not x.detach().requires_grad
    assert not (x > 0).requires_grad and not x.argmax().requires_grad
    with pytest.raises(RuntimeError, match=r"only a leaf's can be cleared; this is the output of mul"):
        (x * 2).requires_grad_(False)


# Hooks and retained gradients ----------------------------------------------------------------------------------------


def test_a_leaf_that_is_frozen_after_the_forward_pass_gets_no_gradient() -> None:
    x, w = mg.tensor(2.0, requires_grad=True), mg.tensor(3.0, requires_grad=True)
    loss = x * w
    w.requires_grad_(False)
    loss.backward()
    assert x.grad is not None and x.grad.item() == 3 and w.grad is None


def test_hooks_see_and_replace_gradients_and_can_be_removed() -> None:
    x = leaf(1.0, 2.0)
    y = x * 3
    seen: list[Any] = []
    first = y.register_hook(lambda g: g * 10)
    second = y.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: g + 1)
    y.sum().backward(retain_graph=True)
    assert (seen, x.grad.tolist()) == ([[10.0, 10.0]], [31.0, 31.0])
    first.remove()
    second.remove()
    first.remove()  # a second time does nothing
    x.grad = None
    y.sum().backward()
    assert (len(seen), x.grad.tolist()) == (1, [4.0, 4.0])


def test_a_hook_runs_once_on_the_complete_gradient() -> None:
    x = leaf(1.0)
    seen: list[float] = []
    x.register_hook(lambda g: seen.append(g.item()))
    (x + x * x + 2 * x).sum().backward()
    assert seen == [5.0]
    assert mg.grad((x * x).sum(), x)[0].item() == 2.0 and seen == [5.0, 2.0]


@pytest.mark.parametrize("bad", [1.0, mg.ones(3), mg.ones(2)], ids=["number", "shape", "dtype"])
def test_a_hook_that_returns_something_else_is_told_so(bad: Any) -> None:
    x = leaf(1.0, 2.0)
    x.register_hook(lambda g: bad)
    with pytest.raises(RuntimeError, match=r"a hook must return None or a gradient of shape \(2,\), float64; got"):
        x.sum().backward()


def test_gradients_of_intermediates_are_kept_on_request() -> None:
    x = leaf(1.0, 2.0)
    y = x * 3
    y.retain_grad()
    (y * y).sum().backward(retain_graph=True)
    assert y.grad is not None and y.grad.tolist() == [6.0, 12.0]
    (y * 2).sum().backward()
    assert y.grad.tolist() == [8.0, 14.0]  # it accumulates, as a leaf's does
    for refused in (lambda t: t.retain_grad(), lambda t: t.register_hook(print)):
        with pytest.raises(RuntimeError, match="does not require grad, so it never gets a gradient"):
            refused(mg.ones(2))


# mg.grad -------------------------------------------------------------------------------------------------------------


def test_grad_walks_only_the_paths_to_its_inputs() -> None:
    runs: list[str] = []

    @primitive()
    def spy(k: Any, x: Any) -> Any:
        return k.copy(x)

    spy.vjp(x=lambda g: runs.append("ran") or g)
    x, y = leaf(1.0), leaf(2.0)
    assert mg.grad((spy(x) * y).sum(), y, retain_graph=True)[0].item() == 1.0
    assert runs == []
    assert mg.grad((spy(x) * y).sum(), x)[0].item() == 2.0 and runs == ["ran"]
    assert x.grad is None and y.grad is None


def test_grad_to_an_intermediate_leaves_the_graph_behind_it_alone() -> None:
    x = leaf(3.0)
    h = x * x
    (g,) = mg.grad((h * 5).sum(), h)
    h.backward(g)  # h's own node was neither run nor freed
    assert x.grad.tolist() == [30.0]
    z = x * 2
    z.sum().backward()
    assert mg.grad((z * 3).sum(), z)[0].tolist() == [3.0]  # z's node is freed, and not needed


def test_grad_of_several_outputs_and_unused_inputs() -> None:
    x, y, z = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(0.0)
    outs = [(x * y).sum(), x * 2]
    found = mg.grad(outs, [x, y, x], [None, mg.tensor([1.0, 10.0], dtype=mg.float64)], retain_graph=True)
    assert [g.tolist() for g in found] == [[5.0, 24.0], [1.0, 2.0], [5.0, 24.0]]
    assert mg.grad(outs[0], [x, z], allow_unused=True, retain_graph=True)[1] is None
    with pytest.raises(RuntimeError, match=r"grad: the outputs do not depend on input 1, of shape \(1,\)"):
        mg.grad(outs[0], [x, z])


def test_a_rule_that_answers_none_means_zero() -> None:
    @primitive()
    def flat(k: Any, x: Any) -> Any:
        return k.mul(x, 0)

    flat.vjp(x=lambda g: None)
    x = leaf(1.0, 2.0)
    assert mg.grad(flat(x).sum(), x)[0].tolist() == [0.0, 0.0]


# Refusals ------------------------------------------------------------------------------------------------------------


def test_misuse_of_backward() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match="the output does not require grad"):
        mg.ones(1).backward()
    with pytest.raises(RuntimeError, match=r"expected a scalar output or a gradient of its shape; got .* \(2,\)"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"expected a gradient of shape \(2,\); got \(3,\)"):
        (x * 2).backward(mg.ones(3, dtype=mg.float64))
    for start in (lambda: x.backward(1.0), lambda: mg.grad(x, x, 1.0), lambda: mg.grad(x, x, [np.ones(2)])):
        with pytest.raises(TypeError, match=r"expected a tensor as gradient; got (float|ndarray)"):
            start()
    with pytest.raises(TypeError, match="expected a gradient of dtype float64; got float32"):
        (x * 2).backward(mg.ones(2))
    with pytest.raises(RuntimeError, match=r"input 0, of shape .* does not require grad"):
        mg.grad(x.sum(), mg.ones(2))
    with pytest.raises(ValueError, match="one of grad_outputs per output, 1; got 2"):
        mg.grad(x.sum(), x, [None, None])


def test_arguments_of_grad_and_hvp_that_do_not_fit_are_said() -> None:
    x = mg.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match="grad: expected tensors as outputs and inputs; got str"):
        mg.grad(x.sum(), ["x"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="hvp: expected one v per input, 1; got 2"):
        mg.hvp(lambda x: x.square().sum(), [x], [mg.ones(2), mg.ones(2)])


def test_a_second_walk_needs_retain_graph() -> None:
    x = leaf(1.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    for again in (y.backward, lambda: mg.grad(y, x), lambda: mg.grad(y, x, allow_unused=True)):
        with pytest.raises(RuntimeError, match=r"backward a second time through op .* retain_graph=True"):
            again()
    z = x * x
    z.sum().backward()
    with pytest.raises(RuntimeError, match="backward a second time through op 'mul'"):
        (z + 1).sum().backward()  # a new op on a part that was freed


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.zero_(),
        lambda x: x.copy_(mg.ones(2, dtype=mg.float64)),
        lambda x: x.__setitem__(0, 5.0),
        lambda x: x.detach().zero_(),
        lambda x: x[1:].zero_(),
        lambda x: x[0].zero_(),
        lambda x: x.reshape(2, 1).T[:, ::-1].zero_(),
        lambda x: x.detach().contiguous().zero_(),
    ],
)
def test_a_change_after_the_forward_pass_is_noticed(change: Any) -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    with mg.no_grad():
        change(x)
    with pytest.raises(RuntimeError, match=r"op 'mul': its input '[xy]', of shape \(2,\), was changed in place"):
        y.backward()


def test_changes_of_outputs_and_of_what_was_not_saved() -> None:
    x = leaf(1.0, 2.0)
    y = mg.exp(x)
    with mg.no_grad():
        y[0] = 0.0
    with pytest.raises(RuntimeError, match="backward through op 'exp': its output"):
        y.sum().backward()
    z = (x + 1).sum()  # add keeps nothing
    with mg.no_grad():
        x.zero_()
    z.backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_a_change_of_an_output_is_noticed_by_the_second_derivative_too() -> None:
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = mg.exp(x)
    (g,) = mg.grad((y * w).sum(), x, create_graph=True)  # w y, so that the product's derivative in w is y
    y.detach().zero_()
    with pytest.raises(RuntimeError, match=r"op 'mul': its input '[xy]', of shape \(2,\), was changed in place"):
        mg.grad(g.sum(), w)


def test_an_optimizer_step_between_forward_and_backward_is_noticed() -> None:
    w = leaf(1.0, 2.0)
    w.grad = mg.ones_like(w)
    loss = (w * w).sum()
    mg.optim.SGD([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_mistakes_in_an_op_are_named() -> None:
    def double(k: Any, x: Any, y: Any, *, times: int) -> Any:
        return k.mul(x, times)

    op = Op(double)
    with pytest.raises(TypeError, match=r"double.vjp: no input 'z'; there are \['x', 'y'\]"):
        op.vjp(z=lambda g: g)
    with pytest.raises(TypeError, match=r"double.vjp for 'x': nothing is called \['time'\]"):
        op.vjp(x=lambda g, time: g)
    x = leaf(1.0, 2.0)
    op.vjp(x=lambda g, times: (g * times).sum())
    with pytest.raises(RuntimeError, match=r"double: input 'y' is a constant of this op and may not require grad"):
        op(x, x, times=2)
    with pytest.raises(RuntimeError, match=r"double.vjp for 'x': expected a gradient of shape \(2,\)"):
        op(x, x.detach(), times=2).sum().backward()
    op.vjp(x=lambda g, times: g.to(mg.float32))
    with pytest.raises(RuntimeError, match=r"float64; the rule gave \(2,\), float32"):
        op(x, x.detach(), times=2).sum().backward()
    with pytest.raises(TypeError, match="double: expected a tensor; got ndarray"):
        op(x, np.ones(2), times=2)


def test_anomalies_are_traced_to_their_op() -> None:
    x = leaf(0.0, 1.0)
    with mg.detect_anomaly():
        with pytest.raises(RuntimeError, match="op 'log' made the first NaN, from inputs of shapes"):
            mg.log(x - 1)
        with pytest.raises(RuntimeError, match="op 'exp' was given NaN in x"):
            mg.exp(mg.tensor(float("nan")))
        with pytest.raises(RuntimeError, match="the vjp of op 'sqrt' made the first NaN"):
            (mg.sqrt(x) * 0).sum().backward()
        (x * 2).sum().backward()
    mg.log(x - 1).sum().backward()  # without it, NaN goes its way
