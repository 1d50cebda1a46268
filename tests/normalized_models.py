"""Models that are built the same way in minigrad and in torch, and which of their weights to normalize."""

from typing import NamedTuple


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
