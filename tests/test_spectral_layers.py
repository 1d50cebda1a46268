"""`spectral_norm` on everything that has a weight: against torch in training mode, against NumPy where torch has none.

u and v are drawn and never warmed up, upstream gradients are random, and optimizers made before the registration move
the weights between the steps: nothing here has converged.
"""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from naive_spectral import case, trained, unit
from normalized_layers import F64, parts, same, snapshot

import minigrad as mg
from minigrad._differences import derivative
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.ops.conventions import CONVENTIONS
from minigrad.ops.spectral import normalize_at


class Case(NamedTuple):
    """A model in either library, the weights of it to normalize (path, name, dim), and a run of it."""

    build: object
    targets: tuple
    shape: tuple = (2, 3)
    run: object = lambda model, x: model(x)


def one(kind, shape, *arguments, dim=None, **options):
    def build(lib):
        return getattr(lib.nn, kind)(*arguments, dtype=lib.float64, **options)

    return Case(build, (("", "weight", dim),), shape)


def cell(kind, *names):
    """Three steps of one cell, one backward through all of them."""

    def run(model, x):
        state = model(x)
        for _ in range(2):
            state = model(x, state)
        return state[0] if kind == "LSTMCell" else state

    return Case(
        lambda lib: getattr(lib.nn, kind)(3, 4, dtype=lib.float64), tuple(("", name, None) for name in names), run=run
    )


def own(lib):
    """A user's module: parameters of one to five dimensions, under names of its own."""

    class Own(lib.nn.Module):
        def __init__(self):
            super().__init__()
            for k in range(1, 6):
                setattr(self, f"p{k}", lib.nn.Parameter(lib.randn(*(2, 3, 2, 3, 2)[:k], dtype=lib.float64)))

        def forward(self, x):
            return sum(((x.sum() + self.p1) * p.sum() for p in (self.p2, self.p3)), self.p4.sum() * self.p5)

    return Own()


def tied(lib):
    """Two layers that hold the same Parameter, each with vectors of its own."""
    k = {"dtype": lib.float64}
    model = lib.nn.Sequential(lib.nn.Linear(3, 3, **k), lib.nn.Tanh(), lib.nn.Linear(3, 3, bias=False, **k))
    model[2].weight = model[0].weight
    return model


def network(lib):
    k = {"dtype": lib.float64}
    return lib.nn.Sequential(
        lib.nn.Conv2d(2, 4, 3, padding=1, **k), lib.nn.BatchNorm2d(4, **k), lib.nn.LeakyReLU(0.1),
        lib.nn.ConvTranspose2d(4, 2, 2, stride=2, **k), lib.nn.Flatten(),
        lib.nn.Sequential(lib.nn.Linear(72, 3, **k), lib.nn.Tanh(), lib.nn.Linear(3, 2, **k)),
    )  # fmt: skip


def twice(lib):
    """One layer object at two places of a model."""
    layer = lib.nn.Linear(3, 3, dtype=lib.float64)
    return lib.nn.Sequential(layer, lib.nn.Tanh(), layer)


CASES = {
    "Linear, columns": one("Linear", (2, 3), 3, 4, dim=1),
    "Linear, one row": one("Linear", (2, 3), 3, 1),
    "Conv1d, groups": one("Conv1d", (2, 4, 7), 4, 6, 3, stride=2, groups=2),
    "Conv2d, depthwise": one("Conv2d", (2, 3, 5, 5), 3, 6, 3, padding=1, dilation=2, groups=3),
    "Conv2d, dim": one("Conv2d", (2, 3, 5, 5), 3, 4, (2, 3), dim=-1),
    "Conv3d, groups": one("Conv3d", (1, 4, 3, 3, 3), 4, 2, 2, groups=2),
    "ConvTranspose1d, groups": one("ConvTranspose1d", (2, 4, 5), 4, 6, 3, groups=2),
    "ConvTranspose2d, dim": one("ConvTranspose2d", (1, 3, 3, 3), 3, 2, 2, stride=2, dim=0),
    "ConvTranspose3d, groups": one("ConvTranspose3d", (1, 4, 2, 2, 2), 4, 2, 2, groups=2),
    "BatchNorm1d: 1-d": one("BatchNorm1d", (5, 3), 3),
    "RNNCell": cell("RNNCell", "weight_hh", "weight_ih"),
    "LSTMCell": cell("LSTMCell", "weight_hh", "weight_ih"),
    "LSTMCell, one of two": cell("LSTMCell", "weight_hh"),
    "GRUCell": cell("GRUCell", "weight_ih", "weight_hh"),
    "LSTMCell, biases too": cell("LSTMCell", "weight_hh", "bias_hh", "weight_ih"),
    "own Module": Case(own, tuple(("", f"p{k}", dim) for k, dim in ((1, None), (2, 1), (3, 2), (4, -3), (5, 0)))),
    "shared Parameter": Case(tied, (("0", "weight", None), ("2", "weight", 1))),
    "one module twice": Case(twice, (("0", "weight", None),)),
    "one module, four forwards": one("Linear", (2, 3), 3, 3)._replace(run=lambda m, x: m(m(m(x).tanh())) + 2 * m(x)),
    "network": Case(network, tuple((path, "weight", None) for path in ("0", "1", "3", "5.0", "5.2")), (2, 2, 3, 3)),
}


def at(model, path):
    for key in filter(None, path.split(".")):
        model = model[int(key)]
    return model


def pair(torch, subject, n=1, **options):
    """The model in both libraries, each with an optimizer made before the registration, and one state."""
    mine, theirs = subject.build(mg), subject.build(torch)
    optimizers = [lib.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for lib, m in ((mg, mine), (torch, theirs))]
    for path, name, dim in subject.targets:
        spectral_norm(at(mine, path), name, n, dim=dim, n_init_iterations=0, **options)
        torch.nn.utils.parametrizations.spectral_norm(at(theirs, path), name, n, dim=dim)
    state = {key: torch.tensor(value.numpy()) for key, value in mine.state_dict().items()}
    theirs.load_state_dict(state, strict=False)  # BatchNorm counts its batches in torch
    return mine, theirs, optimizers


def agree(mine, theirs):
    """State and gradients, by name."""
    known = theirs.state_dict()
    for key, value in mine.state_dict().items():
        np.testing.assert_allclose(value.numpy(), known[key].numpy(), rtol=1e-10, atol=1e-10, err_msg=key)
    known = dict(theirs.named_parameters())
    for key, value in mine.named_parameters():
        np.testing.assert_allclose(value.grad.numpy(), known[key].grad.numpy(), rtol=1e-10, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_training_is_torchs(name, n):
    torch = pytest.importorskip("torch")
    subject = CASES[name]
    mine, theirs, optimizers = pair(torch, subject, n)
    rng = np.random.default_rng(0)
    for step in range(6):
        mine.train(step != 3), theirs.train(step != 3)
        x = rng.standard_normal(subject.shape)
        a, b = subject.run(mine, mg.tensor(x)), subject.run(theirs, torch.tensor(x))
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-10, atol=1e-10)
        g = rng.standard_normal(a.shape)
        for optimizer in optimizers:
            optimizer.zero_grad()
        a.backward(mg.tensor(g)), b.backward(torch.tensor(g))
        agree(mine, theirs)
        for optimizer in optimizers:
            optimizer.step()


def test_an_embedding_with_a_padding_row_is_torchs():
    """The row that gets no upstream gradient still gets −λ u vᵀ/σ."""
    torch = pytest.importorskip("torch")
    mine, theirs, _ = pair(torch, one("Embedding", (), 5, 3, padding_idx=1))
    full = np.random.default_rng(1).standard_normal((5, 3))  # pretrained, say: no zeros in the padding row
    with mg.no_grad(), torch.no_grad():
        parts(mine)[0].copy_(mg.tensor(full)), theirs.parametrizations.weight.original.copy_(torch.tensor(full))
    for index in ([[0, 1, 4], [1, 1, 4]], [[2, 2, 3]]):
        g = np.random.default_rng(0).standard_normal((*np.shape(index), 3))
        mine(mg.tensor(index)).backward(mg.tensor(g)), theirs(torch.tensor(index)).backward(torch.tensor(g))
        agree(mine, theirs)
    assert parts(mine)[0].grad.numpy()[1].any()


@pytest.mark.parametrize("name", ["Linear, columns", "Conv3d, groups", "GRUCell", "own Module", "shared Parameter"])
def test_any_mix_of_modes_and_one_backward_is_torchs(name):
    torch = pytest.importorskip("torch")  # (whose BatchNorm forgets the statistics of an earlier forward, on its own)
    subject = CASES[name]
    mine, theirs, _ = pair(torch, subject)
    rng = np.random.default_rng(0)
    outs = []
    for training in (False, True, True, False, True, False):
        x = rng.standard_normal(subject.shape)
        a = subject.run(mine.train(training), mg.tensor(x))
        b = subject.run(theirs.train(training), torch.tensor(x))
        g = rng.standard_normal(a.shape)
        outs.append(((a * mg.tensor(g)).sum(), (b * torch.tensor(g)).sum()))
    total, other = (sum(losses[1:], losses[0]) for losses in zip(*outs, strict=True))
    total.backward(), other.backward()
    agree(mine, theirs)


def test_a_model_with_where_is_registration_one_by_one():
    model = network(mg)
    by_hand = copy.deepcopy(model)
    kinds = mg.nn.Conv2d, mg.nn.ConvTranspose2d, mg.nn.Linear
    mg.manual_seed(1)
    spectral_norm(model, where=lambda path, module: isinstance(module, kinds) and path != "5.2")
    mg.manual_seed(1)
    for layer in (by_hand[0], by_hand[3], by_hand[5][0]):
        spectral_norm(layer)
    x = mg.randn(2, 2, 3, 3, **F64)
    for subject in (model, by_hand):
        for _ in range(2):
            subject(x).square().sum().backward()
    assert same(snapshot(model), snapshot(by_hand))
    for (key, p), (other, q) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
        assert key == other and np.array_equal(p.grad.numpy(), q.grad.numpy())


@pytest.mark.parametrize("cell", ["RNNCell", "LSTMCell", "GRUCell"])
def test_where_asks_for_any_name(cell):
    model = mg.nn.ModuleList([mg.nn.Linear(3, 4), getattr(mg.nn, cell)(3, 4), getattr(mg.nn, cell)(4, 4)])
    spectral_norm(model, "weight_hh", where=lambda path, module: True)
    assert [key for key in model.state_dict() if "_u" in key] == [
        f"{k}.parametrizations.weight_hh.0._u" for k in (1, 2)
    ]


# Lazy layers ---------------------------------------------------------------------------------------------------------

LAZY = {
    "LazyLinear": ((4,), (2, 3)),
    "LazyConv1d": ((4, 2), (2, 3, 5)),
    "LazyConv2d": ((4, 2, 2), (2, 3, 5, 4)),
    "LazyConv3d": ((4, 2), (1, 3, 3, 2, 3)),
}


@pytest.mark.parametrize("kind", LAZY)
def test_a_lazy_layer_is_torchs_once_it_has_seen_a_batch(kind):
    torch = pytest.importorskip("torch")
    arguments, shape = LAZY[kind]
    lazy = getattr(mg.nn, kind)(*arguments, **F64)
    optimizer = mg.optim.SGD(lazy.parameters(), lr=0.1)
    spectral_norm(lazy, n_init_iterations=0).eval()(mg.zeros(*shape, **F64))
    theirs = getattr(torch.nn, kind.removeprefix("Lazy"))(3, *arguments, dtype=torch.float64)
    torch.nn.utils.parametrizations.spectral_norm(theirs)
    theirs.load_state_dict({key: torch.tensor(value.numpy()) for key, value in lazy.state_dict().items()}, strict=True)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.standard_normal(shape)
        a, b = lazy.train()(mg.tensor(x)), theirs(torch.tensor(x))
        g = rng.standard_normal(a.shape)
        optimizer.zero_grad(), other.zero_grad()
        a.backward(mg.tensor(g)), b.backward(torch.tensor(g))
        agree(lazy, theirs)
        optimizer.step(), other.step()


@pytest.mark.parametrize("kind", LAZY)
def test_a_lazy_layers_first_batch_steps_once_from_vectors_made_then(kind):
    arguments, shape = LAZY[kind]
    lazy = spectral_norm(getattr(mg.nn, kind)(*arguments, **F64), n_init_iterations=0)
    mg.manual_seed(5)
    cold = copy.deepcopy(lazy)
    cold.eval()(mg.zeros(*shape, **F64))
    mg.manual_seed(5)
    out = lazy(mg.zeros(*shape, **F64))
    w, u, v = (x.detach().numpy() for x in parts(cold))
    _, u, v, _ = trained("fixed_uv", w, u, v, w)
    for got, expected in zip(parts(lazy)[1:], (u, v), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-14)
    out.sum().backward()


def test_a_lazy_layer_loads_the_state_of_an_eager_one():
    eager = spectral_norm(mg.nn.Conv2d(3, 4, 2, **F64), learnable_scale=True)
    lazy = spectral_norm(mg.nn.LazyConv2d(4, 2, **F64), learnable_scale=True)
    lazy.load_state_dict(eager.state_dict())
    x = mg.randn(2, 3, 4, 4, **F64)
    for _ in range(2):
        assert np.array_equal(lazy(x).detach().numpy(), eager(x).detach().numpy())
    assert same(snapshot(lazy), snapshot(eager))


def test_a_lazy_layer_whose_weight_cannot_be_normalized_waits_for_another_batch():
    lazy = spectral_norm(mg.nn.LazyLinear(4), learnable_scale=True)
    with pytest.raises(ValueError, match=r"none of extent 0; got shape \(4, 0\)"):
        lazy(mg.ones(2, 0))
    assert lazy(mg.ones(2, 3)).shape == (2, 4) and parts(lazy)[0].shape == (4, 3)
    wrong = spectral_norm(mg.nn.LazyConv2d(4, 2), dim=4)
    for _ in range(2):
        with pytest.raises(IndexError, match=r"expected dim in \[-4, 3\]"):
            wrong(mg.ones(1, 3, 4, 4))
    spectral_norm(remove_spectral_norm(wrong), dim=3)(mg.ones(1, 3, 4, 4)).sum().backward()
    assert parts(wrong)[1].shape == (2,) and type(wrong) is mg.nn.Conv2d


# Where torch has nothing: NumPy, and differences with u and v frozen ------------------------------------------------

PLAIN = {
    "Linear": one("Linear", (2, 3), 3, 4),
    "Conv1d": one("Conv1d", (2, 4, 7), 4, 6, 3, stride=2, groups=2),
    "Conv2d": one("Conv2d", (2, 4, 5, 5), 4, 6, 3, padding=1, groups=2),
    "Conv3d": one("Conv3d", (1, 2, 3, 3, 3), 2, 3, 2),
    "ConvTranspose1d": one("ConvTranspose1d", (2, 4, 5), 4, 6, 3, groups=2),
    "ConvTranspose2d": one("ConvTranspose2d", (1, 3, 3, 3), 3, 2, 2, stride=2),
    "ConvTranspose3d": one("ConvTranspose3d", (1, 2, 2, 2, 2), 2, 3, 2),
    "LSTMCell": cell("LSTMCell", "weight_hh"),
    "GRUCell": cell("GRUCell", "weight_ih"),
}


@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("name", PLAIN)
def test_layers_by_differences_with_u_and_v_frozen(name, order):
    """A plain layer that holds γ · factor · (W + tD)/σ, with the vectors of NumPy's sweeps: its slope along D."""
    subject, rng = PLAIN[name], np.random.default_rng(2)
    plain = subject.build(mg).eval()
    key = subject.targets[0][1]
    module = spectral_norm(
        copy.deepcopy(plain).train(), key, 2, order=order, learnable_scale=True, factor=0.7, n_init_iterations=0
    )
    made = getattr(module.parametrizations, key)
    x = mg.tensor(rng.standard_normal(subject.shape))
    if name.endswith("Cell"):  # one call, so that there is one pair of vectors
        subject = subject._replace(run=lambda m, x: m(x)[0].square())
    w, u, v = (t.detach().numpy().copy() for t in parts(module, key))
    out = subject.run(module, x)
    g, d = rng.standard_normal(out.shape), rng.standard_normal(w.shape)
    out.backward(mg.tensor(g))
    dim = 1 if name.startswith("ConvTranspose") else 0
    _, u, v, _ = trained("fixed_uv", w, u, v, w, dim, 2, order)
    gamma = made.state.gamma.item()

    def loss(t, scale=gamma):
        moved = w + t * d
        sigma = u @ np.moveaxis(moved, dim, 0).reshape(len(u), -1) @ v
        with mg.no_grad():
            getattr(plain, key).copy_(mg.tensor(scale * 0.7 * moved / sigma))
            return (subject.run(plain, x).numpy() * g).sum()

    numeric = derivative(loss, 0.02)
    assert (made.original.grad.numpy() * d).sum() == pytest.approx(numeric.value, rel=1e-8, abs=1e-9)
    numeric = derivative(lambda t: loss(0.0, gamma + t), 0.02)
    assert made.state.gamma.grad.item() == pytest.approx(numeric.value, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("factor", [None, 0.3])
@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_gamma_and_factor_in_every_convention(gradient, order, factor):
    """W̃ = γ · factor · W̄ at vectors far from converged, over steps that move W and γ; no other test lets γ be ≠ σ₁."""
    mg.manual_seed(0)
    linear = mg.nn.Linear(6, 4, bias=False, **F64)
    norm = np.linalg.norm(linear.weight.detach().numpy(), 2)
    spectral_norm(
        linear, n_power_iterations=2, gradient=gradient, order=order, learnable_scale=True, factor=factor,
        n_init_iterations=0,
    )  # fmt: skip
    gamma = linear.parametrizations.weight.state.gamma
    assert gamma.item() == pytest.approx(norm, rel=1e-13)
    rng = np.random.default_rng(0)
    optimizer = mg.optim.SGD(linear.parameters(), lr=0.05)
    for _ in range(3):
        w, u, v = (x.detach().numpy().copy() for x in parts(linear))
        g = rng.standard_normal((6, 4))
        scale = gamma.item() * (factor or 1.0)
        w_bar, u, v, grad = trained(gradient, w, u, v, scale * g.T, 0, 2, order)
        optimizer.zero_grad()
        out = linear(mg.tensor(np.eye(6)))
        np.testing.assert_allclose(out.detach().numpy().T, scale * w_bar, rtol=1e-12)
        out.backward(mg.tensor(g))
        raw, *vectors = parts(linear)
        np.testing.assert_allclose(raw.grad.numpy(), grad, rtol=1e-10, atol=1e-12)
        for got, expected in zip(vectors, (u, v), strict=True):
            np.testing.assert_allclose(got.numpy(), expected, atol=1e-13)
        by_gamma = derivative(lambda t, s=w_bar, g=g: ((gamma.item() + t) * (factor or 1.0) * s * g.T).sum(), 0.1)
        assert gamma.grad.item() == pytest.approx(by_gamma.value, rel=1e-9)
        optimizer.step()


def test_gamma_of_a_vector_and_its_removal():
    """A 1-d weight has γ₀ = ‖W‖; removal bakes γ · factor · W̄."""
    w = np.random.default_rng(0).standard_normal(5)
    norm = mg.nn.BatchNorm1d(5, **F64)
    with mg.no_grad():
        norm.weight.copy_(mg.tensor(w))
    weight = norm.weight
    spectral_norm(norm, learnable_scale=True, factor=3.0)
    assert norm.parametrizations.weight.state.gamma.item() == pytest.approx(np.linalg.norm(w), rel=1e-15)
    with mg.no_grad():
        norm.parametrizations.weight.state.gamma.copy_(mg.tensor(2.0, **F64))
    assert remove_spectral_norm(norm).weight is weight
    np.testing.assert_allclose(weight.detach().numpy(), 6 * unit(w), rtol=1e-14)
    assert "parametrizations" not in dir(norm)


# Forms ---------------------------------------------------------------------------------------------------------------

FUNCTIONAL = {
    "Linear": (lambda m, w, x: mg.nn.functional.linear(x, w, m.bias), 0),
    "Conv2d": (lambda m, w, x: mg.nn.functional.conv2d(x, w, m.bias, padding=1, groups=2), 0),
    "ConvTranspose2d": (lambda m, w, x: mg.nn.functional.conv_transpose2d(x, w, m.bias, stride=2), 1),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [mg.float16, mg.float32, mg.float64])
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_three_forms_give_the_same_bits(name, dtype, training):
    """Function, wrapper and pure op over several steps: outputs, vectors and gradients are equal to the last bit.

    In training the op is given the σ that the sweep ends with; the public one computes uᵀMv anew, which may round
    otherwise.
    """
    call, dim = FUNCTIONAL[name]
    plain = PLAIN[name].build(mg).to(dtype)
    mg.manual_seed(4)
    function = spectral_norm(copy.deepcopy(plain), n_power_iterations=2).train(training)
    mg.manual_seed(4)
    wrapper = mg.nn.SpectralNorm(copy.deepcopy(plain), n_power_iterations=2).train(training)
    raw, *vectors = parts(function)
    weight = plain.weight
    u, v = (mg.tensor(x.numpy()) for x in vectors)
    x = mg.randn(*PLAIN[name].shape, dtype=dtype)
    for _ in range(3):
        if training:
            sigma = mg.spectral.power_iteration(weight, u, v, 2, dim=dim)
        used = mg.tensor(u.numpy()), mg.tensor(v.numpy())
        w_bar, again = mg.nn.functional.spectral_normalize(weight, *used, dim)
        if training:
            assert again.item() == pytest.approx(sigma.item(), rel=1e-14 if dtype == mg.float64 else 1e-6)
            w_bar = normalize_at(weight, *used, sigma, dim)
        outs = function(x), wrapper(x), call(plain, w_bar, x)
        g = mg.randn(*outs[0].shape, dtype=dtype)
        for out in outs:
            out.backward(g)
        for (w, *uv), out in zip((parts(function), parts(wrapper.layer), (weight, u, v)), outs, strict=True):
            for got, expected in zip((out, w.grad, *uv), (outs[0], raw.grad, *vectors), strict=True):
                assert got.dtype == expected.dtype
                np.testing.assert_array_equal(got.detach().numpy(), expected.detach().numpy())


# State ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_optimizer_made_before_works_after_registration_and_after_removal(momentum):
    """Three steps by hand in each of the three lives of a weight; the momentum goes on through all."""
    mg.manual_seed(0)
    linear = mg.nn.Linear(3, 4, bias=False, **F64)
    optimizer = mg.optim.SGD(linear.parameters(), lr=0.1, momentum=momentum)
    weight, rng, moved = linear.weight, np.random.default_rng(0), np.zeros((4, 3))
    for life in ("plain", "normalized", "removed"):
        if life == "normalized":
            spectral_norm(linear, n_init_iterations=0)
        if life == "removed":
            baked = linear.weight.detach().numpy()
            remove_spectral_norm(linear)
            np.testing.assert_array_equal(weight.detach().numpy(), baked)
        for _ in range(3):
            w, g = weight.detach().numpy().copy(), rng.standard_normal((3, 4))
            grad = g.T
            if life == "normalized":
                *_, grad = trained("fixed_uv", w, *(x.numpy() for x in parts(linear)[1:]), g.T)
            optimizer.zero_grad()
            linear(mg.tensor(np.eye(3))).backward(mg.tensor(g))
            optimizer.step()
            moved = momentum * moved + grad
            np.testing.assert_allclose(weight.detach().numpy(), w - 0.1 * moved, rtol=1e-12)
    assert list(linear.parameters()) == [weight]


def test_removal_from_one_of_two_that_share_leaves_the_other_as_it_was():
    """The raw weight is scaled by 1/σ of the one; the other, with vectors of its own, computes what it did."""
    model = tied(mg)
    one, other = (spectral_norm(model[k], n_init_iterations=0) for k in (0, 2))
    for _ in range(2):
        model(mg.ones(1, 3, **F64))
    raw, reads, out = parts(one)[0], one.weight.detach().numpy(), other.eval()(mg.ones(1, 3, **F64)).detach().numpy()
    assert remove_spectral_norm(one).weight is parts(other)[0] is raw
    np.testing.assert_array_equal(one.weight.detach().numpy(), reads)
    np.testing.assert_allclose(other(mg.ones(1, 3, **F64)).detach().numpy(), out, rtol=1e-13)
    assert sum(p is raw for p in model.parameters()) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize(
    "name", ["Linear, columns", "LSTMCell, biases too", "own Module", "shared Parameter", "network"]
)
def test_copies_between_forward_and_backward(name, copied):
    """The copy goes its own way, and the backward of the original is as if nothing had happened."""
    subject = CASES[name]
    if name == "own Module":
        subject = subject._replace(build=lambda lib: Two())  # a class that pickle finds

    def fresh():
        mg.manual_seed(1)
        model = subject.build(mg)
        for path, key, dim in subject.targets[: 2 if name == "own Module" else None]:
            spectral_norm(at(model, path), key, dim=dim, n_init_iterations=0)
        return model

    def moved(model):
        subject.run(model, x).square().sum().backward()
        mg.optim.SGD(model.parameters(), lr=0.1).step()
        return snapshot(model)

    one, other = fresh(), fresh()
    x = mg.randn(*subject.shape, **F64)
    outs = [subject.run(model, x) for model in (one, other)]
    twin = copied(one)
    after = moved(twin)
    assert len(list(twin.parameters())) == len(list(one.parameters()))
    assert not any(p is q for p in twin.parameters() for q in one.parameters())
    for out in outs:
        out.square().sum().backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())
    other.zero_grad()
    assert same(after, moved(other))


class Two(mg.nn.Module):
    """A module with two weights, whose forward may fail after it has used them."""

    def __init__(self):
        super().__init__()
        self.p1 = mg.nn.Parameter(mg.randn(3, **F64))
        self.p2 = mg.nn.Parameter(mg.randn(4, 3, **F64))

    def forward(self, x, fail=False):
        out = (x * self.p1) @ self.p2.T
        if fail:
            raise KeyboardInterrupt
        return out


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_a_forward_that_raised_has_stepped_no_weight_of_the_module(gradient):
    module = spectral_norm(spectral_norm(Two(), "p1", gradient=gradient), "p2", gradient=gradient, n_init_iterations=0)
    before, x = snapshot(module), mg.randn(2, 3, **F64)
    with pytest.raises(KeyboardInterrupt):
        module(x, fail=True)
    assert same(before, snapshot(module))
    reads = module.p2.detach().numpy()
    w, u, v = (t.detach().numpy() for t in parts(module, "p2"))
    sigma = np.linalg.norm(w, 2) if gradient == "exact" else u @ w @ v
    np.testing.assert_allclose(reads, w / sigma, rtol=1e-12)  # and outside of a call nothing of it is left


def test_threads_evaluate_one_network_on_their_own_inputs():
    """Outputs and all gradients of four threads, all in the midst of a call at once, are those of one, to the bit."""

    class Meet(Two):
        meet = staticmethod(lambda: None)

        def forward(self, x):
            self.meet()
            out = super().forward(x)
            self.meet()
            return out

    model = mg.nn.ModuleList([network(mg), mg.nn.LSTMCell(2, 3, **F64), Meet()])
    for name in ("weight", "weight_hh", "weight_ih", "p1", "p2"):
        spectral_norm(model, name, where=lambda path, module: True)
    model.eval()
    inputs = [mg.randn(2, 2, 3, 3, **F64).requires_grad_() for _ in range(4)]
    before = snapshot(model)

    def run(x):
        for _ in range(5):
            out = model[2](model[1](model[0](x))[0])
            grads = mg.grad(out.square().sum(), [x, *model.parameters()])
        return [out.detach().numpy(), *(g.numpy() for g in grads)]

    expected = [run(x) for x in inputs]
    barrier = threading.Barrier(4)
    Meet.meet = staticmethod(lambda: barrier.wait(20))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, inputs))
    for arrays in zip(expected, found, strict=True):
        for one, other in zip(*arrays, strict=True):
            np.testing.assert_array_equal(one, other)
    assert same(before, snapshot(model))


# Half precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_float16_is_close_to_its_float64_reference(name):
    """Weights and activations in float16, u, v and γ in float32; gradients of the very same numbers in float64."""
    subject = PLAIN[name]
    key = subject.targets[0][1]
    half = subject.build(mg).to(mg.float16)
    spectral_norm(half, key, learnable_scale=True, n_init_iterations=0)
    wide = copy.deepcopy(half).to(mg.float64)
    x = mg.randn(*subject.shape, dtype=mg.float16)
    for _ in range(3):
        outs = subject.run(half, x), subject.run(wide, x.to(mg.float64))
        g = mg.randn(*outs[0].shape, dtype=mg.float16)
        for model, out in ((half, outs[0]), (wide, outs[1])):
            model.zero_grad()
            out.backward(g.to(out.dtype))
        assert outs[0].dtype == mg.float16
        np.testing.assert_allclose(outs[0].detach().numpy(), outs[1].detach().numpy(), rtol=0, atol=1e-2)
        for (path, p), (_, q) in zip(half.named_parameters(), wide.named_parameters(), strict=True):
            assert p.grad.dtype == p.dtype == (mg.float32 if path.endswith("gamma") else mg.float16)
            expected = q.grad.numpy()
            np.testing.assert_allclose(p.grad.numpy(), expected, rtol=0, atol=2e-2 * np.abs(expected).max())
        for p, q in zip(parts(half, key)[1:], parts(wide, key)[1:], strict=True):
            assert p.dtype == mg.float32
            np.testing.assert_allclose(p.numpy(), q.numpy(), atol=1e-5)


def test_to_float16_keeps_the_vectors_and_gamma_in_float32():
    """The file of a model that has trained in float16 loads into one that has not, and the other way round."""
    mg.manual_seed(0)
    wide = spectral_norm(mg.nn.Linear(3, 4), learnable_scale=True)
    exact = [x.numpy().copy() for x in parts(wide)[1:]]
    half = copy.deepcopy(wide).to(mg.float16)
    for got, expected in zip(parts(half)[1:], exact, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected)
    assert half.parametrizations.weight.state.gamma.dtype == mg.float32 and parts(half)[0].dtype == mg.float16
    trained_one = copy.deepcopy(half)
    x = mg.ones(2, 3, dtype=mg.float16)
    trained_one(x).sum().backward()
    half.load_state_dict(trained_one.state_dict())
    assert same(snapshot(half), snapshot(trained_one))
    trained_one.to(mg.float64)
    assert {value.dtype for value in trained_one.state_dict().values()} == {np.dtype(mg.float64)}
    assert {p.grad.dtype for p in trained_one.parameters()} == {np.dtype(mg.float64)}


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_float16_in_every_convention(gradient):
    """Also a weight whose 1/σ is beyond float16: all that is no tensor of the user's is float32."""
    w, *_ = case((4, 6), 0)
    linear = mg.nn.Linear(6, 4, bias=False, dtype=mg.float16)
    with mg.no_grad():
        linear.weight.copy_(mg.tensor((w * 2e-5).astype(np.float16)))
    spectral_norm(linear, n_power_iterations=2, gradient=gradient, order="vu", n_init_iterations=0)
    w, u, v = (x.detach().numpy().copy() for x in parts(linear))
    g = (np.random.default_rng(0).standard_normal((6, 4)) / 64).astype(np.float16)
    w_bar, u, v, grad = trained(gradient, w, u, v, g.T, 0, 2, "vu")
    out = linear(mg.tensor(np.eye(6, dtype=np.float16)))
    out.backward(mg.tensor(g))
    raw, *vectors = parts(linear)
    np.testing.assert_allclose(out.detach().numpy().T, w_bar, rtol=2e-3)
    np.testing.assert_allclose(raw.grad.numpy(), grad, rtol=0, atol=3e-3 * np.abs(grad).max())
    assert np.abs(grad).max() < 6e4
    for got, expected in zip(vectors, (u, v), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
