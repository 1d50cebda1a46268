"""Optimizers and schedules against torch's over a hundred steps; state, groups, errors."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim
from minigrad.kernels.cpu import optim as kernels
from minigrad.optim import lr_scheduler

ALGORITHMS = {
    "SGD": ("SGD", {"lr": 0.05}),
    "SGD, weight decay": ("SGD", {"lr": 0.05, "weight_decay": 0.1}),
    "SGD, momentum": ("SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}),
    "SGD, dampening": ("SGD", {"lr": 0.02, "momentum": 0.9, "dampening": 0.3}),
    "SGD, nesterov": ("SGD", {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    "Adam": ("Adam", {"lr": 0.02}),
    "Adam, as in the paper": ("Adam", {"lr": 0.01, "betas": (0.0, 0.9)}),
    "Adam, weight decay": ("Adam", {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-4}),
    "AdamW": ("AdamW", {"lr": 0.02}),
    "AdamW, more decay": ("AdamW", {"lr": 0.02, "weight_decay": 0.5, "betas": (0.5, 0.99)}),
    "RMSprop": ("RMSprop", {"lr": 0.01}),
    "RMSprop, momentum": ("RMSprop", {"lr": 0.002, "momentum": 0.9, "alpha": 0.9, "weight_decay": 0.1}),
    "RMSprop, centered": ("RMSprop", {"lr": 0.01, "centered": True, "eps": 1e-3}),
    "RMSprop, all": ("RMSprop", {"lr": 0.002, "centered": True, "momentum": 0.5, "eps": 1e-3}),
}
SHAPES = [(3, 4), (5,), ()]

pytestmark = pytest.mark.usefixtures("on_device")


def groups(ps, options):
    return [{"params": ps[:1]}, {"params": ps[1:], "lr": options["lr"] / 2, "weight_decay": 0.02}]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_hundred_steps_are_torchs(name, dtype, tolerance):
    torch = pytest.importorskip("torch")
    algorithm, options = ALGORITHMS[name]
    rng = np.random.default_rng(0)
    start, goal = ([np.array(rng.standard_normal(shape), dtype) for shape in SHAPES] for _ in range(2))
    ps, ts = [mg.tensor(a, requires_grad=True) for a in start], [torch.tensor(a, requires_grad=True) for a in start]
    ours = getattr(optim, algorithm)(groups(ps, options), **options)
    theirs = getattr(torch.optim, algorithm)(groups(ts, options), **options)
    for step in range(100):
        gradients = [4 * (t.detach().numpy() - a) ** 3 + np.sin(3 * a) for t, a in zip(ts, goal, strict=True)]
        for optimizer, leaves, tensor in ((ours, ps, mg.tensor), (theirs, ts, torch.tensor)):
            for leaf, g in zip(leaves, gradients, strict=True):
                leaf.grad = tensor(np.asarray(g, dtype))
            if step % 7 == 3:
                leaves[1].grad = None
            optimizer.param_groups[0]["lr"] *= 0.99
            optimizer.step()
    for p, t in zip(ps, ts, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), t.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "make",
    [lambda ps: optim.Adam(ps, lr=0.5, betas=(0, 0)), lambda ps: optim.AdamW(ps, lr=0.5, betas=(0, 0), weight_decay=0),
     lambda ps: optim.RMSprop(ps, lr=0.5, alpha=0)],
)  # fmt: skip
def test_a_mean_over_one_step_forgets_a_large_gradient(make):
    w = mg.tensor([0.0, 0.0], requires_grad=True)
    optimizer = make([w])
    for g in ([1.0, -1.0], [1e-5, 3e-4]):  # their squares are lost beside 1 in float32
        w.grad = mg.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(w.tolist(), [-1.0, 0.0], atol=1e-3)  # each step is lr · sign(g)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_saved_state_continues_exactly(name):
    algorithm, options = ALGORITHMS[name]

    def train(ps, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            sum(((p - 1) ** 4).sum() for p in ps).backward()
            optimizer.step()

    ps = [mg.full(shape, 0.3, requires_grad=True) for shape in SHAPES]
    optimizer = getattr(optim, algorithm)(groups(ps, options), **options)
    train(ps, optimizer, 5)
    others = [mg.tensor(p.detach(), requires_grad=True) for p in ps]
    other = getattr(optim, algorithm)(groups(others, {"lr": 9.0}), lr=9.0)
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    other.load_state_dict(saved)
    both = copy.deepcopy((ps, optimizer))
    train(ps, optimizer, 5)
    train(others, other, 5)
    train(*both, 5)
    for p, q, r in zip(ps, others, both[0], strict=True):
        assert p.tolist() == q.tolist() == r.tolist()
    assert other.param_groups[0]["lr"] == options["lr"]


def test_state_dicts_have_torchs_layout():
    torch = pytest.importorskip("torch")
    for algorithm, options in ALGORITHMS.values():
        p, t = mg.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        ours, theirs = getattr(optim, algorithm)([p], **options), getattr(torch.optim, algorithm)([t], **options)
        for leaf, optimizer in ((p, ours), (t, theirs)):
            leaf.sum().backward()
            optimizer.step()
        mine, other = ours.state_dict(), theirs.state_dict()
        wanted = {name for name, value in other["state"][0].items() if value is not None} if other["state"] else set()
        wanted -= {"step"} if algorithm == "RMSprop" else set()  # it has no use there
        assert set(mine["state"].get(0, {})) == wanted
        assert mine["param_groups"][0]["params"] == other["param_groups"][0]["params"] == [0]
        assert set(mine["param_groups"][0]) <= set(other["param_groups"][0])


def test_a_step_is_in_place_and_seen_by_autograd():
    p = mg.ones(3, requires_grad=True)
    memory, loss = p.data, (p * p).sum()
    loss.backward(retain_graph=True)
    optim.SGD([p], lr=0.25).step()
    assert p.data is memory and p.tolist() == [0.5] * 3
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_parameters_without_gradients_are_left_alone():
    p, q = mg.ones(2, requires_grad=True), mg.ones(2, requires_grad=True)
    for make in (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop):
        optimizer = make([p, q], lr=0.1, weight_decay=0.5)
        (p * 2).sum().backward()
        optimizer.step()
        assert q.tolist() == [1.0, 1.0] and q.version[0] == 0 and q not in optimizer.state
        optimizer.zero_grad()
        before = p.tolist()
        optimizer.step()
        assert p.tolist() == before


def test_zero_grad():
    p = mg.ones(2, requires_grad=True)
    optimizer = optim.SGD([p])
    (p * p).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0.0, 0.0]
    optimizer.zero_grad()
    assert p.grad is None


def test_a_closure_is_run_with_gradients():
    p = mg.ones(2, requires_grad=True)
    optimizer = optim.SGD([p], lr=0.5)

    def closure():
        loss = (p * p).sum()
        loss.backward()
        return loss

    with mg.no_grad():
        assert optimizer.step(closure).item() == 2.0
    assert p.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.RMSprop])
def test_memory_out_of_order(make):
    """A transposed parameter and an expanded gradient."""
    weight = nn.Parameter(mg.rand(3, 2, generator=mg.Generator(0)).T)
    ordered = nn.Parameter(weight.detach().clone())
    assert weight.detach().contiguous().data is not weight.data
    for p in (weight, ordered):
        p.grad = mg.tensor([[1.0, 2.0, 3.0]]).expand(2, 3)
        optimizer = make([p], lr=0.1)
        optimizer.step(), optimizer.step()
        assert p.grad.tolist() == [[1.0, 2.0, 3.0]] * 2
    assert weight.tolist() == ordered.tolist()


@pytest.mark.parametrize("make", [optim.Adam, lambda ps: optim.SGD(ps, 0.1, momentum=0.9, dampening=0.5)])
def test_parameters_that_have_made_different_numbers_of_steps(make):
    """Each is corrected for its own."""

    def stepped(optimizers, a, b):
        for given in ("a", "a", "ab", "b", "ab"):
            for name, p in (("a", a), ("b", b)):
                p.grad = p.detach() ** 2 if name in given else None
            for optimizer in optimizers:
                optimizer.step()
        return a.tolist(), b.tolist()

    a, b = leaf(2), leaf(2)
    c, d = leaf(2), leaf(2)
    assert stepped([make([a, b])], a, b) == stepped([make([c]), make([d])], c, d)


@pytest.mark.parametrize("state", [(None, None), ("a", None), (None, "b"), ("a", "b")])
def test_serial_and_parallel_kernels_give_the_same_bits(state):
    rng = np.random.default_rng(0)
    arrays = [rng.random(1003).astype(np.float32) for _ in range(5)]
    p, g, v, a, b = arrays
    extra = [None if name is None else array for name, array in zip(state, (0.1 * a, b), strict=True)]
    numbers = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], np.float32)
    for kernel, given in (
        (kernels._sgd, [p, g, extra[1], numbers]),
        (kernels._adam, [p, g, a, v, numbers]),
        (kernels._rmsprop, [p, g, v, *extra, numbers]),
    ):
        one, two = copy.deepcopy(given), copy.deepcopy(given)
        kernel.serial(*one), kernel.parallel(*two)
        for x, y in zip(one[:5], two[:5], strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_nan_gradient_is_not_hidden():
    for make in (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, lambda ps: optim.RMSprop(ps, centered=True)):
        p = mg.ones(2, requires_grad=True)
        optimizer = make([p])
        for g in (mg.tensor([math.nan, 1.0]), mg.ones(2)):
            p.grad = g
            optimizer.step()
        assert math.isnan(p[0].item()) and math.isfinite(p[1].item())


def leaf(*shape, **options):
    return mg.ones(*shape, requires_grad=True, **options)


def step_with(p, g):
    p.grad = g
    optim.SGD([p]).step()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: optim.Adam([leaf(2, dtype=mg.float16)]), TypeError, "Adam: expected .* got float16. Train in float32"),
        (lambda: optim.SGD([mg.tensor([1])]), TypeError, "got int64"),
        (lambda: optim.SGD([3.0]), TypeError, "expected tensors; got float"),
        (lambda: optim.SGD([]), ValueError, "expected parameters; got none"),
        (lambda: optim.SGD([leaf(2) * 2]), ValueError, "expected leaves"),
        (lambda: optim.SGD([leaf(2)] * 2, lr=1.0), ValueError, r"a parameter of shape \(2,\) occurs twice"),
        (lambda: optim.SGD(None), TypeError, "SGD: expected tensors or dicts with 'params'; got NoneType"),
        (lambda: optim.SGD(mg.nn.Linear(2, 1)), TypeError, r"got Linear. Pass module.parameters\(\)"),
        (lambda: optim.SGD(mg.ones(3)), TypeError, r"got Tensor. Pass \[tensor\]"),
        (lambda: optim.SGD([{"lr": 1.0}]), ValueError, "SGD: expected 'params' in a group; got lr"),
        (lambda: optim.SGD([{"params": leaf(1)}, leaf(1)]), TypeError, "expected .* dicts with 'params'; got Tensor"),
        (lambda: optim.SGD([leaf(2)], lr=None), TypeError, "SGD: expected lr as a number; got None"),
        (lambda: optim.Adam([leaf(2)], eps="0"), TypeError, "Adam: expected eps as a number; got '0'"),
        (lambda: optim.Adam([leaf(2)], betas=0.9), TypeError, r"Adam: expected two betas in \[0, 1\); got 0.9"),
        (lambda: optim.SGD([leaf(2)]).load_state_dict({}), ValueError, "SGD.load_state_dict: expected 'state' and"),
        (lambda: optim.SGD([leaf(2)], lr=-1.0), ValueError, "expected lr ≥ 0; got -1.0"),
        (lambda: optim.Adam([leaf(2)], lr=math.nan), ValueError, "expected lr ≥ 0; got nan"),
        (lambda: optim.Adam([leaf(2)], eps=-1.0), ValueError, "expected eps ≥ 0"),
        (lambda: optim.AdamW([leaf(2)], betas=(0.9, 1.0)), ValueError, r"AdamW: expected two betas in \[0, 1\)"),
        (lambda: optim.RMSprop([leaf(2)], alpha=2.0), ValueError, r"expected alpha in \[0, 1\]; got 2.0"),
        (lambda: optim.SGD([leaf(2)], nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda: optim.SGD([{"params": [leaf(2)], "betas": 1}]), ValueError, r"no option \['betas'\]; there is lr"),
        (lambda: step_with(leaf(2), mg.ones(3)), ValueError, r"shape \(2,\); got \(3,\)"),
        (lambda: step_with(leaf(2), mg.ones(2, dtype=mg.float64)), TypeError, "dtype float32; got float64"),
        (
            lambda: optim.SGD([leaf(2)]).load_state_dict(optim.SGD([leaf(2), leaf(2)]).state_dict()),
            ValueError,
            "groups of",
        ),
    ],
)
def test_errors_say_what_was_expected(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_gradient_that_is_refused_moves_nothing():
    p, q = leaf(2), leaf(2)
    p.grad, q.grad = mg.ones(2), mg.ones(3)
    optimizer = optim.SGD([{"params": p}, {"params": q}], lr=1.0, momentum=0.5)
    with pytest.raises(ValueError, match=r"shape \(2,\); got \(3,\)"):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0] and not optimizer.state


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda s: s["param_groups"][0].update(lr=-1.0), ValueError, "expected lr ≥ 0; got -1.0"),
        (lambda s: s["param_groups"][0].update(amsgrad=True), ValueError, r"no option \['amsgrad'\]; there is lr"),
        (lambda s: s["state"].update({2: {}}), ValueError, r"state of 1 parameters that are in no group: \[2\]"),
        (lambda s: s["state"][1].update(exp_avg=np.ones(3)), TypeError, "expected exp_avg .* got <class 'numpy"),
    ],
    ids=["range", "option", "parameter", "kind"],
)
def test_a_state_that_is_refused_changes_nothing(change, error, text):
    p, q = leaf(2), leaf(3)
    optimizer = optim.Adam([p, q], lr=0.5)
    (p.sum() + q.sum()).backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    before = str(optimizer.state_dict())
    state["param_groups"][0]["lr"] = 0.25
    change(state)
    with pytest.raises(error, match=text):
        optimizer.load_state_dict(state)
    assert str(optimizer.state_dict()) == before


def test_state_of_another_algorithm_is_refused():
    optimizer = optim.SGD([leaf(2)], momentum=0.5)
    with pytest.raises(ValueError, match=r"SGD\.load_state_dict: no option \['betas', 'eps'\]; there is lr, momentum"):
        optimizer.load_state_dict(optim.Adam([leaf(2)]).state_dict())


def test_state_of_another_shape_is_refused():
    p, q = leaf(2), leaf(3)
    ours, theirs = optim.Adam([p]), optim.Adam([q])
    q.sum().backward()
    theirs.step()
    with pytest.raises(ValueError, match=r"expected exp_avg of shape \(2,\); got \(3,\)"):
        ours.load_state_dict(theirs.state_dict())
    assert not ours.state


def test_half_precision_is_refused_at_the_step_too(device):
    layer = nn.Linear(2, 2).to(device)
    optimizer = optim.SGD(layer.parameters())
    layer.to(mg.float16)(mg.ones(1, 2, dtype=mg.float16)).sum().backward()
    with pytest.raises(TypeError, match="float16"):
        optimizer.step()


def test_repr_lists_the_groups():
    optimizer = optim.SGD([{"params": leaf(2)}, {"params": [leaf(2), leaf(3)], "lr": 0.5}], lr=0.1)
    assert repr(optimizer) == (
        "SGD (\n"
        "  group 0: 1 parameters, lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False\n"
        "  group 1: 2 parameters, lr=0.5, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False\n"
        ")"
    )


SCHEDULES = {
    "StepLR": lambda s, o: s.StepLR(o, step_size=4, gamma=0.5),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, milestones=[3, 11, 11], gamma=0.3),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, gamma=0.9),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, T_max=9, eta_min=0.01),
    "LambdaLR": lambda s, o: s.LambdaLR(o, [lambda epoch: 0.95**epoch, lambda epoch: 1 / (1 + epoch)]),
    "LambdaLR, one for all": lambda s, o: s.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "LinearLR": lambda s, o: s.LinearLR(o, start_factor=0.25, total_iters=7),
    "LinearLR, decay": lambda s, o: s.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=7),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_torchs(name):
    torch = pytest.importorskip("torch")
    ours = optim.SGD([{"params": leaf(1)}, {"params": leaf(1), "lr": 0.7}], lr=0.1)
    theirs = torch.optim.SGD([{"params": torch.ones(1)}, {"params": torch.ones(1), "lr": 0.7}], lr=0.1)
    mine = SCHEDULES[name](lr_scheduler, ours)
    other = SCHEDULES[name](torch.optim.lr_scheduler, theirs)
    for _ in range(30):
        np.testing.assert_allclose(mine.get_last_lr(), other.get_last_lr(), rtol=1e-12, atol=1e-14)
        theirs.step()
        mine.step(), other.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_saved_schedule_continues(name):
    first, second = (optim.SGD([{"params": leaf(1)}, {"params": leaf(1), "lr": 0.7}], lr=0.1) for _ in range(2))
    schedule = SCHEDULES[name](lr_scheduler, first)
    for _ in range(5):
        schedule.step()
    other = SCHEDULES[name](lr_scheduler, second)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(pickle.loads(pickle.dumps(schedule.state_dict())))
    for _ in range(5):
        schedule.step(), other.step()
        assert other.get_last_lr() == schedule.get_last_lr()
    assert other.last_epoch == 10


def test_a_schedule_wants_the_groups_that_it_began_with():
    optimizer = optim.SGD([leaf(1)], lr=1.0)
    schedule = lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.add_param_group({"params": leaf(1)})
    with pytest.raises(ValueError, match="StepLR: expected an optimizer of 1 groups, as at its start; got 2"):
        schedule.step()
    assert schedule.last_epoch == 0 and schedule.get_last_lr() == [1.0, 1.0]


def test_lambda_lr_counts_its_functions():
    with pytest.raises(ValueError, match="expected 1 functions, one per group; got 2"):
        lr_scheduler.LambdaLR(optim.SGD([leaf(1)]), [abs, abs])
