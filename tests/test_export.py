"""mg.export.onnx: what onnxruntime computes from the file is what the model computes, at other batch sizes too."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import minigrad as mg
from minigrad.nn import functional as F
from minigrad.nn.utils import spectral_norm
from minigrad.ops.conventions import CONVENTIONS

onnx = pytest.importorskip("onnx", reason="the export needs onnx")
runtime = pytest.importorskip("onnxruntime", reason="what is exported is run by onnxruntime")
nn = mg.nn


def run(path, *arrays, reference=False):
    """The outputs of the file: by onnxruntime, or by onnx's own evaluator in NumPy, which knows every dtype."""
    if reference:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
        names = session.input_names
    else:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [x.name for x in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def drawn(x, n, seed):
    """Input like the example, in a batch of n."""
    rng = np.random.default_rng(seed)
    shape = n, *x.shape[1:]
    if x.dtype.kind == "f":
        return rng.standard_normal(shape).astype(x.dtype)
    return rng.integers(0, 2 if x.dtype.kind == "b" else 5, shape).astype(x.dtype)


def check(tmp_path, model, *example, tolerance=1e-5, reference=False):
    """Export, validate, compare in the example's batch and in two others; returns the file's graph."""
    path = tmp_path / "model.onnx"
    mg.export.onnx(model, example if len(example) > 1 else example[0], path)
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    model.eval()
    for n in (example[0].shape[0], 5, 2):
        arrays = [drawn(x, n, seed) for seed, x in enumerate(example)]
        with mg.no_grad():
            expected = model(*map(mg.tensor, arrays))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(expected, run(path, *arrays, reference=reference), strict=True):
            assert theirs.shape == ours.shape
            assert theirs.dtype == ours.dtype
            scale = max(np.abs(ours.numpy().astype(float)).max(), 1e-30)
            assert np.abs(ours.numpy().astype(float) - theirs.astype(float)).max() <= tolerance * scale
    return made.graph


def weights(graph):
    return {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}


def moved(norm, **options):
    """Batch normalization whose statistics and affine map are not those of the start."""
    made = norm(**options)
    for i, x in enumerate((*made.parameters(), *(b for b in made.buffers() if b.ndim))):
        with mg.no_grad():
            x.copy_(mg.rand(*x.shape, generator=mg.Generator(i)) + 0.5)
    return made


IMAGE, SIGNAL, VOLUME = (3, 4, 9, 8), (3, 4, 11), (3, 4, 5, 6, 4)
LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), (3, 4)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), (3, 4)),
    "linear of a sequence": (lambda: nn.Linear(4, 6), (3, 5, 4)),
    "linear of more": (lambda: nn.Linear(4, 6, bias=False), (3, 5, 2, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), SIGNAL),
    "conv1d same": (lambda: nn.Conv1d(4, 6, 4, padding="same"), SIGNAL),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), IMAGE),
    "conv2d same": (lambda: nn.Conv2d(4, 6, (3, 4), padding="same", dilation=(2, 1)), IMAGE),
    "conv2d valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid", bias=False), IMAGE),
    "conv3d": (lambda: nn.Conv3d(4, 2, (1, 3, 2), stride=(1, 2, 1), padding=1), VOLUME),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1, output_padding=2), SIGNAL),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 4), (2, 3), (1, 0), (1, 2), groups=2, dilation=(2, 1)),
        IMAGE,
    ),
    "conv_transpose2d, output_padding ≥ stride": (lambda: nn.ConvTranspose2d(4, 2, 3, 1, 0, 1, dilation=2), IMAGE),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(4, 2, (2, 3, 1), (2, 1, 1), bias=False), VOLUME),
    "batch_norm1d": (lambda: moved(nn.BatchNorm1d, num_features=4), (3, 4)),
    "batch_norm1d of signals": (lambda: moved(nn.BatchNorm1d, num_features=4, affine=False), SIGNAL),
    "batch_norm2d": (lambda: moved(nn.BatchNorm2d, num_features=4, eps=0.1), IMAGE),
    "batch_norm2d, batch statistics": (
        lambda: moved(nn.BatchNorm2d, num_features=4, track_running_stats=False),
        IMAGE,
    ),
    "dropout": (lambda: nn.Dropout(0.5), (3, 4)),
    "relu": (nn.ReLU, (3, 40)),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), (3, 40)),
    "elu": (lambda: nn.ELU(0.7), (3, 40)),
    "gelu": (nn.GELU, (3, 40)),
    "silu": (nn.SiLU, (3, 40)),
    "tanh": (nn.Tanh, (3, 40)),
    "sigmoid": (nn.Sigmoid, (3, 40)),
    "softplus": (nn.Softplus, (3, 40)),
    "softplus, β": (lambda: nn.Softplus(2.0), (3, 40)),
    "flatten": (nn.Flatten, IMAGE),
    "flatten the batch": (lambda: nn.Flatten(0, 1), IMAGE),
    "flatten inside": (lambda: nn.Flatten(2), IMAGE),
    "unflatten": (lambda: nn.Unflatten(1, (2, -1)), (3, 8)),
    "avg_pool2d": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "avg_pool2d, padding not counted": (lambda: nn.AvgPool2d((3, 2), padding=1, count_include_pad=False), IMAGE),
    "max_pool2d": (lambda: nn.MaxPool2d((3, 2), 2, 1), IMAGE),
    "upsample": (lambda: nn.Upsample(scale_factor=(2, 3)), IMAGE),
    "upsample a signal": (lambda: nn.Upsample(scale_factor=3), SIGNAL),
    "sequential": (lambda: nn.Sequential({"a": nn.Linear(4, 6), "b": nn.Sequential(nn.Tanh())}), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, tmp_path):
    make, shape = LAYERS[name]
    model = make()
    state = {key: x.numpy() for key, x in model.state_dict().items()}
    held = weights(check(tmp_path, model, mg.zeros(*shape)))
    for key in state.keys() & held.keys():
        assert np.array_equal(held[key].ravel(), state[key].ravel())
    if type(model).__name__.startswith(("Linear", "Conv")):
        assert state.keys() <= held.keys()


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_embedding(padding_idx, tmp_path):
    graph = check(tmp_path, nn.Embedding(5, 3, padding_idx=padding_idx), mg.tensor([[1, 4], [0, 2], [3, 1]]))
    assert weights(graph)["weight"].shape == (5, 3)
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64


class Ops(nn.Module):
    """A forward given as a function."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *xs):
        return self.fn(*xs)


FUNCTIONS = {
    "arithmetic": lambda x: 2 - x * x / (x.abs() + 3) + (-x) ** 2 + 2.0**x,
    "unary": lambda x: (x.abs() + 1).log() + x.exp() + x.sign() + x.sin() * x.cos() + x.square().sqrt(),
    "more unary": lambda x: mg.log1p(x.abs()) + mg.expm1(x) + mg.rsqrt(x.abs() + 1) + mg.reciprocal(x.abs() + 1),
    "comparisons": lambda x: mg.where((x > 0) & (x < 1) | (x >= 1.5), x, 0.5).where(~(x == 0) & (x != 3), 2 * x),
    "where of numbers": lambda x: mg.where(x <= 0, -1.0, mg.where(mg.isfinite(x) & ~mg.isnan(x), 2.0, 0.0)),
    "extremes": lambda x: x.maximum(0.1) - x.minimum(x.clip(-0.5)) + x.clip(None, 0.3) + x.clip(-1, 1),
    "reductions": lambda x: x.sum(1, keepdim=True) + x.mean(2, keepdim=True) + x.amax((1, 2), keepdim=True) - x.amin(),
    "statistics": lambda x: (x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-5) + x.var(),
    "over the batch": lambda x: x - x.mean(0) + x.sum(),
    "norms": lambda x: x.norm(dim=2) + x.norm(1, dim=2) + x.norm(float("inf"), dim=2),
    "places": lambda x: x.argmax(1) + x.argmin(1) + (x > 0).sum(1) + x.to(mg.int64).sum(1) + x.max(1).indices,
    "values at places": lambda x: x.max(1).values,
    "questions": lambda x: ((x > 0.5).any(1), (x > -0.5).all(1), (x > 2).any(), (x > -2).all((1, 2), keepdim=True)),
    "running sums": lambda x: x.cumsum(1),
    "products": lambda x: x.prod(2),
    "softmax": lambda x: x.softmax(2) + F.log_softmax(x, 1) + x.logsumexp(1, keepdim=True),
    "attention": lambda x: (x @ x.mT / 2.0).softmax(-1) @ x,
    "einsum": lambda x: mg.einsum("bij,bkj->bik", x, x),
    "pooling": lambda x: F.max_pool1d(x, 2) + F.avg_pool1d(x, 2, padding=0),
    "slices": lambda x: mg.cat([x[:, :2], x[:, -1:], x[:, ::-2], x[..., 1:, :]], 1),
    "positions": lambda x: x[:, 1, None] + x[:, -1][:, None] + x[..., None, 2, :],
    "slices of the batch": lambda x: mg.cat([x[1:], x[:1]]) + x.flip(0) + x[-1],
    "chunks": lambda x: mg.stack(x.chunk(2, dim=1), dim=-1),
    "permutations": lambda x: x.permute(0, 2, 1) * x.flip([1, 2]).transpose(1, 2),
    "shapes": lambda x: x.reshape(x.shape[0] * 4, -1).reshape(x.shape[0], 2, 2, -1).squeeze().unsqueeze(1),
    "expansion": lambda x: x.unsqueeze(1).expand(x.shape[0], 3, 4, 6).contiguous().clone(),
    "tensors of the batch's size": lambda x: mg.cat([x, mg.zeros_like(x), mg.full((x.shape[0], 1, 6), 2.0)], 1),
    "rows for the batch": lambda x: x + mg.arange(24.0).reshape(1, 4, 6).expand(*x.shape) * mg.ones_like(x),
    "padding": lambda x: F.pad(x, (1, -1, 2, 0), 0.5),
    "selection": lambda x: mg.index_select(x, 1, mg.tensor([2, 0, 0])),
    "tables": lambda x: mg.tensor([1.0, 2.0, 3.0, 4.0])[mg.tensor([0, 3, 1, 1])].unsqueeze(1) + x,
    "gathering": lambda x: mg.gather(x, 1, x.argmax(1, keepdim=True)),
    "batches as they are": lambda x: x.detach(),
    "several outputs": lambda x: (x + 1, x, (x + 1).sum((1, 2))),
    "other dtypes": lambda x: (x.to(mg.float64) * 2).float() + (x > 0).to(mg.float32),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, tmp_path):
    check(tmp_path, Ops(FUNCTIONS[name]), mg.randn(3, 4, 6), tolerance=3e-5 if name == "products" else 1e-5)


def test_comparisons_of_equals(tmp_path):
    def fn(x):
        return x < 2, x <= 2, x > 2, x >= 2, x == 2, x != 2, x.maximum(2) - x.minimum(x.clip(1, 3))

    check(tmp_path, Ops(fn), mg.zeros(3, 40, dtype=mg.int64))


def test_several_inputs(tmp_path):
    graph = check(tmp_path, Ops(lambda x, y: x * y.to(mg.float32)), mg.randn(3, 4), mg.tensor([[1], [2], [3]]))
    assert [x.name for x in graph.input] == ["input_0", "input_1"]


def test_parameters_may_have_the_names_of_inputs_and_nodes(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.add_0, self.output = (nn.Parameter(mg.randn(4)) for _ in range(3))

        def forward(self, x):
            return (x + self.input) * self.add_0 + self.output

    check(tmp_path, Named(), mg.zeros(3, 4))


# Whole models --------------------------------------------------------------------------------------------------------


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


# The model is left as it was, the file whole -------------------------------------------------------------------------


def test_nothing_of_the_model_changes(tmp_path):
    model = nn.Sequential(spectral_norm(nn.Linear(4, 6)), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    model(mg.randn(3, 4)).sum().backward()
    model.train()
    model[1].eval()
    before = {key: x.numpy().copy() for key, x in model.state_dict().items()}
    grads = [x.grad for x in model.parameters()]
    values = [x.grad.numpy().copy() for x in model.parameters()]
    source = mg._random.default.get_state()
    recording = []
    model.append(Ops(lambda x: recording.append(mg.is_grad_enabled()) or x))
    mg.export.onnx(model, mg.randn(3, 4, generator=mg.Generator(1)), tmp_path / "a.onnx")
    assert recording == [False] * 3
    assert [m.training for m in model.modules()].count(False) == 1
    assert not model[1].training
    assert all(np.array_equal(before[key], x.numpy()) for key, x in model.state_dict().items())
    assert all(x.grad is g for x, g in zip(model.parameters(), grads, strict=True))
    assert all(np.array_equal(g.numpy(), a) for g, a in zip(grads, values, strict=True))
    assert mg._random.default.get_state() == source
    assert mg._mode.mode.witness is None


def test_a_failed_export_leaves_model_and_file(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"before")
    model = nn.Sequential(nn.Linear(4, 2), Ops(lambda x: x * mg.randn(2)))
    source = mg._random.default.get_state()
    with pytest.raises(ValueError, match="random numbers"):
        mg.export.onnx(model, mg.zeros(3, 4), path)
    assert (model.training, path.read_bytes(), mg._random.default.get_state()) == (True, b"before", source)
    assert mg._mode.mode.witness is None
    mg.export.onnx(nn.ReLU(), mg.zeros(3, 4), str(path))
    made = onnx.load(path)
    assert (made.producer_name, made.opset_import[0].version, made.ir_version) == ("minigrad", 20, 9)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_put_in_place_leaves_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(mg.export.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        mg.export.onnx(nn.ReLU(), mg.zeros(3, 4), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


# Refusals ------------------------------------------------------------------------------------------------------------


def in_place(x):
    y = x + 1
    y[:, 0] = 0.0
    return y * 2


def into_a_buffer(x):
    y = mg.zeros(2)
    y[:] = x.sum()
    return x.sum(1) + y.sum()


def branch(x):
    return x.exp() if x.sum() > 0 else x * 2


REFUSED = {
    "a value": (lambda x: x * x.sum().item(), ValueError, r"op 'mul'.*neither constant nor affine.*item\(\)"),
    "an array": (lambda x: x + mg.tensor(x.numpy().sum(0)), ValueError, r"op 'add'.*numpy\(\)"),
    "a mask": (lambda x: x[x > 0], ValueError, "op 'take'.*a mask or a list as index"),
    "a branch": (branch, ValueError, r"ran other ops.*where\(\)"),
    "randomness": (lambda x: x * mg.rand(4), ValueError, "op 'mul'.*random numbers"),
    "dropout in a forward": (lambda x: F.dropout(x, 0.5), ValueError, "op 'mul'.*random numbers"),
    "a change in place": (in_place, ValueError, r"changed a tensor of shape \(2, 4\) in place"),
    "a way around the ops": (into_a_buffer, ValueError, "op 'add'.*values that left the tensors"),
    "a fixed batch": (lambda x: x.reshape(2, 2, 2), ValueError, r"in a batch of 3.*x\.shape\[0\].*It raised: reshape"),
    "a size that is not affine": (lambda x: x * x.shape[0] ** 2, ValueError, r"op 'mul'.*affine.*was 4, 9, 16"),
    "a root of the batch size": (lambda x: x.std(0), ValueError, "op 'div'.*neither constant nor affine"),
    "padding by the batch size": (lambda x: F.pad(x, (x.shape[0], 0)), ValueError, "op pad.*depends on the batch size"),
    "a by-product": (lambda x: mg.ops.batch_norm.standardize(x)[1], NotImplementedError, "by-product of batch_norm"),
    "arithmetic of bools": (lambda x: (x > 0) + (x < 1), NotImplementedError, r"Add.*tensor\(bool\).*Cast its input"),
    "a constant": (lambda x: mg.ones(2), ValueError, "output 0 is not made from the input"),
    "no tensor": (lambda x: x.sum().item(), TypeError, "to return a tensor.*float"),
    "an op without a form": (
        lambda x: mg.nn.functional.spectral_normalize(x, mg.ones(2), mg.ones(4))[0],
        NotImplementedError,
        r"op 'sigma', on shapes \[\(2, 4\), \(2,\), \(4,\)\], has no ONNX form.*Compose it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_graph_is_refused(name, tmp_path):
    fn, error, message = REFUSED[name]
    with pytest.raises(error, match=f"export.onnx: .*{message}"):
        mg.export.onnx(Ops(fn), mg.full((2, 4), 0.5), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(TypeError, match="linear: expected one dtype; got float64, float32"):
        mg.export.onnx(nn.Linear(4, 2), mg.zeros(3, 4, dtype=mg.float64), path)
    with pytest.raises(TypeError, match="expected a tensor or a tuple of tensors as example; got float"):
        mg.export.onnx(nn.Linear(4, 2), [1.0], path)
    with pytest.raises(TypeError, match="expected a Module; got function"):
        mg.export.onnx(F.relu, mg.zeros(3), path)
    for example in (mg.tensor(1.0), mg.zeros(0, 4), (mg.zeros(2, 4), mg.zeros(3, 4)), ()):
        with pytest.raises(ValueError, match="one batch size of at least 1 as axis 0"):
            mg.export.onnx(nn.ReLU(), example, path)
    with pytest.raises(RuntimeError, match="lazy layer has no shape yet"):
        mg.export.onnx(nn.LazyLinear(2), mg.zeros(3, 4), path)


def test_without_onnx_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx.checker", None)
    with pytest.raises(ImportError, match=r'needs the package onnx.*pip install "minigrad\[export\]"'):
        mg.export.onnx(nn.ReLU(), mg.zeros(3), tmp_path / "a.onnx")


def test_importing_minigrad_does_not_import_onnx():
    import subprocess

    code = "import minigrad, sys; print('onnx' in sys.modules)"
    root = Path(mg.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "False"
