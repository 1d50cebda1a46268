"""A model with every kind of weight that can be normalized, and how its weights are called."""

import minigrad as mg
from minigrad.nn.utils import spectral_norm


class Zoo(mg.nn.Module):
    """Every kind of weight that can be normalized: convolutions, an embedding, a cell, one dimension, sharing."""

    def __init__(self, dtype=mg.float64, **options):
        super().__init__()
        options = {"n_init_iterations": 1, **options}
        self.conv = spectral_norm(mg.nn.Conv2d(2, 4, 3, stride=2, groups=2, dtype=dtype), **options)
        self.norm = mg.nn.BatchNorm2d(4, dtype=dtype)
        self.up = spectral_norm(mg.nn.ConvTranspose2d(4, 3, 2, dtype=dtype), **options, learnable_scale=True)
        self.drop = mg.nn.Dropout(0.3)
        self.table = spectral_norm(mg.nn.Embedding(5, 4, dtype=dtype), **options)
        self.cell = mg.nn.GRUCell(48, 4, dtype=dtype)
        for name in ("weight_ih", "weight_hh"):
            spectral_norm(self.cell, name, **options, order="vu", n_power_iterations=2)
        self.gain = mg.nn.Parameter(mg.randn(4, dtype=dtype))
        spectral_norm(self, "gain", **options, factor=2.0)
        self.again = self.shared = spectral_norm(mg.nn.Linear(4, 4, dtype=dtype), **options, dim=1, factor=0.5)
        self.x = mg.randn(6, 2, 8, 8, dtype=dtype)
        self.target = mg.randn(6, 4, dtype=dtype)

    def forward(self):
        x = self.drop(self.up(self.norm(self.conv(self.x)))).flatten(1)
        h = self.cell(x, self.table(mg.arange(6) - 3 * (mg.arange(6) > 2).to(mg.int64)))
        return self.again(self.shared(h * self.gain).tanh())

    def loss(self):
        return (self() - self.target).square().mean()


NAMES = ["gain", "conv.weight", "up.weight", "table.weight", "cell.weight_ih", "cell.weight_hh", "again.weight"]

DIMS = {"up.weight": 1, "again.weight": 1}


def owner(model, name):
    path, _, name = name.rpartition(".")
    return (getattr(model, path) if path else model), name


def named(table):
    return [f"{row['layer']}.{row['parameter']}".strip(".") for row in table]
