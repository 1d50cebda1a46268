"""All forms of spectral normalization are one node; and what may come between: optimizers, copies, errors, threads."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from naive_spectral import trained
from normalized_layers import F64, parts, same, snapshot
from normalized_models import CASES, PLAIN, at, network, tied

import minigrad as mg
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.ops.conventions import CONVENTIONS
from minigrad.ops.spectral import normalize_at

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
