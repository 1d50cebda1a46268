"""What a captured step refuses: to be called for something else, and to be captured where it could not be true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from captured import Net, Product, batches, generator_in_use, training

import minigrad as mg
from minigrad._mode import mode
from minigrad.ops.singular import sigma_max

pytestmark = pytest.mark.usefixtures("on_device")

# Guards ---------------------------------------------------------------------------------------------------------------


def test_what_has_changed_is_said() -> None:
    net = Net()
    opt = mg.optim.Adam(net.parameters())
    step = mg.capture(training(net, opt))
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
    step = mg.capture(training(net, opt))
    x = batches(1)[0]
    for _ in range(3):
        step(x)
    before = generator_in_use().get_state()
    opt.load_state_dict(opt.state_dict())
    with pytest.raises(RuntimeError, match=r"another state, or other parameters.*Make the step anew"):
        step(x)
    assert [s["step"] for s in opt.state.values()] == [3, 3, 3]
    assert generator_in_use().get_state() == before
    step = mg.capture(training(net, opt))
    for _ in range(3):
        step(x)
    net.mean = mg.zeros(4)
    with pytest.raises(RuntimeError, match=r"'mean', of shape \(4,\), has been replaced"):
        step(x)


def test_an_optimizer_that_would_step_other_arrays_is_said(device: str) -> None:
    for change, complaint in (
        (
            lambda opt, w: opt.state[w].update(momentum_buffer=mg.zeros(3)),
            r"3 arrays, and now 3; an array of shape \(3,\) stands where an array of shape \(3,\) stood",
        ),
        (
            lambda opt, w: opt.param_groups[0].update(momentum=0.0),
            r"now 2; none stands where an array" if device == "cuda" else r"none stands where an array of shape \(3,\)",
        ),
    ):
        w = mg.ones(3, requires_grad=True)
        opt = mg.optim.SGD([w], lr=0.5, momentum=0.5)

        @mg.capture
        def step(x: mg.Tensor, w: mg.Tensor = w, opt: mg.optim.SGD = opt) -> None:
            opt.zero_grad()
            (w * x).sum().backward()
            opt.step()

        for _ in range(3):
            step(mg.ones(3))
        before = w.tolist()
        change(opt, w)
        with pytest.raises(RuntimeError, match=complaint + r".* Make the step anew"):
            step(mg.ones(3))
        assert w.tolist() == before


def test_counts_that_were_one_are_said() -> None:
    a, b = (mg.ones(3).requires_grad_() for _ in range(2))
    opts = [mg.optim.Adam([a, b], lr=0.1), mg.optim.Adam([a], lr=0.1)]

    @mg.capture
    def step(x: mg.Tensor) -> None:
        opts[0].zero_grad()
        (a * b * x).sum().backward()
        for opt in reversed(opts):
            opt.step()

    for _ in range(3):
        step(mg.ones(3))
    opts[0].state[b]["step"] = 100
    with pytest.raises(RuntimeError, match=r"learning rates or counts of steps where there was one"):
        step(mg.ones(3))
    assert [s["step"] for opt in opts for s in opt.state.values()] == [3, 100, 3]  # no other has counted it


def test_a_loaded_state_dict_is_used() -> None:
    net = Net()
    x = batches(1)[0]
    step = mg.capture(lambda x: net(x))
    net.drop.eval()
    for _ in range(3):
        step(x)
    net.load_state_dict({name: mg.zeros(*y.shape) for name, y in net.state_dict().items()})
    assert (step(x) == 0).all().item()


def test_a_frozen_parameter_and_another_group_are_said() -> None:
    net, extra = Net(), mg.ones(2).requires_grad_()
    opt = mg.optim.Adam(net.parameters())
    step = mg.capture(training(net, opt))
    x = batches(1)[0]
    for _ in range(3):
        step(x)
    net.first.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"requires_grad of 'original', of shape .*, was True .* and is False now"):
        step(x)
    net.first.requires_grad_(True)
    step(x)
    opt.add_param_group({"params": [extra]})
    n = len(list(net.parameters()))
    with pytest.raises(RuntimeError, match=rf"Adam had groups of \[{n}\] parameters .* and has \[{n}, 1\] now"):
        step(x)
    assert {s["step"] for s in opt.state.values()} == {4}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda net: setattr(net, "first", Product(3, 4)), "'first'"),
        (lambda net: mg.nn.utils.remove_spectral_norm(net.first, restore_original=True), "'weight'"),
        (lambda net: setattr(net.second, "bias", mg.nn.Parameter(mg.ones(2))), "'bias'"),
        (lambda net: net.drop.register_forward_hook(lambda *_: None), "a hook"),
    ],
    ids=["module", "normalization", "parameter", "hook"],
)
def test_another_network_is_said(change: Any, what: str) -> None:
    net = Net()
    net.second.register_parameter("bias", None)
    step = mg.capture(lambda x: net(x))
    x = batches(1)[0]
    for _ in range(3):
        step(x)
    change(net)
    with pytest.raises(RuntimeError, match=f"{what} was put into a module, or taken out of it"):
        step(x)


def test_another_hook_of_a_tensor_is_said() -> None:
    a, b = mg.ones(3).requires_grad_(), mg.ones(3).requires_grad_()
    old = a.register_hook(lambda g: 2 * g)
    opt = mg.optim.SGD([a, b], lr=0.1)

    @mg.capture
    def step(x: mg.Tensor) -> None:
        opt.zero_grad()
        (a * b * x).sum().backward()

    for _ in range(3):
        step(mg.ones(3))
    new = b.register_hook(lambda g: -g)
    with pytest.raises(RuntimeError, match="a hook was registered on a tensor, or removed, since"):
        step(mg.ones(3))
    new.remove()
    step(mg.ones(3))
    old.remove()
    with pytest.raises(RuntimeError, match="a hook was registered on a tensor, or removed, since"):
        step(mg.ones(3))


def test_tensors_that_are_no_parameters_are_watched() -> None:
    a, b = mg.ones(3).requires_grad_(), mg.ones(3)
    opt = mg.optim.SGD([a], lr=0.1)

    @mg.capture
    def step(x: mg.Tensor) -> None:
        opt.zero_grad()
        (a * b * x).sum().backward()
        opt.step()

    for _ in range(3):
        step(mg.ones(3))
    for x in (a, b):
        x.requires_grad_(not x.requires_grad)
        with pytest.raises(RuntimeError, match=r"requires_grad of a tensor, of shape \(3,\), was"):
            step(mg.ones(3))
        x.requires_grad_(not x.requires_grad)
    opt.param_groups[0]["params"] = [b]
    with pytest.raises(RuntimeError, match="an optimizer has got another state, or other parameters"):
        step(mg.ones(3))
    with pytest.raises(ValueError, match="anomaly mode was False"), mg.detect_anomaly():
        step(mg.ones(3))


def test_graphs_are_told_of_what_a_step_changes() -> None:
    """Of plain tensors, too, that are part of no module."""
    w, count = mg.ones(3).requires_grad_(), mg.zeros(3)
    opt = mg.optim.SGD([w], lr=0.1)

    @mg.capture
    def step() -> None:
        opt.zero_grad()
        (w * w).sum().backward()
        opt.step()
        with mg.no_grad():
            count.copy_(count + 1)
            count.copy_(count + 1)

    for calls in range(1, 5):
        before = (w * w * count).sum()
        step()
        assert (w.version[0], count.version[0]) == (calls, 2 * calls)
        with pytest.raises(RuntimeError, match="was changed in place"):
            before.backward()


# What cannot be captured ----------------------------------------------------------------------------------------------

HERE = r", at .*test_capture_refusals.py:\d+"


@pytest.mark.parametrize(
    ("fn", "complaint"),
    [
        (lambda x: x * x.sum().item(), "reads values back to the host" + " .*" + HERE),
        (lambda x: x if x.sum() > 0 else -x, "reads values back" + " .*" + HERE),
        (lambda x: x[x > 0], "a boolean mask" + ".*" + HERE),
        (lambda x: x[[0, 2]], "copies values from the host.*" + HERE),
        (lambda x: x * mg.tensor([1.0, 2.0, 3.0]), "copies values from the host.*" + HERE),
        (lambda x: (x.__dlpack__(), x)[1], "gives memory away"),
        (mg.detect_anomaly()(lambda x: x + 1), "reads values back|copies values"),
    ],
    ids=["item", "if", "mask", "list", "tensor", "dlpack", "anomaly"],
)
def test_a_step_that_cannot_be_captured(fn: Any, complaint: str) -> None:
    refused(fn, complaint)


GENERATOR = mg.Generator(7)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (mg.manual_seed(7), x)[1],
        lambda x: x + mg.rand(3, generator=mg.Generator(7)),
        lambda x: (GENERATOR.set_state({"seed": 7, "offset": 0}), x)[1],
    ],
    ids=["seed", "generator", "state"],
)
def test_a_seed_is_said(fn: Any) -> None:
    refused(fn, "seeds a generator, or makes one" + HERE)


@pytest.mark.parametrize("how", ["schedule", "option"])
def test_a_learning_rate_that_the_step_changes(how: str) -> None:
    opt = mg.optim.SGD([mg.ones(3).requires_grad_()], lr=0.1)
    schedule = mg.optim.lr_scheduler.StepLR(opt, 30)

    def fn(x: mg.Tensor) -> None:
        for p in opt.param_groups[0]["params"]:
            opt.zero_grad()
            (p * x[0]).sum().backward()
        opt.step()
        if how == "schedule":
            schedule.step()
        else:
            opt.param_groups[0]["lr"] *= 0.5

    refused(fn, "sets learning rates by a schedule" + HERE if how == "schedule" else "the step changes options of SGD")


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
        (lambda x: mg.index_select(x, 0, x.argmax(1)), "computes the indices that it uses.*" + HERE),
        (lambda x: x.to("cpu"), r"reads values back .*to\('cpu'\)"),
        (lambda x: (mg.cuda.synchronize(), x)[1], "waits for the device"),
        (lambda x: (mg.ones(2, device="cpu") * 2, x)[1], r"op 'mul' ran on 'cpu', .* is captured on 'cuda'. Move"),
    ],
    ids=["svd", "indices", "to", "synchronize", "cpu"],
)
def test_a_step_that_cannot_be_captured_on_a_gpu(fn: Any, complaint: str) -> None:
    refused(fn, complaint)


def refused(fn: Any, complaint: str) -> None:
    step = mg.capture(fn)
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
        return values, moments, generator_in_use().get_state()

    step = mg.capture(fn)
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
    step = mg.capture(lambda x: (w * x).sum().backward())
    step(mg.ones(3))
    with pytest.raises(RuntimeError, match=r"adds to the gradient, from before the step.*zero_grad\(\)"):
        step(mg.ones(3))


def test_gradients_of_a_later_step_before() -> None:
    """Dropped between the first calls by the caller, who forgets it once."""
    w = mg.ones(3).requires_grad_()
    step = mg.capture(lambda x: (w * x).sum().backward())
    for _ in range(3):
        w.grad = None
        step(mg.ones(3))
    with pytest.raises(RuntimeError, match=r"adds to the gradient, from before the step"):
        step(mg.ones(3))
    assert w.grad is not None and w.grad.tolist() == [1.0] * 3
    w.grad = None
    step(mg.full((3,), 2.0))
    assert w.grad.tolist() == [2.0] * 3


def test_gradients_that_the_step_drops_itself_may_be_there() -> None:
    """Though there were none when it was recorded: it is recorded again."""
    w = mg.ones(3).requires_grad_()
    calls = []

    @mg.capture
    def step(x: mg.Tensor) -> None:
        calls.append(1)
        w.grad = None
        (w * x).sum().backward()

    for i in range(6):
        if i == 1:
            w.grad = None
        step(mg.full((3,), float(i)))
        assert w.grad is not None and w.grad.tolist() == [i] * 3
    assert len(calls) == 3


def test_an_optimizer_without_its_backward() -> None:
    w = mg.ones(3).requires_grad_()
    opt = mg.optim.SGD([w], lr=0.1)
    step = mg.capture(opt.step)
    (w * w).sum().backward()
    step()
    with pytest.raises(RuntimeError, match=r"steps along a gradient from before the step.*backward\(\) in the step"):
        step()


def test_a_tensor_that_is_replaced_instead_of_changed() -> None:
    class Carrying:
        h = mg.zeros(3)

        def __call__(self, x: mg.Tensor) -> mg.Tensor:
            self.h = self.h * 0.5 + x
            return self.h

    step = mg.capture(Carrying())
    step(mg.ones(3))
    with pytest.raises(RuntimeError, match=r"let go of a tensor from before the step.*copy_\(\)"):
        step(mg.ones(3))


@pytest.mark.parametrize("which", ["result", "buffer", "argument"])
def test_a_tensor_that_is_replaced_and_still_held(which: str) -> None:
    """By who has the first result, or has its state dict; or an argument that is kept for the next call."""

    class Carrying(mg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.result = mg.zeros(3)
            self.register_buffer("buffer", mg.zeros(3))
            self.argument = mg.zeros(3)

        def forward(self, x: mg.Tensor) -> mg.Tensor:
            before = getattr(self, which)
            setattr(self, which, x if which == "argument" else before * 0.5 + x)
            return before - x if which == "argument" else getattr(self, which)

    net, x = Carrying(), mg.ones(3)
    step = mg.capture(net)
    held = step(x), net.state_dict()
    with pytest.raises(RuntimeError, match=r"let go of a tensor from before the step"):
        step(x)
    assert held


@pytest.mark.parametrize("calls", [0, 1])
def test_an_argument_that_is_written(calls: int) -> None:
    """In the first call, and in the one that records."""
    made = []

    def fn(x: mg.Tensor) -> None:
        made.append(x * 2)
        if len(made) > calls:
            x[0].copy_(made[-1][0])

    step, x = mg.capture(fn), mg.ones(3)
    for _ in range(calls):
        step(x)
    with pytest.raises(RuntimeError, match="writes into argument 0, which is a copy"):
        step(x)
    assert x.tolist() == [1.0] * 3


def test_a_parameter_that_joins_in_the_second_step() -> None:
    a, b = (mg.ones(3).requires_grad_() for _ in range(2))
    opt = mg.optim.Adam([a, b])
    calls = []

    @mg.capture
    def step(x: mg.Tensor) -> None:
        calls.append(1)
        opt.zero_grad()
        ((a + b if len(calls) > 1 else a) * x).sum().backward()
        opt.step()

    step(mg.ones(3))
    with pytest.raises(RuntimeError, match=r"made its state .* in the second step"):
        step(mg.ones(3))


def test_a_step_in_a_step() -> None:
    inner = mg.capture(lambda x: x * 2)
    with pytest.raises(RuntimeError, match="cannot be a part of another"):
        mg.capture(lambda x: inner(x))(mg.ones(3))
