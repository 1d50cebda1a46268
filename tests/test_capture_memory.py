"""Captured steps, on every device: whose memory arguments, results and gradients are, also after a step that failed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from captured import batches, here

import minigrad as mg

pytestmark = pytest.mark.usefixtures("on_device")


def test_results_are_the_callers_own() -> None:
    """Of parameters and of views of them, too; what a step makes need not be copied on the CPU."""
    w, v, x = mg.zeros(4, 3)[1:3], mg.zeros(1), mg.ones(2, 3)

    def fn(x: mg.Tensor) -> Any:
        w.copy_(w + x)
        v.copy_(v + 1)
        made = w * 2
        return w, w.reshape(3, 2), w.T[1], v, x, made, made[1:], mg.sum(made, 0)

    step = mg.capture(fn)
    outs = [step(x) for _ in range(5)]
    for i, out in enumerate(outs[1:], 2):  # the first call runs as it is
        assert [y.reshape(-1)[0].item() for y in out] == [i, i, i, i, 1.0, 2.0 * i, 2.0 * i, 4.0 * i]
    for out in outs[1:]:
        for y in out:
            y.zero_()
    assert step(x)[0].tolist() == [[6.0] * 3] * 2


@pytest.mark.parametrize("size", [3, 130])
def test_a_parameter_that_is_a_result_and_is_looked_at_from_the_side(size: int) -> None:
    """In memory that is copied when small, and made anew when large: but this is the caller's."""
    w = mg.zeros(size, size)

    def fn() -> Any:
        w.copy_(w + 1)
        return w, w.T, w.T[0] * 1

    step = mg.capture(fn)
    outs = [step() for _ in range(4)]
    assert [[x.reshape(-1)[0].item() for x in out] for out in outs] == [[i] * 3 for i in range(1, 5)]


def test_an_argument_that_is_a_result() -> None:
    """Of the first call, too: the next one's arguments lie elsewhere."""
    step = mg.capture(lambda x: (x, x[0]))
    outs = [step(mg.full((2,), float(i))) for i in range(4)]
    assert [(x.tolist(), y.item()) for x, y in outs] == [([i, i], i) for i in range(4)]


def test_an_argument_may_require_grad_in_the_step() -> None:
    def fn(x: mg.Tensor) -> Any:
        x.requires_grad_()
        (x * x).sum().backward()
        return x.grad

    step = mg.capture(fn)
    for i in range(4):
        x = mg.full((2,), float(i))
        assert step(x).tolist() == [2 * i] * 2
        assert x.grad is None and not x.requires_grad


def test_arguments_results_and_constants() -> None:
    def fn(x: mg.Tensor, scale: float, *, shift: mg.Tensor) -> Any:
        y = x * scale + shift
        return {"y": y, "parts": (y.sum(), [y[0]], None, 7)}

    step = mg.capture(fn)
    for i in range(3):
        x = mg.full((2, 2), float(i), device="cpu")  # wherever the step runs, it is copied
        out = step(x, 3.0, shift=mg.ones(2))
        assert out["y"].device == here()
        assert out["y"].tolist() == [[3.0 * i + 1] * 2] * 2
        assert out["parts"][0].item() == 12 * i + 4
        assert out["parts"][2:] == (None, 7)
    with pytest.raises(ValueError, match=r"argument 1 was 3.0 in the first step; got 4.0"):
        step(x, 4.0, shift=mg.ones(2))


def test_gradients_alone_with_the_optimizer_outside() -> None:
    w = mg.ones(3).requires_grad_()
    opt = mg.optim.SGD([w], lr=0.5)

    @mg.capture
    def step(x: mg.Tensor) -> mg.Tensor:
        loss = (w * w * x).sum()
        loss.backward()
        return loss

    for expected in (1.0, 0.0, 0.0):
        assert step(mg.ones(3)).item() == 3 * expected
        assert w.grad is not None
        opt.step()
        opt.zero_grad()


def test_gradients_that_the_step_drops() -> None:
    """After its own backward, or of parameters that it has no use for."""

    def run(captured: bool) -> Any:
        body, *heads = (mg.ones(3).requires_grad_() for _ in range(3))
        opt = mg.optim.SGD([body, *heads], lr=0.1)

        def backward(x: mg.Tensor, head: mg.Tensor) -> None:
            opt.zero_grad()
            (body * head * x).square().sum().backward()

        def whole(x: mg.Tensor) -> None:
            (body * heads[0] * x).square().sum().backward()
            opt.step()
            opt.zero_grad()

        steps = [whole] + [lambda x, head=head: backward(x, head) for head in heads]
        steps = [mg.capture(step) if captured else step for step in steps]
        found = []
        for x in batches(12):
            for step in steps:
                step(x[0])
                opt.step()
                grads = [p.grad for p in (body, *heads)]
                found.append([None if g is None else g.tolist() for g in grads])
            opt.zero_grad()
        return found, body.tolist(), [head.tolist() for head in heads]

    assert run(True) == run(False)


def test_a_step_that_fails_half_way() -> None:
    """Of two optimizers the first has made its step, and counted it; the other has not."""

    def run(captured: bool) -> Any:
        mg.manual_seed(0)
        ws = [mg.randn(3, 3).requires_grad_() for _ in range(2)]
        opts = [mg.optim.Adam([w], lr=0.1) for w in ws]

        def fn(x: mg.Tensor, y: mg.Tensor) -> None:
            for w, opt, target in zip(ws, opts, (y * 0, y), strict=True):
                opt.zero_grad()
                mg.nn.functional.cross_entropy((x[:, :, None] * w).sum(1), target).backward()
                opt.step()

        step = mg.capture(fn) if captured else fn
        found = []
        for i, x in enumerate(batches(7)):
            y = mg.tensor([0, 1, 2, 3 if i in (3, 4) else 0])
            try:
                step(x, y)
            except (IndexError, RuntimeError) as error:
                found.append(type(error).__name__)
            counts = [opt.state[w]["step"] for w, opt in zip(ws, opts, strict=True)]
            found.append([counts, ws[1].grad is None, [w.tolist() for w in ws]])
        return found

    if here() == "cpu":  # a GPU is not begun on such a step
        assert run(True) == run(False)


def test_a_gradient_that_the_step_puts_there_itself() -> None:
    w = mg.ones(3).requires_grad_()

    @mg.capture
    def step(x: mg.Tensor) -> None:
        (w.grad,) = mg.grad((w * x).square().sum(), w)

    for i in range(5):
        w.grad = None
        step(mg.full((3,), float(i)))
        assert w.grad is not None and w.grad.tolist() == [2 * i * i] * 3


def test_threads_take_turns() -> None:
    """With the memory of a step's arguments."""
    step = mg.capture(lambda x: (x @ x).sum())
    xs = [mg.full((32, 32), float(i)) for i in range(4)]
    for x in xs:
        step(x)
    wrong = []

    def run(i: int) -> None:
        wrong.extend(i for _ in range(1000 if here() == "cpu" else 1) if step(xs[i]).item() != 32**3 * i * i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
