"""Layers against torch's: names, outputs, gradients, buffers, in training and in evaluation; and what torch lacks."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.nn import functional as F

# name: (the layer, made alike by both libraries' nn, shape of a batch)
LAYERS = {
    "Linear": (lambda nn: nn.Linear(4, 3), (5, 4)),
    "Linear, more dimensions": (lambda nn: nn.Linear(4, 3, bias=False), (2, 5, 4)),
    "Linear, a vector": (lambda nn: nn.Linear(4, 3), (4,)),
    "Conv1d": (lambda nn: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7)),
    "Conv2d": (lambda nn: nn.Conv2d(3, 4, (4, 3), 2, 1), (2, 3, 6, 5)),
    "Conv2d, same": (lambda nn: nn.Conv2d(2, 3, 3, padding="same", dilation=(2, 1), bias=False), (2, 2, 5, 5)),
    "Conv3d": (lambda nn: nn.Conv3d(2, 3, 2, padding=(1, 0, 1)), (2, 2, 3, 3, 2)),
    "ConvTranspose1d": (lambda nn: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2), (2, 4, 5)),
    "ConvTranspose2d": (lambda nn: nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), (2, 4, 3, 3)),
    "ConvTranspose3d": (lambda nn: nn.ConvTranspose3d(2, 3, 2, dilation=2, bias=False), (2, 2, 2, 2, 2)),
    "BatchNorm1d": (lambda nn: nn.BatchNorm1d(3, eps=1e-3, momentum=0.3), (6, 3)),
    "BatchNorm1d, sequences": (lambda nn: nn.BatchNorm1d(3, affine=False), (4, 3, 5)),
    "BatchNorm2d": (lambda nn: nn.BatchNorm2d(3), (4, 3, 2, 5)),
    "BatchNorm2d, cumulative": (lambda nn: nn.BatchNorm2d(3, momentum=None), (4, 3, 2, 2)),
    "BatchNorm2d, without statistics": (lambda nn: nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 2, 2)),
    "ReLU": (lambda nn: nn.ReLU(), (3, 4)),
    "LeakyReLU": (lambda nn: nn.LeakyReLU(0.1), (3, 4)),
    "ELU": (lambda nn: nn.ELU(0.7), (3, 4)),
    "GELU": (lambda nn: nn.GELU(), (3, 4)),
    "SiLU": (lambda nn: nn.SiLU(), (3, 4)),
    "Tanh": (lambda nn: nn.Tanh(), (3, 4)),
    "Sigmoid": (lambda nn: nn.Sigmoid(), (3, 4)),
    "Softplus": (lambda nn: nn.Softplus(2.0), (3, 4)),
    "Flatten": (lambda nn: nn.Flatten(), (2, 3, 4)),
    "Flatten, some": (lambda nn: nn.Flatten(0, 1), (2, 3, 4)),
    "Unflatten": (lambda nn: nn.Unflatten(1, (2, -1)), (3, 6, 2)),
    "MaxPool2d": (lambda nn: nn.MaxPool2d(3, 2, 1), (2, 2, 6, 6)),
    "AvgPool2d": (lambda nn: nn.AvgPool2d(3, 2, 1), (2, 2, 6, 6)),
    "AvgPool2d, padding uncounted": (lambda nn: nn.AvgPool2d(2, padding=1, count_include_pad=False), (2, 2, 6, 6)),
    "Upsample": (lambda nn: nn.Upsample(scale_factor=2), (2, 2, 3, 3)),
    "Dropout, nothing dropped": (lambda nn: nn.Dropout(0.0), (3, 4)),
    "a network": (
        lambda nn: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1)),
        (3, 2, 4, 4),
    ),
}  # fmt: skip
CELLS = {
    "RNNCell": lambda nn: nn.RNNCell(3, 4),
    "RNNCell, relu": lambda nn: nn.RNNCell(3, 4, bias=False, nonlinearity="relu"),
    "LSTMCell": lambda nn: nn.LSTMCell(3, 4),
    "GRUCell": lambda nn: nn.GRUCell(3, 4),
}
rng = np.random.default_rng(0)


def pair(make, device):
    """The layer in both libraries, with one state, in float64."""
    torch = pytest.importorskip("torch")
    ours, theirs = make(nn).to(device, dtype=mg.float64), make(torch.nn).double()
    state = theirs.state_dict()
    assert [(key, t.shape) for key, t in ours.state_dict().items()] == [(k, tuple(t.shape)) for k, t in state.items()]
    ours.load_state_dict({key: mg.tensor(t.numpy()) for key, t in state.items()})
    return torch, ours, theirs


def leaves(torch, device, *shapes):
    arrays = [rng.standard_normal(shape) for shape in shapes]
    ours = [mg.tensor(a, device=device, requires_grad=True) for a in arrays]
    return ours, [torch.tensor(a, requires_grad=True) for a in arrays]


def agree(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), other.detach().numpy(), rtol=1e-10, atol=1e-10)


def check(torch, ours, theirs, xs, ts):
    """Outputs and gradients for a random upstream; to second order where there is one."""
    tensor = functools.partial(mg.tensor, device=xs[0].device)
    y, z = ours(*xs), theirs(*ts)
    ys, zs = ([y], [z]) if isinstance(y, mg.Tensor) else (y, z)
    agree(ys, zs)
    gs = [rng.standard_normal(y.shape) for y in ys]
    inputs, others = [*xs, *ours.parameters()], [*ts, *theirs.parameters()]
    first = mg.grad(ys, inputs, [tensor(g) for g in gs], create_graph=True)
    expected = torch.autograd.grad(zs, others, [torch.tensor(g) for g in gs], create_graph=True)
    agree(first, expected)
    vs = [rng.standard_normal(x.shape) for x in inputs]
    bent = sum((g * tensor(v)).sum() for g, v in zip(first, vs, strict=True))
    other = sum((g * torch.tensor(v)).sum() for g, v in zip(expected, vs, strict=True))
    none = [None] * len(vs)  # no path: the layer is linear
    second = mg.grad(bent, inputs, allow_unused=True) if bent.requires_grad else none
    wanted = torch.autograd.grad(other, others, allow_unused=True) if other.requires_grad else none
    for a, b, v in zip(second, wanted, vs, strict=True):
        agree([mg.tensor(0 * v) if a is None else a], [torch.tensor(0 * v) if b is None else b])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_torchs(name, device):
    make, shape = LAYERS[name]
    torch, ours, theirs = pair(make, device)
    for training in (True, True, False):  # twice, as running statistics move
        ours.train(training), theirs.train(training)
        xs, ts = leaves(torch, device, shape)
        check(torch, ours, theirs, xs, ts)
        agree(list(ours.buffers()), list(theirs.buffers()))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_torchs(name, device):
    torch, ours, theirs = pair(CELLS[name], device)
    for batch in ((5,), ()):
        check(torch, ours, theirs, *leaves(torch, device, (*batch, 3)))
        (x, *state), (t, *tstate) = leaves(torch, device, (*batch, 3), (*batch, 4), (*batch, 4))
        if name == "LSTMCell":
            agree(ours(x, tuple(state)), theirs(t, tuple(tstate)))
        else:
            check(torch, ours, theirs, [x, state[0]], [t, tstate[0]])


def test_a_cell_checks_its_shapes():
    with pytest.raises(ValueError, match=r"GRUCell: expected x \(N, 3\) or \(3,\) and a state of shape \(2, 4\)"):
        nn.GRUCell(3, 4)(mg.ones(2, 3), mg.ones(3, 4))
    with pytest.raises(ValueError, match="'tanh' or 'relu'"):
        nn.RNNCell(3, 4, nonlinearity="sin")


@pytest.mark.parametrize("padding_idx", [None, 1, -1])
def test_embedding_is_torchs(padding_idx, device):
    torch, ours, theirs = pair(lambda nn: nn.Embedding(5, 3, padding_idx=padding_idx), device)
    index = np.array([[0, 1, 4], [1, 1, 4]])
    y, z = ours(mg.tensor(index, device=device)), theirs(torch.tensor(index))
    agree([y], [z])
    g = rng.standard_normal(y.shape)
    y.backward(mg.tensor(g, device=device)), z.backward(torch.tensor(g))
    agree([ours.weight.grad], [theirs.weight.grad])
    fresh = nn.Embedding(5, 3, padding_idx=padding_idx)
    zero = [i for i, row in enumerate(fresh.weight.tolist()) if row == [0.0] * 3]
    assert zero == ([] if padding_idx is None else [padding_idx % 5])


def test_embedding_errors(device):
    with pytest.raises(IndexError, match=r"padding_idx in \[-5, 4\]; got 5"):
        nn.Embedding(5, 3, padding_idx=5)
    with pytest.raises(IndexError, match=r"\[0, 4\]; got 5"):
        nn.Embedding(5, 3, device=device)(mg.tensor([5], device=device))
    with pytest.raises(TypeError, match="int64"):
        nn.Embedding(5, 3, device=device)(mg.tensor([1.0], device=device))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_copies_and_pickles(name, device):
    make, shape = LAYERS[name]
    layer = make(nn).to(device)
    x = mg.randn(*shape, device=device)
    layer(x)
    layer.eval()
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again(x).tolist() == layer(x).tolist() and repr(again) == repr(layer)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Linear(2, 3, bias=False), "Linear(in_features=2, out_features=3, bias=False)"),
        (
            nn.Conv2d(4, 8, 3, 2, 1, 2, 4, False),
            "Conv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=4, bias=False)",
        ),
        (
            nn.ConvTranspose1d(4, 8, 3, 2, 1, 1),
            "ConvTranspose1d(4, 8, kernel_size=(3,), stride=(2,), padding=(1,), output_padding=(1,))",
        ),
        (nn.Conv1d(1, 1, 3, padding="same"), "Conv1d(1, 1, kernel_size=(3,), stride=(1,), padding='same')"),
        (nn.BatchNorm1d(3), "BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"),
        (nn.Embedding(5, 3, padding_idx=-1), "Embedding(5, 3, padding_idx=4)"),
        (nn.RNNCell(3, 4, nonlinearity="relu"), "RNNCell(3, 4, nonlinearity=relu)"),
        (nn.LSTMCell(3, 4, bias=False), "LSTMCell(3, 4, bias=False)"),
        (nn.Dropout(0.3), "Dropout(p=0.3)"),
        (nn.Unflatten(1, (2, 3)), "Unflatten(dim=1, unflattened_size=(2, 3))"),
        (nn.AvgPool2d(2), "AvgPool2d(kernel_size=2, stride=2, padding=0)"),
        (nn.Upsample(scale_factor=2), "Upsample(scale_factor=2, mode='nearest')"),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "3 and 4 channels are not divisible by groups=2"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "Conv2d: expected kernel_size to be an int or 2 ints"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, padding="same"), "ConvTranspose2d: expected padding to be an int or 2"),
        (lambda: nn.BatchNorm2d(3)(mg.ones(2, 4, 1, 1)), r"BatchNorm2d: expected a batch of shape \(N, 3, H, W\)"),
        (lambda: nn.BatchNorm1d(3)(mg.ones(2, 3, 1, 1)), r"shape \(N, 3\) or \(N, 3, L\); got \(2, 3, 1, 1\)"),
        (lambda: nn.BatchNorm1d(3)(mg.ones(1, 3)), "more than one value per channel"),
        (lambda: F.batch_norm(mg.ones(2, 3), None, None), "running_mean and running_var outside of training"),
        (lambda: nn.Dropout(1.5), r"Dropout: expected a probability p in \[0, 1\]; got 1.5"),
        (lambda: F.dropout(mg.ones(2), -0.5), r"dropout: expected a probability p in \[0, 1\]; got -0.5"),
        (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), "expected mode 'nearest'"),
        (
            lambda: nn.Unflatten(1, (2, 2))(mg.ones(2, 6)),
            r"Unflatten: expected sizes that make the 6 of dim 1; got \(2, 2",
        ),
        (lambda: nn.Unflatten(1, (4, -1))(mg.ones(2, 6)), r"Unflatten: expected sizes that make the 6 of dim 1; got"),
        (lambda: nn.LazyConv2d(4, 3, groups=2)(mg.ones(1, 3, 4, 4)), r"divisible by groups=2; got \(1, 3, 4, 4\)"),
    ],
)
def test_errors_say_what_was_expected(make, text):
    with pytest.raises((ValueError, TypeError), match=text):
        make()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("LazyLinear", lambda: nn.LazyLinear(2)([1.0])),
        ("LazyConv1d", lambda: nn.LazyConv1d(2, 1)([[1.0]])),
        ("BatchNorm1d", lambda: nn.BatchNorm1d(1)([[1.0]])),
        ("batch_norm", lambda: F.batch_norm([[1.0]], None, None, training=True)),
        ("embedding", lambda: F.embedding(mg.tensor([0]), [[1.0]], 0)),
        ("dropout", lambda: F.dropout([1.0], training=False)),
        ("RNNCell", lambda: nn.RNNCell(1, 1)([1.0])),
        ("GRUCell", lambda: nn.GRUCell(1, 1)(mg.ones(1), [1.0])),
        ("cross_entropy", lambda: F.cross_entropy([[1.0]], mg.tensor([0]))),
        ("cross_entropy", lambda: F.cross_entropy(mg.ones(1, 1), [0])),
        ("gan_discriminator_loss", lambda: F.gan_discriminator_loss([1.0], mg.ones(1))),
        ("gan_generator_loss", lambda: F.gan_generator_loss([1.0])),
        ("hinge_discriminator_loss", lambda: F.hinge_discriminator_loss(mg.ones(1), [1.0])),
        ("hinge_generator_loss", lambda: F.hinge_generator_loss([1.0])),
        ("init", lambda: nn.init.normal_([1.0])),
        ("init", lambda: nn.init.zeros_([1.0])),
        ("init", lambda: nn.init.orthogonal_([[1.0]])),
    ],
)
def test_a_list_in_a_tensors_place_is_named(name, call):
    with pytest.raises(TypeError, match=f"^{name}: expected .*; got list. Make it a tensor with mg.tensor"):
        call()


@pytest.mark.parametrize("state", [mg.ones(2, 4), (mg.ones(2, 4),), 3, (mg.ones(2, 4), [1.0])])
def test_the_state_of_an_lstm_is_a_pair(state):
    with pytest.raises(TypeError, match=r"LSTMCell: expected .*; got"):
        nn.LSTMCell(3, 4)(mg.ones(2, 3), state)


@pytest.mark.parametrize(("shape", "dim", "sizes"), [((0, 6), 1, (3, -1)), ((6, 0), 0, (-1, 2)), ((2, 0), -1, (-1, 3))])
def test_unflatten_works_out_an_extent_where_there_is_nothing(shape, dim, sizes):
    torch = pytest.importorskip("torch")
    assert nn.Unflatten(dim, sizes)(mg.ones(shape)).shape == torch.nn.Unflatten(dim, sizes)(torch.ones(shape)).shape


def test_numpys_ints_are_ints():
    two = np.int64(2)
    x = mg.ones(1, 2, 4, 4)
    assert nn.Conv2d(2, 1, two, stride=np.array([2, 2]))(x).shape == nn.MaxPool2d(two)(x[:, :1]).shape == (1, 1, 2, 2)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_of_nothing_is_torchs(name, device):
    torch, ours, theirs = pair(lambda nn: getattr(nn, name.partition(",")[0])(3, 0), device)
    check(torch, ours, theirs, *leaves(torch, device, (2, 3)))


# Dropout


def test_dropout_masks_scales_and_repeats(device, most_elements):
    n = 100 if most_elements >= 100**2 else 40
    x = mg.full((n, n), 3.0, device=device, requires_grad=True)
    y = F.dropout(x, 0.25, generator=mg.Generator(3))
    kept = (y.detach().numpy() != 0).mean()
    assert set(np.unique(y.detach().numpy())) == {0.0, 4.0} and abs(kept - 0.75) < 2 / n
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), y.detach().numpy() / 3, rtol=1e-6)
    assert F.dropout(x, 0.25, generator=mg.Generator(3)).tolist() == y.tolist()
    assert F.dropout(x, 0.25, generator=mg.Generator(4)).tolist() != y.tolist()
    wide = F.dropout(mg.ones(n, n, dtype=mg.float64, device=device), 0.25, generator=mg.Generator(3))
    assert ((wide.numpy() != 0) == (y.detach().numpy() != 0)).all()
    assert F.dropout(x, 1.0).abs().sum().item() == 0


def test_dropout_follows_the_mode_and_the_seed(device):
    layer = nn.Dropout(0.5)
    x = mg.ones(200, device=device)
    assert layer.eval()(x) is x
    layer.train()
    mg.manual_seed(1)
    first = layer(x).tolist()
    assert layer(x).tolist() != first
    mg.manual_seed(1)
    assert layer(x).tolist() == first
