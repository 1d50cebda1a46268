"""Spectrally normalized layers for the tests, and what is inside of them."""

import numpy as np

import minigrad as mg
from minigrad.nn.functional import spectral_normalize
from minigrad.nn.utils import spectral_norm

F64 = {"dtype": mg.float64}


def parts(module, name="weight"):
    """The raw weight, u and v."""
    made = getattr(module.parametrizations, name)
    return made.original, made.state._u, made.state._v


def normalized(w, u, v, dim, g):
    """W̄, σ and ∂⟨G, W̄⟩/∂W by the op."""
    weight = mg.tensor(w, requires_grad=True)
    w_bar, sigma = spectral_normalize(weight, mg.tensor(u), mg.tensor(v), dim)
    (grad,) = mg.grad(w_bar, weight, mg.tensor(g))
    return w_bar.detach().numpy(), sigma.item(), grad.numpy()


def snapshot(module):
    return {key: value.numpy().copy() for key, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def layer(seed=0, m=4, n=6, **options):
    mg.manual_seed(seed)
    return spectral_norm(mg.nn.Linear(n, m, **F64), **{"n_init_iterations": 1, **options})


class Holder(mg.nn.Module):
    """A module of one weight, which a call returns."""

    def __init__(self, w):
        super().__init__()
        self.weight = mg.nn.Parameter(mg.tensor(w))

    def forward(self):
        return self.weight


def holder(w, u, v, **options):
    """A normalized weight at the vectors given; not a sweep has been made."""
    module = spectral_norm(Holder(w), **{"n_init_iterations": 0, **options})
    if w.ndim > 1:
        for buffer, x in zip(parts(module)[1:], (u, v), strict=True):
            buffer.copy_(mg.tensor(x.astype(buffer.dtype)))
    return module


def step(module, g):
    """One training forward and backward: W̄, the new u and v, and the gradient, as arrays."""
    raw = module.parametrizations.weight.original
    raw.grad = None
    out = module()
    out.backward(mg.tensor(g))
    vectors = [] if raw.ndim == 1 else [x.numpy().copy() for x in parts(module)[1:]]
    return [out.detach().numpy(), *vectors, raw.grad.numpy()]
