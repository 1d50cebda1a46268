"""`mg.from_torch_state_dict`: every layer that torch has as well, with torch's parameters, gives torch's outputs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch's state dicts need torch")
torch_files = pytest.importorskip("safetensors.torch", reason="torch's state dicts need torch")

import minigrad as mg  # noqa: E402
from minigrad.nn.utils import spectral_norm  # noqa: E402

RNG = np.random.default_rng(0)
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def floats(*shape):
    return RNG.standard_normal(shape)


IMAGE, VOLUME, LINE = floats(3, 4, 9, 8), floats(2, 4, 5, 6, 5), floats(3, 4, 11)
INDEX = RNG.integers(0, 7, (3, 5))
LAYERS = [  # name, arguments, inputs
    ("Linear", {"in_features": 8, "out_features": 5}, [IMAGE]),
    ("Linear", {"in_features": 8, "out_features": 5, "bias": False}, [IMAGE]),
    ("Embedding", {"num_embeddings": 7, "embedding_dim": 3}, [INDEX]),
    ("Embedding", {"num_embeddings": 7, "embedding_dim": 3, "padding_idx": 2}, [INDEX]),
    ("RNNCell", {"input_size": 3, "hidden_size": 4}, [floats(2, 3), floats(2, 4)]),
    ("RNNCell", {"input_size": 3, "hidden_size": 4, "nonlinearity": "relu"}, [floats(2, 3), floats(2, 4)]),
    ("LSTMCell", {"input_size": 3, "hidden_size": 4}, [floats(2, 3), (floats(2, 4), floats(2, 4))]),
    ("LSTMCell", {"input_size": 3, "hidden_size": 4, "bias": False}, [floats(2, 3), (floats(2, 4), floats(2, 4))]),
    ("GRUCell", {"input_size": 3, "hidden_size": 4}, [floats(2, 3), floats(2, 4)]),
    ("GRUCell", {"input_size": 3, "hidden_size": 4, "bias": False}, [floats(2, 3), floats(2, 4)]),
    ("BatchNorm1d", {"num_features": 4}, [LINE]),
    ("BatchNorm1d", {"num_features": 4, "affine": False, "momentum": None}, [LINE]),
    ("BatchNorm2d", {"num_features": 4}, [IMAGE]),
    ("BatchNorm2d", {"num_features": 4, "track_running_stats": False}, [IMAGE]),
    ("ReLU", {}, [IMAGE]),
    ("LeakyReLU", {"negative_slope": 0.3}, [IMAGE]),
    ("ELU", {"alpha": 1.5}, [IMAGE]),
    ("GELU", {}, [IMAGE]),
    ("SiLU", {}, [IMAGE]),
    ("Tanh", {}, [IMAGE]),
    ("Sigmoid", {}, [IMAGE]),
    ("Softplus", {"beta": 2.0}, [IMAGE]),
    ("Dropout", {"p": 0.4}, [IMAGE]),  # in evaluation: the random numbers differ
    ("Flatten", {}, [IMAGE]),
    ("Unflatten", {"dim": 1, "unflattened_size": (2, 2)}, [IMAGE]),
    ("AvgPool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, [IMAGE]),
    ("MaxPool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, [IMAGE]),
    ("Upsample", {"scale_factor": 2}, [IMAGE]),
    ("MSELoss", {}, [IMAGE, floats(*IMAGE.shape)]),
    ("L1Loss", {}, [IMAGE, floats(*IMAGE.shape)]),
    ("BCEWithLogitsLoss", {}, [IMAGE, RNG.random(IMAGE.shape)]),
    ("CrossEntropyLoss", {"label_smoothing": 0.1}, [floats(5, 3), np.array([0, 2, 1, 1, 0])]),
    ("LazyLinear", {"out_features": 5}, [IMAGE]),
]
for d, x in ((1, LINE), (2, IMAGE), (3, VOLUME)):
    wide = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    for more in ({}, wide, {"bias": False}):
        LAYERS += [(f"Conv{d}d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | more, [x])]
    for more in ({}, wide | {"output_padding": 1}, {"bias": False}):
        LAYERS += [(f"ConvTranspose{d}d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | more, [x])]
    LAYERS += [(f"LazyConv{d}d", {"out_channels": 6, "kernel_size": 3}, [x])]
#: No layers of computation: what holds others (the last test is of them), and classes to derive from.
HOLDERS = {"Module", "Sequential", "ModuleList", "Parameter", "UninitializedParameter"}


def test_every_layer_that_torch_has_is_in_the_list():
    ours = {name for name in dir(mg.nn) if isinstance(getattr(mg.nn, name), type)}
    assert {name for name, *_ in LAYERS} == {name for name in ours if hasattr(torch.nn, name)} - HOLDERS


def given(lib, inputs, dtype):
    def one(x):
        if isinstance(x, tuple):
            return tuple(map(one, x))
        return lib.tensor(x if x.dtype.kind == "i" else x.astype(dtype))

    return [one(x) for x in inputs]


def numbers(out):
    return [x.detach().numpy() for x in (out if isinstance(out, tuple) else (out,))]


def same(ours, theirs, dtype):
    for a, b in zip(numbers(ours), numbers(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(b).max()))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "arguments", "inputs"), LAYERS, ids=[f"{i}-{row[0]}" for i, row in enumerate(LAYERS)])
def test_a_layer(name, arguments, inputs, dtype):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(**arguments).to(getattr(torch, dtype))
    ours = getattr(mg.nn, name)(**arguments).to(getattr(mg, dtype))
    if name.startswith("Lazy") or "BatchNorm" in name:
        for k in range(2):  # gives the running statistics something to say
            theirs(*given(torch, [k + 2 * x for x in inputs], dtype))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = mg.from_torch_state_dict(theirs.state_dict(), ours)
    assert {key: (x.shape, str(x.dtype)) for key, x in state.items()} == {
        key: (tuple(x.shape), str(x.dtype).removeprefix("torch.")) for key, x in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    for mode in ("eval",) if name == "Dropout" else ("eval", "train", "eval"):  # the last: what training has moved
        getattr(ours, mode)(), getattr(theirs, mode)()
        same(ours(*given(mg, inputs, dtype)), theirs(*given(torch, inputs, dtype)), dtype)


class Holders:
    """The same model of either library."""

    def __new__(cls, lib, normalize):
        nn = lib.nn

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList([nn.Sequential(normalize(nn.Linear(4, 4)), nn.Tanh()) for _ in range(2)])
                self.tokens = nn.Embedding(7, 4)
                self.norm = nn.BatchNorm1d(4)

            def forward(self, x):
                x = self.tokens(x)
                for block in self.blocks:
                    x = block(x)
                return self.norm(x)

        return Model()


NORMALIZE = {
    "none": lambda lib: lambda module: module,
    "parametrization": lambda lib: spectral_norm if lib is mg else torch.nn.utils.parametrizations.spectral_norm,
    "hook": lambda lib: (lambda m: spectral_norm(m, order="vu")) if lib is mg else torch.nn.utils.spectral_norm,
}


@pytest.mark.parametrize("via", ["memory", "torch.save", "safetensors"])
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_a_model_with_parts(normalize, via, tmp_path):
    torch.manual_seed(1)
    ours, theirs = (Holders(lib, NORMALIZE[normalize](lib)) for lib in (mg, torch))
    tokens = RNG.integers(0, 7, 6)
    for _ in range(3):
        theirs(torch.tensor(tokens))
    state = theirs.state_dict()
    if via == "torch.save":
        torch.save(state, tmp_path / "model.pt")
        state = torch.load(tmp_path / "model.pt", weights_only=True)
    elif via == "safetensors":
        torch_files.save_file(state, tmp_path / "model.safetensors")
        state = mg.load(tmp_path / "model.safetensors")
    ours.load_state_dict(mg.from_torch_state_dict(state, ours))
    for mode in ("eval", "train", "train", "eval"):
        getattr(ours, mode)(), getattr(theirs, mode)()
        same(ours(mg.tensor(tokens)), theirs(torch.tensor(tokens)), "float32")


# Dtypes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("narrow", ["bfloat16", "float16", "float32"])
def test_what_widens_keeps_its_values(narrow, wide):
    theirs = torch.nn.Linear(5, 3).to(getattr(torch, narrow))
    ours = mg.nn.Linear(5, 3).to(getattr(mg, wide))
    ours.load_state_dict(mg.from_torch_state_dict(theirs.state_dict(), ours))
    for name, x in theirs.named_parameters():
        got = dict(ours.named_parameters())[name]
        assert got.dtype == np.dtype(wide)
        np.testing.assert_array_equal(got.detach().numpy(), x.detach().double().numpy())


def test_float16_into_float16():
    theirs, ours = torch.nn.Linear(5, 3).half(), mg.nn.Linear(5, 3).to(mg.float16)
    state = mg.from_torch_state_dict(theirs.state_dict(), ours)
    assert state["weight"].dtype == mg.float16
    np.testing.assert_array_equal(state["weight"].numpy(), theirs.weight.detach().numpy())


def test_the_values_are_copies():
    theirs, ours = torch.nn.Linear(2, 1), mg.nn.Linear(2, 1)
    state = mg.from_torch_state_dict(theirs.state_dict(), ours)
    before = state["weight"].tolist()
    with torch.no_grad():
        theirs.weight.zero_()
    assert state["weight"].tolist() == before != [[0, 0]]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weight": torch.ones(3, 5, dtype=torch.float64)}, TypeError, "'weight': float64 would not keep .* float32"),
        ({"weight": torch.ones(3, 5, dtype=torch.int64)}, TypeError, r"int64 would not keep .*float32\. Convert it"),
        ({"bias": torch.ones(3, dtype=torch.complex64)}, TypeError, "from_torch_state_dict: 'bias': .* complex64"),
        ({"bias": torch.ones(3).to_sparse()}, TypeError, "'bias', torch.float32: .*Convert it in torch first"),
        ({"bias": torch.ones(3).to(torch.float8_e5m2)}, TypeError, "'bias', torch.float8_e5m2: "),
        ({"bias": 3.0}, TypeError, "'bias': expected a tensor; got float"),
        ({"state_dict": {}}, TypeError, "'state_dict': expected a tensor; got dict"),
        ({"weight": torch.ones(5, 3)}, ValueError, r"weight: expected \(3, 5\) as weight; got \(5, 3\)"),
        ({"module.weight": torch.ones(3, 5)}, ValueError, "^from_torch_state_dict: (?s:.*)module.weight: nothing"),
    ],
)
def test_what_does_not_fit(change, error, words):
    with pytest.raises(error, match=words):
        mg.from_torch_state_dict(torch.nn.Linear(5, 3).state_dict() | change, mg.nn.Linear(5, 3))
