"""mg.export.onnx of whole models: onnxruntime computes what the model does, at other batch sizes too."""

import numpy as np
import pytest
from exported import check, moved, weights

import minigrad as mg
from minigrad import nn
from minigrad.nn import functional as F
from minigrad.nn.utils import spectral_norm
from minigrad.ops.conventions import CONVENTIONS


def discriminator(width=4, **options):
    """Table 3 of the paper, narrow."""
    sides = [(3, 1, 3), (1, 1, 4), (1, 2, 3), (2, 2, 4), (2, 4, 3), (4, 4, 4), (4, 8, 3)]
    layers = []
    for i, (a, b, k) in enumerate(sides):
        conv = nn.Conv2d(3 if i == 0 else a * width, b * width, k, stride=k - 2 if k == 4 else 1, padding=1)
        layers += [spectral_norm(conv, **options), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(8 * width * 16, 1), **options))


def generator(width=4):
    layers = [nn.Linear(128, 16 * 8 * width), nn.Unflatten(1, (8 * width, 4, 4))]
    for a in (8, 4, 2):
        layers += [nn.ConvTranspose2d(a * width, a // 2 * width, 4, stride=2, padding=1)]
        layers += [moved(nn.BatchNorm2d, num_features=a // 2 * width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())


class Residual(nn.Module):
    """A user's own: a residual connection, a normalized layer called twice, a scale of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.SpectralNorm(nn.Conv2d(4, 4, 3, padding=1), factor=2.0)
        self.norm = moved(nn.BatchNorm2d, num_features=4)
        self.scale = nn.Parameter(mg.randn(4, 1, 1))
        self.head = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = x + self.scale * self.conv(self.drop(F.relu(self.norm(self.conv(x)))))
        return self.head(y.mean((2, 3)))


class Recurrent(nn.Module):
    """Two steps of a normalized cell, from a state of zeros."""

    def __init__(self):
        super().__init__()
        self.lstm = spectral_norm(nn.LSTMCell(3, 4), "weight_hh")
        self.gru = nn.GRUCell(4, 5)

    def forward(self, x):
        return self.gru(self.lstm(x, self.lstm(x))[0])


def test_recurrent_cells_unrolled(tmp_path):
    held = weights(check(tmp_path, Recurrent(), mg.randn(2, 3)))
    assert {"lstm.weight_ih", "lstm.weight_hh", "gru.weight_ih"} <= {name.split("/")[0] for name in held}


def test_the_papers_discriminator(tmp_path):
    model = discriminator()
    held = weights(check(tmp_path, model, mg.randn(1, 3, 32, 32)))
    expected = {f"{i}.{name}" for i in (*range(0, 14, 2), 15) for name in ("weight", "bias")}
    assert {name for name in held if "/" not in name} == expected


def test_the_papers_generator(tmp_path):
    check(tmp_path, generator(), mg.randn(2, 128))


def test_a_users_module_with_a_residual_connection(tmp_path):
    model = Residual()
    held = weights(check(tmp_path, model, mg.randn(2, 4, 6, 6)))
    assert {"conv.layer.weight", "conv.layer.bias", "scale", "head.weight", "head.bias"} <= set(held)
    assert sum(array.shape == (4, 4, 3, 3) for array in held.values()) == 1  # called twice, stored once


@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_every_convention_is_baked(gradient, tmp_path):
    """W̄ = γ · factor · W/uᵀWv (with "exact": W/σ₁) in the file, at unconverged u, v; nothing else of them."""
    layer = spectral_norm(nn.Linear(5, 7), gradient=gradient, learnable_scale=True, factor=1.5, n_init_iterations=0)
    graph = check(tmp_path, nn.Sequential(layer, nn.Tanh()), mg.zeros(3, 5))
    made = layer.parametrizations.weight
    w, u, v = (x.detach().numpy().astype(np.float64) for x in (made.original, made.state._u, made.state._v))
    sigma = np.linalg.norm(w, 2) if gradient == "exact" else u @ w @ v
    held = weights(graph)
    assert set(held) == {"0.weight", "0.bias"}
    expected = made.state.gamma.item() * 1.5 * w / sigma
    np.testing.assert_allclose(held["0.weight"], expected, rtol=2e-5, atol=1e-6 * np.abs(expected).max())
    assert [node.op_type for node in graph.node] == ["Gemm", "Tanh", "Identity"]


def test_other_floats(tmp_path):
    """float64 to float64's precision; float16 to its own, which rounds at other places."""
    for dtype, tolerance in ((mg.float64, 1e-12), (mg.float16, 5e-3)):
        model = nn.Sequential(spectral_norm(nn.Conv2d(2, 3, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).to(dtype)
        check(tmp_path, model, mg.randn(3, 2, 4, 4, dtype=dtype), tolerance=tolerance, reference=True)


def test_the_batch_axis_has_a_name_and_the_others_a_size(tmp_path):
    graph = check(tmp_path, nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten(0, 1)), mg.zeros(3, 4, 5, 5))
    dims = [[d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in (*graph.input, *graph.output)]
    assert dims == [["batch", 4, 5, 5], ["2*batch", 3, 3]]
    assert [node.op_type for node in graph.node] == ["Conv", "Reshape", "Identity"]


def test_parameters_may_have_the_names_of_inputs_and_nodes(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.add_0, self.output = (nn.Parameter(mg.randn(4)) for _ in range(3))

        def forward(self, x):
            return (x + self.input) * self.add_0 + self.output

    check(tmp_path, Named(), mg.zeros(3, 4))
