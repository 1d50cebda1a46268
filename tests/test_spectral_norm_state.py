"""What steps u and v of a module, what must not, and everything that may come between: copies, threads, exceptions."""

import copy
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from naive_spectral import sweeps
from normalized_layers import F64, layer, parts, same, snapshot

import minigrad as mg
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.ops.conventions import CONVENTIONS, apply

# Steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["uv", "vu"])
@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_one_step_per_training_forward_and_none_else(gradient, order):
    module = layer(gradient=gradient, order=order)
    raw, u, v = parts(module)
    x = mg.ones(2, 6, **F64)
    w, expected = raw.detach().numpy().copy(), (u.numpy().copy(), v.numpy().copy())
    for _ in range(3):
        np.testing.assert_array_equal(module.weight.detach().numpy(), module.weight.detach().numpy())
        module.eval()(x)
        for got, known in zip((u, v), expected, strict=True):
            np.testing.assert_array_equal(got.numpy(), known)
        module.train()(x)
        expected = sweeps(w, *expected, 1, order)[:2]
        if gradient == "projected":
            w = w / (expected[0] @ w @ expected[1])
        for got, known in zip((raw.detach(), u, v), (w, *expected), strict=True):
            np.testing.assert_allclose(got.numpy(), known, atol=1e-14)
        expected = u.numpy().copy(), v.numpy().copy()


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_the_forward_uses_the_stepped_vectors_and_the_read_the_stored(gradient):
    module = layer(gradient=gradient)
    raw, u, v = (x.detach().numpy().copy() for x in parts(module))
    sigma = {"exact": np.linalg.norm(raw, 2)}.get(gradient, sweeps(raw, u, v, 1, "uv")[2])
    out = module(mg.tensor(np.eye(6))) - module.bias
    np.testing.assert_allclose(out.detach().numpy().T, raw / sigma, rtol=1e-12)
    raw, u, v = (x.detach().numpy() for x in parts(module))
    sigma = {"exact": np.linalg.norm(raw, 2)}.get(gradient, u @ raw @ v)
    np.testing.assert_allclose(module.weight.detach().numpy(), raw / sigma, rtol=1e-12)
    out = module.eval()(mg.tensor(np.eye(6))) - module.bias
    np.testing.assert_allclose(out.detach().numpy().T, raw / sigma, rtol=1e-12)


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_the_modules_gradient_is_the_conventions(gradient):
    module = layer(gradient=gradient, n_power_iterations=2, order="vu")
    raw, u, v = (mg.tensor(x.detach().numpy()) for x in parts(module))
    new_u, new_v = (mg.tensor(x.numpy()) for x in (u, v))
    mg.spectral.power_iteration(raw, new_u, new_v, 2, order="vu")
    start = (u, v) if gradient == "unrolled" else (new_u, new_v)
    g = np.random.default_rng(0).standard_normal((6, 4))
    module(mg.tensor(np.eye(6))).backward(mg.tensor(g))
    twin = raw.requires_grad_()
    w_bar = apply(gradient, twin, *start, n_power_iterations=2, order="vu")
    w_bar.backward(mg.tensor(g.T.copy()))
    np.testing.assert_allclose(parts(module)[0].grad.numpy(), twin.grad.numpy(), rtol=1e-10, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    dim=st.integers(-3, 2),
    gradient=st.sampled_from(sorted(CONVENTIONS)),
    order=st.sampled_from(["uv", "vu"]),
    n=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_weight_converges_to_its_norm(shape, dim, gradient, order, n, seed):
    mg.manual_seed(seed)
    module = mg.nn.Module()
    module.register_parameter("weight", mg.nn.Parameter(mg.randn(*shape, **F64)))
    module.forward = lambda: module.weight
    before = module.weight.detach().numpy().copy()
    spectral_norm(module, n_power_iterations=n, dim=dim, gradient=gradient, order=order)
    for _ in range(2):
        w_bar = module().detach().numpy()
    sigma = np.linalg.norm(np.moveaxis(before, dim, 0).reshape(shape[dim], -1), 2)
    assert (np.linalg.norm(w_bar) * sigma) / np.linalg.norm(before) == pytest.approx(1, abs=0.3)
    parallel = (w_bar * before).sum() / np.linalg.norm(w_bar) / np.linalg.norm(before)
    assert parallel == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("gradient", [g for g in CONVENTIONS if g != "projected"])
def test_several_forwards_of_any_mode_and_one_backward(gradient):
    """Fact 8: train, eval, train, and one backward through all; each uses its own vectors."""
    module, twin = layer(gradient=gradient), layer(gradient=gradient)
    x = mg.randn(3, 6, **F64)
    losses = [module.train(mode)(x).square().sum() * k for k, mode in ((1, True), (2, False), (3, True))]
    (losses[0] + losses[1] + losses[2]).backward()
    for k, mode in ((1, True), (2, False), (3, True)):  # one after the other: gradients add up
        (twin.train(mode)(x).square().sum() * k).backward()
    np.testing.assert_allclose(parts(module)[0].grad.numpy(), parts(twin)[0].grad.numpy(), rtol=1e-12, atol=1e-14)


def test_projected_overwrites_the_raw_weight_and_sgd_steps_from_there():
    module = layer(gradient="projected")
    raw, *_ = parts(module)
    x = mg.randn(3, 6, **F64)
    out = module(x)
    w_bar = raw.detach().numpy().copy()
    np.testing.assert_allclose((out - module.bias).detach().numpy(), x.numpy() @ w_bar.T, rtol=1e-12)
    g = np.random.default_rng(0).standard_normal((3, 4))
    out.backward(mg.tensor(g))
    np.testing.assert_allclose(raw.grad.numpy(), g.T @ x.numpy(), rtol=1e-13)
    mg.optim.SGD(module.parameters(), lr=0.1).step()
    np.testing.assert_allclose(raw.detach().numpy(), w_bar - 0.1 * g.T @ x.numpy(), rtol=1e-12)


def test_no_grad_forwards_step_too():
    module = layer()
    before = snapshot(module)
    with mg.no_grad():
        module(mg.ones(1, 6, **F64))
    assert not same(before, snapshot(module))


def test_double_backward_through_a_module():
    """⟨∇L, W⟩ = 0 for all W, so that its derivative along W is −∇L: fact 5, through a whole network."""
    mg.manual_seed(0)
    model = mg.nn.Sequential(
        spectral_norm(mg.nn.Conv2d(2, 3, 3, **F64)), mg.nn.Softplus(), mg.nn.Flatten(), mg.nn.Linear(12, 1, **F64)
    ).eval()
    raw = parts(model[0])[0]
    (first,) = mg.grad(model(mg.randn(2, 2, 4, 4, **F64)).square().sum(), raw, create_graph=True)
    (product,) = mg.grad(first, raw, raw.detach())
    np.testing.assert_allclose(product.numpy(), -first.detach().numpy(), atol=1e-12)


# Disturbances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_an_exception_in_forward_steps_nothing(gradient):
    module = layer(gradient=gradient)
    before = snapshot(module)
    with pytest.raises(ValueError, match="linear"):
        module(mg.ones(2, 5, **F64))
    assert same(before, snapshot(module))
    module(mg.ones(2, 6, **F64))
    assert not same(before, snapshot(module))


def test_threads_may_evaluate_one_model_at_once():
    model = mg.nn.Sequential(layer(0), mg.nn.ReLU(), spectral_norm(mg.nn.Linear(4, 3, **F64))).eval()
    x = mg.randn(5, 6, **F64)
    expected, found, failures = model(x).detach().numpy(), [], []

    def work():
        try:
            found.extend(model(x).detach().numpy() for _ in range(20))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(found) == 80
    assert all(np.array_equal(out, expected) for out in found)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_at_any_time(copied):
    module = layer(learnable_scale=True)
    x = mg.ones(2, 6, **F64)
    for _ in range(2):
        twin = copied(module)
        assert same(snapshot(module), snapshot(twin))
        assert parts(twin)[0] is not parts(module)[0]
        kept = module(x).square().sum()  # a copy while a graph is alive
        np.testing.assert_allclose(twin(x).detach().numpy(), copied(twin).eval()(x).detach().numpy(), rtol=1e-13)
        assert same(snapshot(module), snapshot(twin))
        kept.backward()


def test_the_parameter_stays_the_same_object():
    linear = mg.nn.Linear(6, 4, **F64)
    weight = linear.weight
    before = weight.detach().numpy().copy()
    assert spectral_norm(linear) is linear and parts(linear)[0] is weight
    assert [name for name, _ in linear.named_parameters()] == ["bias", "parametrizations.weight.original"]
    linear(mg.ones(1, 6, **F64))
    np.testing.assert_array_equal(weight.detach().numpy(), before)
    state = snapshot(linear)
    assert remove_spectral_norm(linear, restore_original=True) is linear
    assert linear.weight is weight and "weight" in dict(linear.named_parameters())
    np.testing.assert_array_equal(weight.detach().numpy(), before)
    assert "parametrizations.weight.original" in state and set(linear.state_dict()) == {"weight", "bias"}


def test_removal_bakes_what_the_weight_reads():
    module = layer(factor=2.0)
    x = mg.randn(2, 6, **F64)
    module(x)
    reads, out = module.weight.detach().numpy(), module.eval()(x).detach().numpy()
    weight = parts(module)[0]
    remove_spectral_norm(module.train())
    assert module.weight is weight
    np.testing.assert_array_equal(module.weight.detach().numpy(), reads)
    np.testing.assert_array_equal(module(x).detach().numpy(), out)
    spectral_norm(module)  # and can be put on again


def test_one_parameter_in_two_modules():
    one, other = mg.nn.Linear(6, 4, **F64), mg.nn.Linear(6, 4, **F64)
    other.weight = one.weight
    model = mg.nn.ModuleList([spectral_norm(one), spectral_norm(other)])
    assert parts(one)[0] is parts(other)[0] and parts(one)[1] is not parts(other)[1]
    assert len(list(model.parameters())) == 3
    one(mg.ones(1, 6, **F64)).sum().backward()
    assert parts(other)[0].grad is not None


def test_recurrent_weights_by_name():
    cell = mg.nn.RNNCell(3, 4, **F64)
    spectral_norm(spectral_norm(cell, "weight_hh"), "weight_ih")
    h = cell(mg.ones(2, 3, **F64))
    h = cell(mg.ones(2, 3, **F64), h)
    h.sum().backward()
    for name in ("weight_hh", "weight_ih"):
        raw = parts(cell, name)[0]
        assert abs((raw.grad.numpy() * raw.detach().numpy()).sum()) < 1e-12
    remove_spectral_norm(cell, "weight_ih")
    assert list(cell.parametrizations._modules) == ["weight_hh"]


def test_lazy_weights():
    for lazy, x in ((mg.nn.LazyLinear(4), mg.ones(2, 3)), (mg.nn.LazyConv2d(4, 3), mg.ones(1, 2, 5, 5))):
        spectral_norm(lazy, learnable_scale=True, n_init_iterations=100)
        gamma = lazy.parametrizations.weight.state.gamma
        assert not list(lazy.buffers())
        out = lazy(x)
        raw, u, v = parts(lazy)
        assert out.shape[1] == 4 and u.shape == (4,) and v.shape == (raw.numel() // 4,)
        assert lazy.parametrizations.weight.state.gamma is gamma
        np.testing.assert_allclose(lazy.weight.detach().numpy(), raw.detach().numpy(), rtol=1e-4)  # γ₀ = σ₁


def test_float16_weights_have_float32_vectors():
    for build in (
        lambda: spectral_norm(mg.nn.Linear(6, 4, dtype=mg.float16)),
        lambda: spectral_norm(mg.nn.Linear(6, 4)).to(mg.float16),
    ):
        mg.manual_seed(0)
        module = build()
        raw = parts(module)[0]
        for _ in range(2):
            out = module(mg.ones(2, 6, dtype=mg.float16))
            assert out.dtype == raw.dtype == mg.float16 and parts(module)[1].dtype == mg.float32
        out.sum().backward()
        assert raw.grad.dtype == mg.float16 and np.isfinite(raw.grad.numpy()).all()
        w, u, v = (x.detach().numpy().astype(np.float64) for x in parts(module))
        np.testing.assert_allclose(module.weight.detach().numpy(), w / (u @ w @ v), rtol=2e-3)


def test_a_zero_weight_trains_on():
    module = layer()
    raw, u, _ = parts(module)
    before = u.numpy().copy()
    with mg.no_grad():
        raw.zero_()
    out = module(mg.ones(2, 6, **F64))
    out.square().sum().backward()
    assert not raw.grad.numpy().any() and np.isfinite(out.detach().numpy()).all()
    np.testing.assert_array_equal(u.numpy(), before)


def test_frozen_weights():
    module = layer().requires_grad_(False)
    assert not module(mg.ones(1, 6, **F64)).requires_grad
