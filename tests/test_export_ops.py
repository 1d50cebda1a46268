"""mg.export.onnx of every layer and op: onnxruntime computes what the model does, at other batch sizes too."""

import numpy as np
import pytest
from exported import Ops, check, moved, onnx, run, weights

import minigrad as mg
from minigrad import nn
from minigrad.nn import functional as F

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


FUNCTIONS = {
    "arithmetic": lambda x: 2 - x * x / (x.abs() + 3) + (-x) ** 2 + 2.0**x,
    "unary": lambda x: (x.abs() + 1).log() + x.exp() + x.sign() + x.sin() * x.cos() + x.square().sqrt(),
    "more unary": lambda x: mg.log1p(x.abs()) + mg.expm1(x) + mg.rsqrt(x.abs() + 1) + mg.reciprocal(x.abs() + 1),
    "comparisons": lambda x: mg.where((x > 0) & (x < 1) | (x >= 1.5), x, 0.5).where(~(x == 0) & (x != 3), 2 * x),
    "where of numbers": lambda x: mg.where(x <= 0, -1.0, mg.where(mg.isfinite(x) & ~mg.isnan(x), 2.0, 0.0)),
    "where of NaN": lambda x: mg.isnan(mg.where(x <= 0, float("nan"), x) * F.pad(x[:, 1:], (0, 0, 1, 0), float("nan"))),
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
    "shapes of nothing": lambda x: (x[..., :0].flatten(1).sum(1), x[:, :0].reshape(x.shape[0], 2, 0, 5).sum(2)),
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


def test_log1p_and_expm1_near_0_and_at_the_ends(tmp_path):
    mg.export.onnx(Ops(lambda x: (mg.log1p(x), mg.expm1(x))), mg.zeros(1, 2), tmp_path / "model.onnx")
    x = np.float32([[1e-10, -1e-10], [3e-5, -3e-5], [1e-3, -0.3], [-1.0, -50.0], [np.inf, 1e30], [-0.0, np.nan]])
    with np.errstate(all="ignore"):
        expected = np.log1p(x), np.expm1(x)
    for ours, wanted in zip(run(tmp_path / "model.onnx", x), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_of_small_and_large_vectors(scale, tmp_path):
    mg.export.onnx(Ops(lambda x: x / x.norm(dim=1, keepdim=True)), mg.zeros(1, 4), tmp_path / "model.onnx")
    (unit,) = run(tmp_path / "model.onnx", np.full((3, 4), scale, np.float32))
    np.testing.assert_allclose(unit, 0.5, rtol=1e-6)


def test_several_inputs(tmp_path):
    graph = check(tmp_path, Ops(lambda x, y: x * y.to(mg.float32)), mg.randn(3, 4), mg.tensor([[1], [2], [3]]))
    assert [x.name for x in graph.input] == ["input_0", "input_1"]
