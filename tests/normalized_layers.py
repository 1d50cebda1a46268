"""Spectrally normalized layers for the tests, and what is inside of them."""

import numpy as np

import minigrad as mg
from minigrad.nn.utils import spectral_norm

F64 = {"dtype": mg.float64}


def parts(module, name="weight"):
    """The raw weight, u and v."""
    made = getattr(module.parametrizations, name)
    return made.original, made.state._u, made.state._v


def snapshot(module):
    return {key: value.numpy().copy() for key, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def layer(seed=0, m=4, n=6, **options):
    mg.manual_seed(seed)
    return spectral_norm(mg.nn.Linear(n, m, **F64), **{"n_init_iterations": 1, **options})
