"""Captured steps, on every device: bit for bit the step itself; what they are, and the memory that they hold."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import numpy as np
import pytest
from captured import Net, Product, batches, generator_in_use, here, training
from numba import config
from ops_table import TABLE, Row, inputs

import minigrad as mg
from minigrad.kernels.cpu import graph

pytestmark = pytest.mark.usefixtures("on_device")
OPTIMIZERS = {
    "sgd": lambda ps: mg.optim.SGD(ps, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01),
    "adam": lambda ps: mg.optim.Adam(ps, lr=0.01, betas=(0.5, 0.999)),
    "adamw": lambda ps: mg.optim.AdamW(ps, lr=0.01),
    "rmsprop": lambda ps: mg.optim.RMSprop(ps, lr=0.01, momentum=0.5, centered=True),
}


def trained(optimizer: str, captured: bool, dtype: Any, steps: int) -> Any:
    """All that training leaves behind."""
    mg.manual_seed(3)
    net = Net(dtype)
    opt = OPTIMIZERS[optimizer](net.parameters())
    step = training(net, opt)
    step = mg.capture(step) if captured else step
    losses, gradients = [], []
    for i, x in enumerate(batches(steps, dtype)):
        opt.param_groups[0]["lr"] = 0.1 / (i + 1)
        losses.append(step(x))
        gradients.append([p.grad.numpy().tolist() for p in net.parameters()])
        if i == 3:
            opt.zero_grad()  # the step does not need them
    state = {name: x.detach().numpy().tolist() for name, x in net.state_dict().items()}
    moments = [{k: v.tolist() if isinstance(v, mg.Tensor) else v for k, v in s.items()} for s in opt.state.values()]
    versions = [x.version[0] for x in net.state_dict().values()]
    return [x.item() for x in losses], gradients, state, moments, mg.Generator.get_state(generator_in_use()), versions


@pytest.mark.parametrize(("optimizer", "dtype"), [(name, mg.float32) for name in OPTIMIZERS] + [("adam", mg.float64)])
def test_training_is_bit_equal(optimizer: str, dtype: Any) -> None:
    """Losses, gradients, parameters, u and v, buffers, moments, step counts, random numbers, versions."""
    plain, captured = (trained(optimizer, which, dtype, 7) for which in (False, True))
    for ours, theirs in zip(captured, plain, strict=True):
        assert ours == theirs
    assert len(set(plain[0])) == 7


def test_a_hundred_steps() -> None:
    def run(captured: bool) -> Any:
        mg.manual_seed(1)
        w = mg.randn(2, 3).requires_grad_()
        opt = mg.optim.Adam([w], lr=0.05)

        def fn(x: mg.Tensor) -> mg.Tensor:
            opt.zero_grad()
            loss = (w * x + 0.1 * mg.randn(2, 3)).square().sum()
            loss.backward()
            opt.step()
            return loss

        step = mg.capture(fn) if captured else fn
        return [step(x[:2]).item() for x in batches(100)], w.tolist()

    assert run(True) == run(False)


def test_every_call_is_one_step_and_python_runs_twice() -> None:
    calls = []
    w = mg.ones(3)

    def fn(x: mg.Tensor) -> mg.Tensor:
        calls.append(1)
        w.copy_(w + x)
        return w * 2

    step = mg.capture(fn)
    outs = [step(mg.full((3,), float(i))) for i in range(5)]
    assert len(calls) == 2
    assert w.tolist() == [11.0] * 3
    assert [x.tolist()[0] for x in outs] == [2.0, 4.0, 8.0, 14.0, 22.0]  # none overwrites another


def test_two_backwards_and_a_gradient_penalty() -> None:
    def run(captured: bool) -> Any:
        mg.manual_seed(2)
        w = mg.randn(3).requires_grad_()
        opt = mg.optim.SGD([w], lr=0.1)

        def fn(x: mg.Tensor) -> mg.Tensor:
            opt.zero_grad()
            (w * x).tanh().sum().backward()
            inside = x.detach().requires_grad_()
            (g,) = mg.grad((w * inside).tanh().sum(), inside, create_graph=True)
            g.square().sum().backward()
            opt.step()
            return g.detach()

        step = mg.capture(fn) if captured else fn
        return [step(x[0]).tolist() for x in batches(4)], w.tolist()

    assert run(True) == run(False)


def test_an_optimizer_of_ops(device: str) -> None:
    """What it does is more than the launches that are made again."""
    if device == "cuda":
        pytest.skip("a GPU would need its numbers, which are refused")

    class Heavy(mg.optim.Optimizer):
        def _update(self, k: Any, params: list[mg.Tensor], group: Any) -> None:
            with mg.no_grad():
                for p, state in zip(params, self._states(params, "push"), strict=True):
                    state["push"].copy_(0.5 * state["push"] + p.grad)
                    p.copy_(p - group["lr"] * state["push"])

    def run(captured: bool) -> Any:
        w = mg.ones(3).requires_grad_()
        step = training(lambda x: w * x, Heavy([w], {"lr": 0.1}))  # type: ignore[arg-type]
        step = mg.capture(step) if captured else step
        return [step(x).item() for x in batches(5)], w.tolist()

    assert run(True) == run(False)


def test_constants_made_in_the_step() -> None:
    step = mg.capture(lambda x: x * mg.arange(3.0) + mg.zeros(3) + mg.eye(3))
    for i in range(4):
        x = mg.full((3,), float(i))
        assert step(x).tolist() == [[1.0, i, 2.0 * i], [0.0, i + 1.0, 2.0 * i], [0.0, i, 2.0 * i + 1]]


def test_what_would_be_constant_is_written() -> None:
    """In the step, itself or a view of it; or by the caller, who was given it as a result or as a gradient."""
    w = mg.zeros(2, 3, requires_grad=True)

    def fn(x: mg.Tensor) -> Any:
        w.grad = None
        total, table = mg.zeros(3), mg.ones(2, 3) * 2
        product = mg.nn.functional.linear(mg.ones(2, 3), mg.ones(1, 3))  # a view of memory that has no other name
        before = total + 1, table + 1, product + 1
        total.copy_(total + x)
        table.T[1].copy_(x[:2])
        product.copy_(product + x[0])
        after = total + 1, table + 1, product + 1, x + 1
        w.sum().backward()
        return *(y * 1 for y in before + after), mg.ones(2) * 3, mg.rand(2)

    def run(step: Any) -> Any:
        mg.manual_seed(4)
        found = []
        for i in range(1, 5):
            outs = step(mg.full((3,), float(i)))
            assert w.grad is not None
            found.append([x.tolist() for x in (*outs, w.grad)])
            for x in (*outs, w.grad):
                x.zero_()
        return found

    draws = [draw for *_, draw, _ in run(fn)]
    assert len(set(map(str, draws))) == 4
    assert run(mg.capture(fn)) == [
        [
            [1] * 3, [[3] * 3] * 2, [[4]] * 2,
            [i + 1] * 3, [[3, i + 1, 3]] * 2, [[i + 4]] * 2, [i + 1] * 3,
            [3, 3], draw, [[1] * 3] * 2,
        ]
        for i, draw in enumerate(draws, 1)
    ]  # fmt: skip


def test_a_constant_gradient_is_stepped_along() -> None:
    w = mg.zeros(2, requires_grad=True)
    opt = mg.optim.SGD([w], lr=0.5)

    @mg.capture
    def step() -> None:
        w.sum().backward()
        opt.step()
        opt.zero_grad()

    for i in range(1, 5):
        step()
        assert w.tolist() == [-0.5 * i] * 2


def test_numbers_meet_float16_and_zeros_as_ever() -> None:
    """A number takes part in float32; infinity and NaN are values, with no warning."""
    x = mg.tensor(np.linspace(0.5, 1000, 300).astype(np.float32))
    half = x.half()
    step = mg.capture(lambda: (half * 0.1, x / 0.0, (x * 0).log(), (x - x) / (x - x)))
    for _ in range(3):
        tenth, *others = (y.to("cpu").numpy() for y in step())
        expected = (half.to("cpu").numpy() * np.float32(0.1)).astype(np.float16)
        np.testing.assert_array_equal(tenth, expected)
        np.testing.assert_array_equal(others, np.full((3, 300), [[np.inf], [-np.inf], [np.nan]]))


def test_a_classifier_with_batch_norm() -> None:
    """Convolutions, pooling, both ways to average a batch, dropout and classes, which are looked at in every call."""

    def run(captured: bool) -> Any:
        mg.manual_seed(5)
        nn = mg.nn
        first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        net = nn.Sequential(
            first, nn.BatchNorm2d(4), nn.LeakyReLU(0.1), second, nn.BatchNorm2d(4, momentum=None), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 3),
        )  # fmt: skip
        nn.utils.spectral_norm(first)
        net.to(device=here())
        opt = mg.optim.Adam(net.parameters())

        def fn(x: mg.Tensor, y: mg.Tensor) -> Any:
            opt.zero_grad()
            out = net(x)
            loss = nn.functional.cross_entropy(out, y)
            loss.backward()
            opt.step()
            return loss, {"right": (out.argmax(1) == y).to(mg.float32).mean()}

        step = mg.capture(fn) if captured else fn
        rng = np.random.default_rng(0)
        made = []
        for _ in range(3):  # as it is, recorded, and from the record
            x, y = rng.standard_normal((3, 1, 6, 6)).astype("float32"), rng.integers(0, 3, 3)
            loss, found = step(mg.tensor(x), mg.tensor(y))
            made.append((loss.item(), found["right"].item()))
        return made, {name: x.detach().numpy().tolist() for name, x in net.state_dict().items()}, step

    eager, captured = run(False), run(True)
    assert eager[:2] == captured[:2]
    with pytest.raises(IndexError, match=r"expected indices in \[0, 2\]; got 3"):
        captured[2](mg.zeros(3, 1, 6, 6), mg.tensor([0, 3, 2]))


@pytest.mark.parametrize("stays", [True, False])
def test_every_op_of_the_table(device: str, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its first and second derivatives; in memory that stays what it is, and in other."""
    if not stays:
        if device == "cuda":
            pytest.skip("all memory of a CUDA graph stays")
        monkeypatch.setattr(graph, "_STAYS", -1)
        monkeypatch.setattr(graph, "_COPIED", -1)
    replayed = set()
    if device == "cuda" and config.ENABLE_CUDASIM:
        pytest.skip("minutes on the simulator, where test_ops.py launches each of these kernels")
    tried = 0
    for row in TABLE.values():
        for shapes in row.shapes if row.name not in INDICES_FROM_THE_HOST else ():

            def fn(*xs: mg.Tensor, row: Row = row) -> Any:
                xs = tuple(x.detach().requires_grad_() for x in xs)
                y = row.function(mg, *xs)
                if y.dtype.kind != "f" or not y.requires_grad:
                    return y
                first = mg.grad((y * y).sum(), xs, create_graph=True, allow_unused=True)
                found = [g for g in first if g is not None and g.requires_grad]
                if not found:
                    return y, first
                second = mg.grad(sum((g * g).sum() for g in found), xs, allow_unused=True)
                return y, first, second

            step = mg.capture(fn)
            for seed in range(4):
                xs = [mg.tensor(x) for x in inputs(row, shapes, seed)]
                np.testing.assert_equal(lists(step(*xs)), lists(fn(*xs)), err_msg=row.name)
            tried += 1
            replayed |= {name for text in re.findall(r"replay\d+\(\)\n(.*)", str(step)) for name in CALL.findall(text)}
    assert tried > 150
    if device == "cpu":
        assert (REPLAYED - replayed if stays else replayed) == set()


def test_extrema_along_a_dimension() -> None:
    """Where they stand is found on the device, and is not looked at."""
    x = mg.tensor([[1.0, 5.0, 5.0], [7.0, -3.0, 2.0]])
    step = mg.capture(lambda x: (*x.max(1), *x.min(-2, keepdim=True)))
    for y in (x, x, x.flip(1), -x):
        np.testing.assert_equal(lists(step(y)), lists((*y.max(1), *y.min(-2, keepdim=True))))


CALL = re.compile(r"= (\w+)\(")
REPLAYED = {  # first of a row
    "linear", "sum", "log_softmax", "sigmoid", "softplus", "relu", "leaky_relu", "elu", "gelu", "silu", "rsqrt",
    "where", "pow",
}  # fmt: skip
INDICES_FROM_THE_HOST = {"getitem integers", "getitem mask", "gather", "index_select", "embedding"}


def test_positions_are_arguments() -> None:
    rng = np.random.default_rng(0)
    x = mg.tensor(rng.standard_normal((4, 3)), requires_grad=True)

    def fn(rows: mg.Tensor, columns: mg.Tensor) -> Any:
        x.grad = None
        y = mg.index_select(x, 0, rows), mg.gather(x, 1, columns), mg.embedding(columns, x)
        (y[0].square().sum() + y[1].square().sum() + y[2].square().sum()).backward()
        return y

    step = mg.capture(fn)
    for _ in range(4):
        given = mg.tensor(rng.integers(0, 4, 5)), mg.tensor(rng.integers(0, 3, (4, 2)))
        made, gradient = lists(step(*given)), x.grad.tolist()
        assert made == lists(fn(*given))
        assert gradient == x.grad.tolist()


def lists(out: Any) -> Any:
    if isinstance(out, tuple | list):
        return [lists(x) for x in out]
    return out if out is None else out.detach().numpy().tolist()


@pytest.mark.parametrize(
    "gradient", ["fixed_uv", "exact", "unrolled", "detached", "straight_through", "projected", "elementwise"]
)
def test_dense_layers_in_every_convention(gradient: str, device: str) -> None:
    if device == "cuda" and gradient == "exact":
        pytest.skip("an SVD on a GPU goes through the host, which a captured step cannot")

    def run(captured: bool) -> Any:
        mg.manual_seed(5)
        net = mg.nn.Sequential(mg.nn.Linear(3, 4), mg.nn.ReLU(), mg.nn.Linear(4, 1))
        for layer in (net[0], net[2]):
            mg.nn.utils.spectral_norm(layer, gradient=gradient)
        net.to(device=here())
        opt = mg.optim.Adam(net.parameters(), betas=(0.0, 0.9))
        step = training(net, opt)  # type: ignore[arg-type]
        step = mg.capture(step) if captured else step
        losses = [step(x).item() for x in batches(5)]
        return losses, {name: x.detach().numpy().tolist() for name, x in net.state_dict().items()}

    assert run(True) == run(False)


def test_what_a_step_does_can_be_read(device: str) -> None:
    net = mg.nn.Sequential(Product(3, 1)).to(here())
    w = mg.ones(3)
    step = mg.capture(lambda x: (net(w * x)).exp().sum())
    assert "second call" in str(step)
    for _ in range(2):
        step(mg.ones(2, 3))
    lines = [line.strip() for line in str(step).splitlines()]
    if device == "cuda":
        assert any("exp" in line for line in lines)
    else:
        assert lines == [
            "# a0: float32 (3,)",
            "# a1: float32 (2, 3) argument 0",
            "# a2: float32 (1, 3) 0.weight",
            "def step():",
            "replay0()",
            "# v0 = mul(a0, a1)",
            "# v1 = getitem(v0, (slice(None, None, None), None, slice(None, None, None)))",
            "# v2 = mul(v1, a2)",
            "# v3 = sum(v2, (2,), False)",
            "# v4 = exp(v3)",
            "# v5 = sum(v4, (0, 1), False)",
            "return (v5.copy(),), ()",
        ]


def test_memory_that_does_not_stay_is_let_go(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as no later line has it."""
    if device == "cuda":
        pytest.skip("all memory of a CUDA graph stays")
    monkeypatch.setattr(graph, "_STAYS", -1)
    monkeypatch.setattr(graph, "_COPIED", -1)
    step = mg.capture(lambda x: (x * x + x).exp().sum())
    for _ in range(2):
        step(mg.ones(2, 3))
    lines = [line.strip() for line in str(step).splitlines()]
    assert lines[1:4] == ["def step():", "v0 = mul(a0, a0)", "v1 = add(v0, a0)"]
    (last,) = re.fullmatch(r"return \((v\d),\), \(\)", lines[-1]).groups()
    made = {word for line in lines for word in re.findall(r"v\d", line.partition("=")[0]) if " = " in line}
    gone = {word for line in lines if line.startswith("del") for word in re.findall(r"v\d", line)}
    assert made == gone | {last}
    assert last not in gone


def test_constants_are_made_once() -> None:
    """A gradient begins with some: 1, divided by the size of the mean."""
    w = mg.ones(3, requires_grad=True)

    @mg.capture
    def step(x: mg.Tensor) -> None:
        w.grad = None
        (w * x).mean().backward()

    for i in range(1, 4):
        step(mg.full((3,), float(3 * i)))
        assert w.grad is not None and w.grad.tolist() == [float(i)] * 3
    if here() == "cpu":
        once, _, every = str(step).partition("def step():")
        assert [name for name in ("full", "div", "expand") if f"= {name}(" in once] == ["full", "div", "expand"]
        assert "full" not in every and "del" not in once


# Memory ---------------------------------------------------------------------------------------------------------------


def test_a_step_dies_with_its_last_reference() -> None:
    """By reference counts alone: what it holds may be most of the memory."""
    net = Net()
    opt = mg.optim.Adam(net.parameters())
    step = mg.capture(training(net, opt))
    for x in batches(4):
        step(x)
    recording = weakref.ref(step._recording)
    gc.collect()
    gc.disable()
    try:
        del step
        assert recording() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("on_cuda")
def test_memory_of_a_step_is_its_own_and_comes_back() -> None:
    gc.collect()
    x = mg.ones(1000)
    step = mg.capture(lambda x: ((x * 2) * 3 + 1).sum())
    step(x)
    before = mg.cuda.memory_reserved()
    step(x)
    grown = mg.cuda.memory_reserved() - before
    assert 0 < grown <= 2 * 4096 + (1 << 15) + 8 * 512  # two blocks take turns, whatever the number of ops
    held = [mg.full((1000,), 9.0) for _ in range(8)]  # take nothing from the step
    assert step(x).item() == 7000
    assert all((other == 9).all().item() for other in held)
    del step, held
    gc.collect()
    mg.cuda.empty_cache()
    assert mg.cuda.memory_reserved() <= before
