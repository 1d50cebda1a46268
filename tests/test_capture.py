"""Captured steps, on every device: bit for bit the step itself; what is guarded; what cannot be captured."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import config
from ops_table import TABLE, Row, inputs

import minigrad as mg
from minigrad._mode import mode
from minigrad.ops.singular import sigma_max

pytestmark = pytest.mark.usefixtures("on_device")


@pytest.fixture(autouse=True)
def _where(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`capture` is that of the device."""
    monkeypatch.setitem(globals(), "DEVICE", device)


def capture(fn: Callable[..., Any]) -> Any:
    return mg.capture(fn, device=DEVICE)


DEVICE = "cpu"


class Net(mg.nn.Module):
    """Two normalized weights, dropout and buffers; products as sums, to be small."""

    def __init__(self, dtype: Any = mg.float32) -> None:
        super().__init__()
        self.first = mg.nn.utils.spectral_norm(Product(3, 4))
        self.second = mg.nn.utils.spectral_norm(Product(4, 2), n_power_iterations=2, order="vu", learnable_scale=True)
        self.drop = mg.nn.Dropout(0.25)
        self.register_buffer("mean", mg.zeros(4))
        self.to(dtype).to(device=DEVICE)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        h = self.first(x).tanh()
        if self.training:
            with mg.no_grad():
                self.mean.copy_(0.75 * self.mean + 0.25 * h.mean(0))
        return self.second(self.drop(h - self.mean))


class Product(mg.nn.Module):
    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.weight = mg.nn.Parameter(mg.randn(n, m))

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return (x[:, None, :] * self.weight).sum(2)


def batches(n: int, dtype: Any = mg.float32, size: int = 4) -> list[mg.Tensor]:
    rng = np.random.default_rng(0)
    return [mg.tensor(rng.standard_normal((size, 3)).astype(dtype)) for _ in range(n)]


def training(net: Net, optimizer: mg.optim.Optimizer) -> Callable[[mg.Tensor], mg.Tensor]:
    def step(x: mg.Tensor) -> mg.Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


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
    step = capture(step) if captured else step
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
    return [x.item() for x in losses], gradients, state, moments, mg.Generator.get_state(_default()), versions


def _default() -> mg.Generator:
    from minigrad import _random

    return _random.default


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

        step = capture(fn) if captured else fn
        return [step(x[:2]).item() for x in batches(100)], w.tolist()

    assert run(True) == run(False)


def test_every_call_is_one_step_and_python_runs_twice() -> None:
    calls = []
    w = mg.ones(3)

    def fn(x: mg.Tensor) -> mg.Tensor:
        calls.append(1)
        w.copy_(w + x)
        return w * 2

    step = capture(fn)
    outs = [step(mg.full((3,), float(i))) for i in range(5)]
    assert len(calls) == 2
    assert w.tolist() == [11.0] * 3
    assert [x.tolist()[0] for x in outs] == [2.0, 4.0, 8.0, 14.0, 22.0]  # none overwrites another


def test_results_are_the_callers_own() -> None:
    """Of parameters and of views of them, too; what a step makes need not be copied on the CPU."""
    w, v, x = mg.zeros(4, 3)[1:3], mg.zeros(1), mg.ones(2, 3)

    def fn(x: mg.Tensor) -> Any:
        w.copy_(w + x)
        v.copy_(v + 1)
        made = w * 2
        return w, w.reshape(3, 2), w.T[1], v, x, made, made[1:], mg.sum(made, 0)

    step = capture(fn)
    outs = [step(x) for _ in range(5)]
    for i, out in enumerate(outs[1:], 2):  # the first call runs as it is
        assert [y.reshape(-1)[0].item() for y in out] == [i, i, i, i, 1.0, 2.0 * i, 2.0 * i, 4.0 * i]
    for out in outs[1:]:
        for y in out:
            y.zero_()
    assert step(x)[0].tolist() == [[6.0] * 3] * 2


def test_arguments_results_and_constants() -> None:
    def fn(x: mg.Tensor, scale: float, *, shift: mg.Tensor) -> Any:
        y = x * scale + shift
        return {"y": y, "parts": (y.sum(), [y[0]], None, 7)}

    step = capture(fn)
    for i in range(3):
        x = mg.full((2, 2), float(i))  # on the CPU: it is copied
        out = step(x, 3.0, shift=mg.ones(2))
        assert out["y"].device == DEVICE
        assert out["y"].tolist() == [[3.0 * i + 1] * 2] * 2
        assert out["parts"][0].item() == 12 * i + 4
        assert out["parts"][2:] == (None, 7)
    with pytest.raises(ValueError, match=r"argument 1 was 3.0 in the first step; got 4.0"):
        step(x, 4.0, shift=mg.ones(2))


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

        step = capture(fn) if captured else fn
        return [step(x[0]).tolist() for x in batches(4)], w.tolist()

    assert run(True) == run(False)


def test_gradients_alone_with_the_optimizer_outside() -> None:
    w = mg.ones(3).requires_grad_()
    opt = mg.optim.SGD([w], lr=0.5)

    @capture
    def step(x: mg.Tensor) -> mg.Tensor:
        loss = (w * w * x).sum()
        loss.backward()
        return loss

    for expected in (1.0, 0.0, 0.0):
        assert step(mg.ones(3)).item() == 3 * expected
        assert w.grad is not None
        opt.step()
        opt.zero_grad()


def test_constants_made_in_the_step() -> None:
    here = {"device": DEVICE}
    step = capture(lambda x: x * mg.arange(3.0, **here) + mg.zeros(3, **here) + mg.eye(3, **here))
    for i in range(4):
        x = mg.full((3,), float(i))
        assert step(x).tolist() == [[1.0, i, 2.0 * i], [0.0, i + 1.0, 2.0 * i], [0.0, i, 2.0 * i + 1]]


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
        net.to(device=DEVICE)
        opt = mg.optim.Adam(net.parameters())

        def fn(x: mg.Tensor, y: mg.Tensor) -> Any:
            opt.zero_grad()
            out = net(x)
            loss = nn.functional.cross_entropy(out, y)
            loss.backward()
            opt.step()
            return loss, {"right": (out.argmax(1) == y).to(mg.float32).mean()}

        step = capture(fn) if captured else fn
        rng = np.random.default_rng(0)
        made = []
        for _ in range(4):
            x, y = rng.standard_normal((3, 1, 6, 6)).astype("float32"), rng.integers(0, 3, 3)
            loss, found = step(mg.tensor(x), mg.tensor(y))
            made.append((loss.item(), found["right"].item()))
        return made, {name: x.detach().numpy().tolist() for name, x in net.state_dict().items()}, step

    eager, captured = run(False), run(True)
    assert eager[:2] == captured[:2]
    with pytest.raises(IndexError, match=r"expected indices in \[0, 2\]; got 3"):
        captured[2](mg.zeros(3, 1, 6, 6), mg.tensor([0, 3, 2]))


def test_every_op_of_the_table(device: str) -> None:
    """With its first and second derivatives."""
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

            step = capture(fn)
            for seed in range(4):
                xs = [mg.tensor(x) for x in inputs(row, shapes, seed)]
                np.testing.assert_equal(lists(step(*xs)), lists(fn(*xs)), err_msg=row.name)
            tried += 1
    assert tried > 150


INDICES_FROM_THE_HOST = {"getitem integers", "getitem mask", "gather", "index_select", "embedding"}


def test_positions_are_arguments(device: str) -> None:
    rng = np.random.default_rng(0)
    x = mg.tensor(rng.standard_normal((4, 3)), requires_grad=True)

    def fn(rows: mg.Tensor, columns: mg.Tensor) -> Any:
        x.grad = None
        y = mg.index_select(x, 0, rows), mg.gather(x, 1, columns), mg.embedding(columns, x)
        (y[0].square().sum() + y[1].square().sum() + y[2].square().sum()).backward()
        return y

    step = capture(fn)
    for _ in range(4):
        given = mg.tensor(rng.integers(0, 4, 5)), mg.tensor(rng.integers(0, 3, (4, 2)))
        made, gradient = lists(step(*given)), x.grad.tolist()
        assert made == lists(fn(*given))
        assert gradient == x.grad.tolist()
    refused(lambda x: x[[0, 2]], "copies values from the host.*" + HERE)
    if device == "cuda":
        refused(lambda x: mg.index_select(x, 0, x.argmax(1)), "computes the indices that it uses.*" + HERE)


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
        net.to(device=DEVICE)
        opt = mg.optim.Adam(net.parameters(), betas=(0.0, 0.9))
        step = training(net, opt)  # type: ignore[arg-type]
        step = capture(step) if captured else step
        losses = [step(x).item() for x in batches(5)]
        return losses, {name: x.detach().numpy().tolist() for name, x in net.state_dict().items()}

    assert run(True) == run(False)


def test_what_a_step_does_can_be_read(device: str) -> None:
    net = mg.nn.Sequential(Product(3, 1)).to(DEVICE)
    w = mg.ones(3)
    step = capture(lambda x: (net(w * x)).exp().sum())
    assert "second call" in str(step)
    for _ in range(2):
        step(mg.ones(2, 3))
    lines = [line.strip() for line in str(step).splitlines()]
    if device == "cuda":
        assert any("exp" in line for line in lines)
    else:
        assert lines[:3] == ["# a0: float32 (3,)", "# a1: float32 (2, 3) argument 0", "# a2: float32 (1, 3) 0.weight"]
        assert lines[3:5] == ["def step():", "v0 = mul(a0, a1)"]
        assert "v4 = exp(v3)" in lines
        (last,) = re.fullmatch(r"return \((v\d),\)", lines[-1]).groups()
        made = {word for line in lines for word in re.findall(r"v\d", line.partition("=")[0]) if " = " in line}
        gone = {word for line in lines if line.startswith("del") for word in re.findall(r"v\d", line)}
        assert made == gone | {last}
        assert last not in gone


# Guards ---------------------------------------------------------------------------------------------------------------


def test_what_has_changed_is_said() -> None:
    net = Net()
    opt = mg.optim.Adam(net.parameters())
    step = capture(training(net, opt))
    x, other = batches(2)
    step(x)
    for _ in range(2):  # after the first step, and after the second
        with pytest.raises(ValueError, match=r"argument 0 was a float32 tensor of shape \(4, 3\).*got .* \(2, 3\)"):
            step(x[:2])
        with pytest.raises(ValueError, match=r"float32 tensor.*got a float64 tensor"):
            step(x.to(mg.float64))
        with pytest.raises(ValueError, match="argument 1 was absent"):
            step(x, other)
        with pytest.raises(ValueError, match="grad mode was True"), mg.no_grad():
            step(x)
        net.eval()
        with pytest.raises(RuntimeError, match="Net was in training mode in the first step, and is in evaluation mode"):
            step(x)
        net.train()
        net.drop.eval()
        with pytest.raises(RuntimeError, match="Dropout was in training mode"):
            step(x)
        net.train()
        step(x)
    with pytest.raises(ValueError, match="requires grad"):
        step(x.detach().requires_grad_())
    with pytest.raises(TypeError, match="got ndarray for 0"):
        step(np.ones(3))


def test_what_was_replaced_is_said() -> None:
    net = Net()
    opt = mg.optim.Adam(net.parameters())
    step = capture(training(net, opt))
    x = batches(1)[0]
    for _ in range(3):
        step(x)
    before = _default().get_state()
    opt.load_state_dict(opt.state_dict())
    with pytest.raises(RuntimeError, match=r"another state .*Make the step anew"):
        step(x)
    assert [s["step"] for s in opt.state.values()] == [3, 3, 3]
    assert _default().get_state() == before
    step = capture(training(net, opt))
    for _ in range(3):
        step(x)
    net.mean = mg.zeros(4)
    with pytest.raises(RuntimeError, match=r"'mean', of shape \(4,\), has been replaced"):
        step(x)


def test_a_loaded_state_dict_is_used() -> None:
    net = Net()
    x = batches(1)[0]
    step = capture(lambda x: net(x))
    net.drop.eval()
    for _ in range(3):
        step(x)
    net.load_state_dict({name: mg.zeros(*y.shape) for name, y in net.state_dict().items()})
    assert (step(x) == 0).all().item()


# What cannot be captured ----------------------------------------------------------------------------------------------

HERE = r", at .*test_capture.py:\d+"


@pytest.mark.parametrize(
    ("fn", "complaint"),
    [
        (lambda x: x * x.sum().item(), "reads values back to the host" + " .*" + HERE),
        (lambda x: x if x.sum() > 0 else -x, "reads values back" + " .*" + HERE),
        (lambda x: x[x > 0], "a boolean mask" + ".*" + HERE),
        (lambda x: x * mg.tensor([1.0, 2.0, 3.0]), "copies values from the host.*" + HERE),
        (lambda x: (x.__dlpack__(), x)[1], "gives memory away"),
        (mg.detect_anomaly()(lambda x: x + 1), "reads values back|copies values"),
    ],
    ids=["item", "if", "mask", "tensor", "dlpack", "anomaly"],
)
def test_a_step_that_cannot_be_captured(fn: Any, complaint: str) -> None:
    refused(fn, complaint)


def test_memory_of_others_is_not_taken(device: str) -> None:
    if device == "cuda":
        pytest.skip("test_cuda_exchange.py has what lends memory of a GPU")
    others = np.ones(3)
    refused(lambda x: (mg.from_dlpack(others), x)[1], "takes memory from outside")


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("fn", "complaint"),
    [
        (lambda x: sigma_max(x, 0), "an SVD.*" + HERE),
        (lambda x: x.to("cpu"), r"reads values back .*to\('cpu'\)"),
        (lambda x: (mg.cuda.synchronize(), x)[1], "waits for the device"),
        (lambda x: (mg.ones(2, device="cpu") * 2, x)[1], r"op 'mul' ran on 'cpu', .* is captured on 'cuda'. Move"),
    ],
    ids=["svd", "to", "synchronize", "cpu"],
)
def test_a_step_that_cannot_be_captured_on_a_gpu(fn: Any, complaint: str) -> None:
    refused(fn, complaint)


def refused(fn: Any, complaint: str) -> None:
    step = capture(fn)
    x = batches(1)[0]
    step(x)  # runs as it is
    with pytest.raises(RuntimeError, match=complaint):
        step(x)
    assert mode.recorder is None
    assert mode.witness is None
    assert (x + 1 == 1 + x).all().item()  # nothing is recorded any more


def test_state_does_not_advance_when_a_capture_fails() -> None:
    net = Net()
    opt = mg.optim.Adam(net.parameters())
    plain = training(net, opt)
    calls = []

    def fn(x: mg.Tensor) -> mg.Tensor:
        loss = plain(x)
        net.mean.copy_(net.mean + 1)  # for the second time in the step
        calls.append(1)
        return loss * loss.item() if len(calls) == 2 else loss

    def state() -> Any:
        values = {name: x.detach().numpy().tolist() for name, x in net.state_dict().items()}
        moments = [{k: v if k == "step" else v.tolist() for k, v in s.items()} for s in opt.state.values()]
        return values, moments, _default().get_state()

    step = capture(fn)
    x = batches(1)[0]
    step(x)
    before = state()
    with pytest.raises(RuntimeError, match="reads values back"):
        step(x)
    assert state() == before
    step(x)  # now it can
    step(x)
    assert [s["step"] for s in opt.state.values()] == [3, 3, 3]


def test_gradients_of_the_step_before() -> None:
    w = mg.ones(3).requires_grad_()
    step = capture(lambda x: (w * x).sum().backward())
    step(mg.ones(3))
    with pytest.raises(RuntimeError, match=r"adds to the gradient, from before the step.*zero_grad\(\)"):
        step(mg.ones(3))


def test_a_tensor_that_is_replaced_instead_of_changed() -> None:
    class Carrying:
        h = mg.zeros(3)

        def __call__(self, x: mg.Tensor) -> mg.Tensor:
            self.h = self.h * 0.5 + x
            return self.h

    step = capture(Carrying())
    step(mg.ones(3))
    with pytest.raises(RuntimeError, match=r"let go of a tensor from before the step.*copy_\(\)"):
        step(mg.ones(3))


def test_a_parameter_that_joins_in_the_second_step() -> None:
    a, b = (mg.ones(3).requires_grad_() for _ in range(2))
    opt = mg.optim.Adam([a, b])
    calls = []

    @capture
    def step(x: mg.Tensor) -> None:
        calls.append(1)
        opt.zero_grad()
        ((a + b if len(calls) > 1 else a) * x).sum().backward()
        opt.step()

    step(mg.ones(3))
    with pytest.raises(RuntimeError, match=r"made its state .* in the second step"):
        step(mg.ones(3))


def test_a_step_in_a_step() -> None:
    inner = capture(lambda x: x * 2)
    with pytest.raises(RuntimeError, match="cannot be a part of another"):
        capture(lambda x: inner(x))(mg.ones(3))


# Memory ---------------------------------------------------------------------------------------------------------------


def test_a_step_dies_with_its_last_reference() -> None:
    """By reference counts alone: what it holds may be most of the memory."""
    net = Net()
    opt = mg.optim.Adam(net.parameters())
    step = capture(training(net, opt))
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
    step = capture(lambda x: ((x * 2) * 3 + 1).sum())
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
