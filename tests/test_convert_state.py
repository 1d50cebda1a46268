"""`mg.spectral.convert_state`: files in the layout of other libraries, made from what those libraries recorded."""

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from naive_spectral import matrix, unit
from normalized_layers import F64, parts

import minigrad as mg
from minigrad.nn.utils import spectral_norm

GOLDEN = Path(__file__).parent / "golden"
LIBRARIES = ("torch-old", "paddle", "chainer")
RECORDED = {name: dict(np.load(GOLDEN / f"{name}.npz", allow_pickle=False)) for name in LIBRARIES}
RUNS = [(name, case, n) for name in RECORDED for case in RECORDED[name]["meta/cases"] for n in (1, 3)]
LAYERS = {  # the layer whose weight was recorded, from the shape of that weight in minigrad
    "linear": lambda out, features: mg.nn.Linear(features, out, bias=False, **F64),
    "conv2d": lambda out, channels, *size: mg.nn.Conv2d(channels, out, size, bias=False, **F64),
    "conv_transpose2d": lambda channels, out, *size: mg.nn.ConvTranspose2d(channels, out, size, bias=False, **F64),
    "embedding": lambda num, dim: mg.nn.Embedding(num, dim, **F64),
    "wide": lambda *shape: LAYERS["linear"](*shape),
    "tiny": lambda *shape: LAYERS["linear"](*shape),
}


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


class Holder(mg.nn.Module):
    """A normalized layer at the path block.1; a call gives its weight."""

    def __init__(self, layer, **options):
        super().__init__()
        layer.forward = lambda: layer.weight
        self.block = mg.nn.Sequential(mg.nn.ReLU(), spectral_norm(layer, order="vu", **options))

    def forward(self):
        return self.block[1]()


# Their layout and their sequence --------------------------------------------------------------------------------------


def their_file(name, run, folder, v):
    """The state that the library itself would have saved, in a file, read back."""
    if name == "chainer":
        np.savez(folder / "model.npz", **{"block/1/W": run["W"], "block/1/W_u": run["u_0"]})
        return np.load(folder / "model.npz")
    weight = {"block.1.weight_orig": run["W"], "block.1.weight_u": run["u_0"]}
    weight |= {"block.1.weight_v": run["v_0"]} if v else {"block.1.weight": 7 * run["W"]}
    safetensors.numpy.save_file(weight, folder / "model.safetensors")
    return mg.load(folder / "model.safetensors")


@pytest.mark.parametrize("v", [True, False], ids=["with v", "without v"])
@pytest.mark.parametrize(("name", "case", "n"), RUNS)
def test_the_librarys_own_sequence(name, case, n, v, tmp_path):
    """Its ε shows in u and v of less than unit norm, and through σ = uᵀMv in W̄ and in the gradient by just that factor.

    ‖u‖‖v‖ = 1 to rounding for PyTorch and Paddle, 1 − 1e-6/‖x‖ for each vector of Chainer's; far off 1 in "tiny", whose
    norms are as small as that ε.
    """
    run = {key.split("/")[2]: x for key, x in RECORDED[name].items() if key.startswith(f"{case}/{n}/")}
    weight, to_ours = run["W"], run["to_torch"]
    model = Holder(LAYERS[case](*weight.transpose(to_ours).shape), n_power_iterations=n)
    model.load_state_dict(mg.spectral.convert_state(their_file(name, run, tmp_path, v), name, model))
    raw, *stored = parts(model.block[1])
    np.testing.assert_array_equal(raw.detach().numpy(), weight.transpose(to_ours))
    made = unit(matrix(weight, int(run["axis"])).T @ run["u_0"])
    for x, wanted in zip(stored, (run["u_0"], run.get("v_0", made) if v else made), strict=True):
        close(x.numpy(), wanted)
    for k in (1, 2, 3):
        w_bar, theirs = model(), (run[f"u_{k}"], run[f"v_{k}"])
        (grad,) = mg.grad(w_bar, raw, mg.tensor(run[f"G_{k}"].transpose(to_ours)))
        shrunk = np.prod([np.linalg.norm(x) for x in theirs])
        assert case == "tiny" or abs(shrunk - 1) < (1e-6 if name == "chainer" else 1e-14)
        close(w_bar.detach().numpy(), run[f"W_bar_{k}"].transpose(to_ours) * shrunk)
        close(grad.numpy(), run[f"dW_{k}"].transpose(to_ours) * shrunk)
        for x, wanted in zip(stored, theirs, strict=True):
            close(x.numpy(), unit(wanted))
    if name != "chainer":  # which sweeps in evaluation
        close(model.eval()().detach().numpy(), run["W_bar_eval"].transpose(to_ours) * shrunk)


# Whole models ---------------------------------------------------------------------------------------------------------


def discriminator(**options):
    """Normalized layers and others; a Linear whose weight is square, so that its layout shows in its values only."""
    model = mg.nn.Module()
    model.body = mg.nn.Module()
    model.body.conv = spectral_norm(mg.nn.Conv2d(3, 4, 2, **F64), order="vu", **options)
    model.body.norm = mg.nn.BatchNorm2d(4, **F64)
    model.hidden = mg.nn.Linear(4, 4, **F64)
    model.out = spectral_norm(mg.nn.Linear(4, 2, **F64), order="vu")
    return model


def arrays(**shapes):
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(shape) for key, shape in shapes.items()}


def test_a_whole_model_of_paddles():
    given = arrays(
        **{"body.conv.weight_orig": (4, 3, 2, 2), "body.conv.weight_u": 4, "body.conv.weight_v": 12},
        **{"body.conv.bias": 4},
        **{"body.norm.weight": 4, "body.norm.bias": 4, "body.norm._mean": 4, "body.norm._variance": 4},
        **{"hidden.weight": (4, 4), "hidden.bias": 4},
        **{"out.weight_orig": (4, 2), "out.weight_u": 2, "out.weight_v": 4, "out.bias": 2},
    )
    model = discriminator()
    model.body.norm.num_batches_tracked.copy_(mg.tensor(5))
    state = mg.spectral.convert_state(given, "paddle", model)
    assert list(state) == list(model.state_dict())
    model.load_state_dict(state)
    expected = {
        "body.conv.bias": given["body.conv.bias"],
        "body.conv.parametrizations.weight.original": given["body.conv.weight_orig"],
        "body.conv.parametrizations.weight.0._u": given["body.conv.weight_u"],
        "body.conv.parametrizations.weight.0._v": given["body.conv.weight_v"],
        "body.norm.weight": given["body.norm.weight"],
        "body.norm.bias": given["body.norm.bias"],
        "body.norm.running_mean": given["body.norm._mean"],
        "body.norm.running_var": given["body.norm._variance"],
        "body.norm.num_batches_tracked": 5,
        "hidden.weight": given["hidden.weight"].T,
        "hidden.bias": given["hidden.bias"],
        "out.bias": given["out.bias"],
        "out.parametrizations.weight.original": given["out.weight_orig"].T,
        "out.parametrizations.weight.0._u": given["out.weight_u"],
        "out.parametrizations.weight.0._v": given["out.weight_v"],
    }
    compare(model, expected)


def test_a_whole_model_of_chainers(tmp_path):
    given = arrays(
        **{"body/conv/W": (4, 3, 2, 2), "body/conv/W_u": 4, "body/conv/gamma": (), "body/conv/b": 4},
        **{"body/norm/gamma": 4, "body/norm/beta": 4, "body/norm/avg_mean": 4, "body/norm/avg_var": 4},
        **{"hidden/W": (4, 4), "hidden/b": 4, "out/W": (2, 4), "out/W_u": 2, "out/b": 2},
    )
    given["body/norm/N"] = np.asarray(7, np.int32)
    np.savez_compressed(tmp_path / "model.npz", **given)
    model = discriminator(learnable_scale=True)
    with np.load(tmp_path / "model.npz") as file:
        model.load_state_dict(mg.spectral.convert_state(file, "chainer", model))
    expected = {
        "body.conv.bias": given["body/conv/b"],
        "body.conv.parametrizations.weight.original": given["body/conv/W"],
        "body.conv.parametrizations.weight.0.gamma": given["body/conv/gamma"],
        "body.conv.parametrizations.weight.0._u": unit(given["body/conv/W_u"]),
        "body.conv.parametrizations.weight.0._v": unit(given["body/conv/W_u"] @ given["body/conv/W"].reshape(4, 12)),
        "body.norm.weight": given["body/norm/gamma"],
        "body.norm.bias": given["body/norm/beta"],
        "body.norm.running_mean": given["body/norm/avg_mean"],
        "body.norm.running_var": given["body/norm/avg_var"],
        "body.norm.num_batches_tracked": 7,
        "hidden.weight": given["hidden/W"],
        "hidden.bias": given["hidden/b"],
        "out.bias": given["out/b"],
        "out.parametrizations.weight.original": given["out/W"],
        "out.parametrizations.weight.0._u": unit(given["out/W_u"]),
        "out.parametrizations.weight.0._v": unit(given["out/W_u"] @ given["out/W"]),
    }
    compare(model, expected)


def compare(model, expected):
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, wanted in expected.items():
        np.testing.assert_allclose(found[key].numpy(), wanted, rtol=1e-14, err_msg=key)


def test_chainers_scale_multiplies_and_its_other_weight_names():
    """γ W/σ, and a weight that is called otherwise than `W` keeps its name."""
    model = mg.nn.Module()
    model.register_parameter("kernel", mg.nn.Parameter(mg.zeros(3, 2, **F64)))
    model.forward = lambda: model.kernel
    spectral_norm(model, "kernel", order="vu", learnable_scale=True)
    given = arrays(kernel=(3, 2), kernel_u=3, gamma=())
    model.load_state_dict(mg.spectral.convert_state(given, "chainer", model))
    sigma = np.linalg.norm(unit(given["kernel_u"]) @ given["kernel"])
    np.testing.assert_allclose(model.kernel.detach().numpy(), given["gamma"] * given["kernel"] / sigma, rtol=1e-12)


def test_a_chainer_links_own_gamma_is_not_taken_for_the_scale():
    model = mg.nn.Module()
    for name in ("weight", "gamma"):
        model.register_parameter(name, mg.nn.Parameter(mg.zeros(3, 2, **F64)))
    spectral_norm(model, order="vu")
    given = arrays(W=(3, 2), W_u=3, gamma=(3, 2))
    model.load_state_dict(mg.spectral.convert_state(given, "chainer", model))
    np.testing.assert_array_equal(model.gamma.detach().numpy(), given["gamma"])


@pytest.mark.parametrize("source", ["torch", "torch-old"])
def test_torchs_names_and_arrays_or_tensors(source):
    model, twin = discriminator(), discriminator()
    for state in (model.state_dict(), {key: x.numpy() for key, x in model.state_dict().items()}):
        converted = mg.spectral.convert_state(state, source, twin)
        assert all(isinstance(x, mg.Tensor) for x in converted.values())
        twin.load_state_dict(converted)
        compare(twin, {key: x.numpy() for key, x in model.state_dict().items()})


def test_lazy_layers_and_single_precision():
    model = mg.nn.Sequential(spectral_norm(mg.nn.LazyLinear(2), order="vu"))
    given = {key: x.astype(np.float32) for key, x in arrays(**{"0.weight_orig": (5, 2), "0.weight_u": 2}).items()}
    given |= {"0.bias": np.zeros(2, np.float32)}
    model.load_state_dict(mg.spectral.convert_state(given, "paddle", model))
    assert model[0].in_features == 5 and model[0].parametrizations.weight.state._v.dtype == mg.float32
    np.testing.assert_array_equal(model[0].parametrizations.weight.original.detach().numpy(), given["0.weight_orig"].T)


def test_a_zero_weight_without_v_is_loaded():
    model = mg.nn.Sequential(spectral_norm(mg.nn.Linear(3, 2, bias=False, **F64)))
    v = model[0].parametrizations.weight.state._v.numpy().copy()
    model.load_state_dict(mg.spectral.convert_state({"0/W": np.zeros((2, 3)), "0/W_u": np.ones(2)}, "chainer", model))
    np.testing.assert_array_equal(model[0].parametrizations.weight.state._v.numpy(), v)


# What does not fit ----------------------------------------------------------------------------------------------------


def test_errors_name_everything():
    model = discriminator()
    with pytest.raises(ValueError, match="source to be one of torch, torch-old, paddle, chainer; got 'keras'"):
        mg.spectral.convert_state({}, "keras", model)
    given = arrays(**{"out/W": (4, 2), "out/W_u": 2, "out/b": 2, "out/gamma": (), "other/W": 3})
    with pytest.raises(ValueError, match="read as 'chainer', the state does not fit the model") as error:
        mg.spectral.convert_state(given, "chainer", model)
    lines = [line.strip() for line in str(error.value).splitlines()]
    for expected in (
        "out/W: expected (2, 4) as out.parametrizations.weight.original; got (4, 2)",
        "out/gamma: nothing in the model has this name",
        "other/W: nothing in the model has this name",
        "hidden.weight: not in the state",
        "body.norm.running_var: not in the state",
    ):
        assert expected in lines
    assert "body.norm.num_batches_tracked: not in the state" not in lines
    given = arrays(**{"0.weight_orig": (2, 3), "0.bias": 2, "0.weight_u": 2, "0.weight_v": 3})
    single = mg.nn.Sequential(spectral_norm(mg.nn.Linear(3, 2, **F64)))
    message = "0.weight_orig: expected (2, 3) as 0.parametrizations.weight.original; got (3, 2)"
    with pytest.raises(ValueError, match=re.escape(message)):
        mg.spectral.convert_state(given, "paddle", single)  # which is torch's layout
    single.load_state_dict(mg.spectral.convert_state(given, "torch-old", single))


def test_a_tensor_under_two_names_is_refused():
    """Which of them is meant cannot be known."""
    model = mg.nn.Sequential(spectral_norm(mg.nn.Linear(3, 2, bias=False, **F64)))
    old = arrays(**{"0.weight_orig": (2, 3), "0.weight_u": 2, "0.weight_v": 3})
    both = {**model.state_dict(), **{key: mg.tensor(x) for key, x in old.items()}}
    for load in (model.load_state_dict, lambda state: mg.spectral.convert_state(state, "torch", model)):
        with pytest.raises(ValueError, match=r"0\.weight_orig: (unexpected|nothing in the model has this name)"):
            load(both)
    with pytest.raises(ValueError, match="0/W: nothing in the model has this name"):
        mg.spectral.convert_state(
            arrays(**{"0/W": (2, 3), "0/weight": (2, 3)}), "chainer", mg.nn.Sequential(mg.nn.Linear(3, 2, bias=False))
        )


def test_an_array_that_cannot_be_read_is_named(tmp_path):
    np.savez(tmp_path / "model.npz", **{"0/W": np.asarray(None)})  # Chainer's parameter without a shape yet
    model = mg.nn.Sequential(mg.nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"convert_state: '0/W': .*allow_pickle=False"):
        mg.spectral.convert_state(np.load(tmp_path / "model.npz"), "chainer", model)
    with pytest.raises(TypeError, match=r"convert_state: '0\.weight': .*complex128"):
        mg.spectral.convert_state({"0.weight": np.zeros((2, 3), complex)}, "torch", model)


def test_nothing_is_loaded_from_an_old_state_that_does_not_fit():
    model = mg.nn.Sequential(spectral_norm(mg.nn.Linear(3, 2, **F64)))
    before = {key: x.numpy().copy() for key, x in model.state_dict().items()}
    for bad in (mg.zeros(3, 3, **F64), mg.zeros(2, **F64)):
        state = {"0.weight_orig": bad, "0.weight_u": mg.ones(2, **F64), "0.bias": mg.ones(2, **F64)}
        with pytest.raises(ValueError, match=r"0\.parametrizations\.weight\.original: expected \(2, 3\)"):
            model.load_state_dict(state)
    state = {"0.weight_u": mg.ones(2, **F64), "0.bias": mg.ones(2, **F64)}
    with pytest.raises(ValueError, match=r"weight\.original: missing(.|\n)*0\.weight_u: unexpected"):
        model.load_state_dict(state)
    compare(model, before)
