"""One model in minigrad and in torch, handed over as a file: from there both must go the same way."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="interchange with torch needs torch")
torch_files = pytest.importorskip("safetensors.torch", reason="interchange with torch needs torch")

import minigrad as mg  # noqa: E402
from minigrad.nn.utils import spectral_norm  # noqa: E402

FILES = {mg: (mg.save, mg.load), torch: (torch_files.save_file, torch_files.load_file)}


def network(lib, normalize, normalize_1d):
    """Every kind of normalized layer, all convolutions in groups, from (N, 5) tokens to (N, 3), in float64."""
    lib.manual_seed(0)
    nn, f64 = lib.nn, {"dtype": lib.float64}

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = normalize(nn.Embedding(7, 6, **f64))
            self.conv1d = normalize(nn.Conv1d(6, 4, 2, groups=2, **f64))
            self.up1d = normalize(nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, **f64))
            self.norm = normalize_1d(nn.BatchNorm1d(6, **f64))
            self.conv2d = normalize(nn.Conv2d(2, 4, (2, 3), groups=2, **f64))
            self.up2d = normalize(nn.ConvTranspose2d(4, 4, 2, groups=2, **f64))
            self.conv3d = normalize(nn.Conv3d(2, 4, 2, groups=2, **f64))
            self.up3d = normalize(nn.ConvTranspose3d(4, 4, 2, groups=2, **f64))
            self.head = nn.Sequential(normalize(nn.Linear(192, 5, **f64)), nn.Tanh(), nn.Linear(5, 3, **f64))

        def forward(self, tokens):
            x = self.embedding(tokens).transpose(1, 2)
            x = self.norm(self.up1d(self.conv1d(x).tanh()).tanh())
            x = self.up2d(self.conv2d(x.reshape(-1, 2, 3, 9)).tanh())
            x = self.up3d(self.conv3d(x.reshape(-1, 2, 4, 3, 4)).tanh())
            return self.head(x.reshape(-1, 192))

    return Network()


def scatter(model, seed):
    """Random unit vectors for u and v: nothing that a few steps could have converged."""
    rng = np.random.default_rng(seed)
    for name, buffer in model.named_buffers():
        if name.endswith(("_u", "_v")):
            x = rng.standard_normal(buffer.shape)
            buffer.detach().numpy()[:] = x / np.linalg.norm(x)


def tokens(seed, n=4):
    return np.random.default_rng(seed).integers(0, 7, (n, 5))


def evaluated(lib, model):
    model.eval()
    out = model(lib.tensor(tokens(99))).detach().numpy()
    model.train()
    return out


def trained(lib, model, steps, seed):
    """Outputs, gradients, and outputs of evaluation, step by step of SGD with random upstream gradients."""
    rng, seen = np.random.default_rng(seed), []
    optimizer = lib.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for k in range(steps):
        optimizer.zero_grad()
        out = model(lib.tensor(tokens(seed + k)))
        (out * lib.tensor(rng.standard_normal(out.shape))).sum().backward()
        gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
        optimizer.step()
        seen.append({"output": out.detach().numpy(), "evaluated": evaluated(lib, model), **gradients})
    return seen


def agree(one, other, rename=lambda name: name):
    one = {rename(name): x for name, x in one.items()}
    assert one.keys() == other.keys()
    for name, x in one.items():
        wanted = np.asarray(other[name])
        np.testing.assert_allclose(np.asarray(x), wanted, rtol=0, atol=1e-10 * np.abs(wanted).max(), err_msg=name)


def same_way(ours, theirs, rename=lambda name: name):
    """Further training, from the same state, side by side; the steps are long enough to turn u and v."""
    for a, b in zip(trained(mg, ours, 4, 10), trained(torch, theirs, 4, 10), strict=True):
        agree(a, b, rename)


# torch.nn.utils.parametrizations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("source", [mg, torch], ids=["to torch", "from torch"])
def test_a_file_goes_both_ways_and_training_goes_on(source, n, tmp_path):
    def build(lib):
        sn = {mg: spectral_norm, torch: torch.nn.utils.parametrizations.spectral_norm}[lib]
        return network(lib, *[lambda module: sn(module, n_power_iterations=n)] * 2)

    models = {lib: build(lib) for lib in (mg, torch)}
    ours, theirs = models.values()
    scatter(models[source], 0)
    trained(source, models[source], 2, 0)
    target = {mg: torch, torch: mg}[source]
    assert np.abs(evaluated(mg, ours) - evaluated(torch, theirs)).max() > 1e-3
    FILES[source][0](models[source].state_dict(), tmp_path / "model.safetensors")
    models[target].load_state_dict(FILES[target][1](tmp_path / "model.safetensors"), strict=True)
    agree(ours.state_dict(), theirs.state_dict())
    assert sum(name.endswith("._u") for name in ours.state_dict()) == 8
    np.testing.assert_allclose(evaluated(mg, ours), evaluated(torch, theirs), rtol=0, atol=1e-12)
    u = {name: x.numpy().copy() for name, x in ours.named_buffers() if name.endswith("._u")}
    same_way(ours, theirs)
    agree(ours.state_dict(), theirs.state_dict())
    turned = {name: np.abs(x.numpy() - u[name]).max() for name, x in ours.named_buffers() if name in u}
    assert len(turned) == 8 and min(turned.values()) > 1e-4


# The older hook -------------------------------------------------------------------------------------------------------


def older(n, normalize_1d=False):
    """The network in torch with the older hook, some steps into training, and in minigrad with the paper's order."""
    theirs = network(torch, *_pair(lambda m: torch.nn.utils.spectral_norm(m, n_power_iterations=n), normalize_1d))
    ours = network(mg, *_pair(lambda m: spectral_norm(m, n_power_iterations=n, order="vu"), normalize_1d))
    scatter(theirs, 1)
    trained(torch, theirs, 2, 0)
    return ours, theirs


def _pair(normalize, normalize_1d):
    return normalize, normalize if normalize_1d else lambda module: module


def renamed(name):
    """Its name for a tensor."""
    return name.replace("parametrizations.weight.", "weight_").replace("_original", "_orig").replace("_0._", "_")


def loaded(ours, theirs, path, how, v):
    state = theirs.state_dict()
    if not v:  # as torch 0.4 wrote it
        state = {name: x for name, x in state.items() if not name.endswith("_v")}
        state |= {name.replace("_orig", ""): 7 * x for name, x in state.items() if name.endswith("weight_orig")}
    torch_files.save_file(state, path)
    state = mg.load(path)
    ours.load_state_dict(mg.spectral.convert_state(state, how, ours) if how else state)
    return state


@pytest.mark.parametrize("how", [None, "torch-old"], ids=["load_state_dict", "convert_state"])
@pytest.mark.parametrize("n", [1, 3])
def test_the_older_hook_goes_on(n, how, tmp_path):
    ours, theirs = older(n)
    loaded(ours, theirs, tmp_path / "old.safetensors", how, v=True)
    agree(ours.state_dict(), theirs.state_dict(), renamed)
    np.testing.assert_allclose(evaluated(mg, ours), evaluated(torch, theirs), rtol=0, atol=1e-12)
    same_way(ours, theirs, renamed)
    agree(ours.state_dict(), theirs.state_dict(), renamed)


@pytest.mark.parametrize("how", [None, "torch-old"], ids=["load_state_dict", "convert_state"])
@pytest.mark.parametrize("n", [1, 3])
def test_the_older_hook_goes_on_without_v(n, how, tmp_path):
    ours, theirs = older(n)
    state = loaded(ours, theirs, tmp_path / "old.safetensors", how, v=False)
    for name in ("up2d", "head.0"):
        weight, u = state[f"{name}.weight_orig"].numpy(), state[f"{name}.weight_u"].numpy()
        v = u @ (weight.swapaxes(0, 1) if name == "up2d" else weight).reshape(len(u), -1)
        got = ours.state_dict()[f"{name}.parametrizations.weight.0._v"].numpy()
        np.testing.assert_allclose(got, v / np.linalg.norm(v), rtol=0, atol=1e-14)
    same_way(ours, theirs, renamed)
    agree(ours.state_dict(), theirs.state_dict(), renamed)


def test_a_1d_weight_of_the_older_hook_trains_on(tmp_path):
    """Evaluation differs: W/‖W‖ is exact here, and taken at the u of the last step there."""
    ours, theirs = older(1, normalize_1d=True)
    loaded(ours, theirs, tmp_path / "old.safetensors", None, v=True)
    for a, b in zip(trained(mg, ours, 3, 10), trained(torch, theirs, 3, 10), strict=True):
        del a["evaluated"], b["evaluated"]
        agree(a, b, renamed)
