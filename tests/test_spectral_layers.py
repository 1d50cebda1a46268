"""`spectral_norm` on everything that has a weight: against torch in training mode, against NumPy where torch has none.

u and v are drawn and never warmed up, upstream gradients are random, and optimizers made before the registration move
the weights between the steps: nothing here has converged.
"""

import copy

import numpy as np
import pytest
from naive_spectral import trained, unit
from normalized_layers import F64, parts, same, snapshot
from normalized_models import CASES, PLAIN, at, network, one

import minigrad as mg
from minigrad._differences import derivative
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.ops.conventions import CONVENTIONS


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


@pytest.mark.parametrize("through", ["load_state_dict", "convert_state", "from_torch_state_dict"])
def test_a_refused_state_leaves_lazy_layers_lazy(through):
    """Nor is a number drawn: the layer can still take a batch, or a state, of any other size."""

    def made():
        mg.manual_seed(0)
        return mg.nn.Sequential(spectral_norm(mg.nn.LazyLinear(2), learnable_scale=True), mg.nn.Linear(2, 1))

    refuse = {
        "load_state_dict": lambda state: model.load_state_dict(state),
        "convert_state": lambda state: mg.spectral.convert_state(state, "torch", model),
        "from_torch_state_dict": lambda state: mg.from_torch_state_dict(state, model),
    }[through]
    state = mg.nn.Sequential(spectral_norm(mg.nn.Linear(5, 2), learnable_scale=True), mg.nn.Linear(2, 3)).state_dict()
    model, untouched = made(), made()
    mg.manual_seed(1)
    with pytest.raises(ValueError, match=r"1\.weight: expected \(1, 2\)"):
        refuse(state)
    assert repr(model) == repr(untouched)
    out = model(mg.ones(3, 7))
    mg.manual_seed(1)
    assert untouched(mg.ones(3, 7)).tolist() == out.tolist()
    assert same(snapshot(model[0]), snapshot(untouched[0]))


def test_a_lazy_layer_refuses_a_state_that_has_no_shape_for_it():
    lazy = mg.nn.LazyLinear(2)
    for state, words in (({}, "weight: missing"), ({"weight": mg.ones(2), "bias": mg.ones(2)}, "a lazy layer takes")):
        with pytest.raises(ValueError, match=words):
            lazy.load_state_dict(state)
    assert lazy.load_state_dict({}, strict=False).missing_keys == ["weight", "bias"]
    assert lazy(mg.ones(3, 7)).shape == (3, 2)


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
