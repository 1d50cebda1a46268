"""`mg.spectral.emulate` against what the libraries themselves computed: `tests/golden/`."""

import re
from pathlib import Path

import numpy as np
import pytest
from naive_spectral import matrix, unit

import minigrad as mg
from minigrad._differences import derivative
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral.emulation import LIBRARIES
from minigrad.spectral.oracles import ORACLES

GOLDEN = Path(__file__).parent / "golden"
RAN = [name for name, library in LIBRARIES.items() if library.ran]
RECORDED = {name: dict(np.load(GOLDEN / f"{name}.npz", allow_pickle=False)) for name in RAN}
TOLERANCE = {name: 1e-5 if name == "keras-torch" else 1e-9 for name in RAN}  # that one computes in float32
RUNS = [(name, case, n) for name in RAN for case in RECORDED[name]["meta/cases"] for n in (1, 3)]


def recorded(name, case, n):
    """The arrays of one run, by the names that the README of `tests/golden/` explains."""
    return {key.split("/")[2]: x for key, x in RECORDED[name].items() if key.startswith(f"{case}/{n}/")}


def residual(got, wanted):
    """The largest difference, relative to the largest entry."""
    return np.abs(got - wanted).max() / np.abs(wanted).max()


def replayed(name, case, n, v=None):
    """The recorded calls, each from the state that the one before it left: the residual of every recorded array.

    `v`: given to the first call where the library itself has none.
    """
    run = recorded(name, case, n)
    weight, u, v = mg.tensor(run["W"]), mg.tensor(run["u_0"]), mg.tensor(run["v_0"]) if "v_0" in run else v
    found = {}
    for k in (1, 2, 3, "eval"):
        weight.requires_grad_()
        options = {"axis": int(run["axis"]), "n_power_iterations": n, "training": k != "eval"}
        call = mg.spectral.emulate(name, weight, u, v, **options)
        got = {"W_bar": call.weight_bar.detach(), "u": call.u, "v": call.v, "W_after": call.weight_after}
        if k != "eval":
            got |= {"sigma": call.sigma, "dW": mg.grad(call.weight_bar, weight, mg.tensor(run[f"G_{k}"]))[0]}
        found |= {f"{key}_{k}": residual(x.numpy(), run[f"{key}_{k}"]) for key, x in got.items() if f"{key}_{k}" in run}
        if f"W_after_{k}" not in run:  # seen to be untouched, bit for bit
            found[f"W_after_{k}"] = residual(call.weight_after.numpy(), run["W"])
        weight, u, v = call.weight_after, call.u, call.v
    inputs = {"W", "u_0", "v_0", "layout", "axis", "to_torch", "G_1", "G_2", "G_3"}
    assert set(run) - inputs <= set(found), "recorded, and compared with nothing"
    return found


# What they computed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case", "n"), RUNS)
def test_every_recorded_number(name, case, n):
    found = replayed(name, case, n)
    assert len(found) >= 18
    assert {key: x for key, x in found.items() if not x < TOLERANCE[name]} == {}
    assert LIBRARIES[name].overwrites != "never" or not any(found[f"W_after_{k}"] for k in (1, 2, 3, "eval"))


def test_the_records_are_those_of_the_table():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(RAN) == set(LIBRARIES) - {"aidotnet"}
    for name in RAN:
        meta, library = {key[5:]: x for key, x in RECORDED[name].items() if key.startswith("meta/")}, LIBRARIES[name]
        assert meta["order"].item().replace(",", "") == library.order
        assert (meta["eps_form"], meta["eps"]) == (library.form, library.eps)
        assert meta["eval_rule"].item().replace("stateless", "sweep") == library.evaluation
        assert (meta["eval_rule"] == "stateless") == (library.keeps == "never")
        assert meta["overwrites_raw"] == (library.overwrites != "never")
        versions = re.findall(r"\d[\w.]+", library.version)
        assert versions and all(version in meta["version"].item() for version in versions)


# A wrong entry of the table is seen -----------------------------------------------------------------------------------

ENTRIES = {
    "order": ("uv", "vu"),
    "form": ("clamp", "add", "sqrt"),
    "gradient": ("fixed_uv", "detached", "straight_through", "elementwise"),
    "evaluation": ("stored", "sweep", "sweep1", "raw"),
    "overwrites": ("never", "training", "always"),
    "keeps": ("never", "training", "always"),
}


def same(library, column, entry):
    """Whether the entry says the same of this library."""
    if entry == "stored" and library.overwrites == "training":
        return True  # σ of the W̄ that is left, at the vectors that are left, is 1
    if (getattr(library, column), entry) == ("training", "always"):  # evaluation makes nothing that could be left
        return library.evaluation == "raw" or (column == "keeps" and library.evaluation == "stored")
    return entry == {"projected": "straight_through"}.get(getattr(library, column), getattr(library, column))


WRONG = [
    (name, column, entry)
    for name in RAN
    for column, entries in ENTRIES.items()
    for entry in entries
    if not same(LIBRARIES[name], column, entry)
] + [(name, "eps", factor * LIBRARIES[name].eps) for name in RAN for factor in (0.5, 2.0)]


@pytest.mark.parametrize(("name", "column", "entry"), WRONG)
def test_a_wrong_entry_misses_the_records(name, column, entry, monkeypatch):
    monkeypatch.setitem(LIBRARIES, name, LIBRARIES[name]._replace(**{column: entry}))

    def misses(case, n):
        run = recorded(name, case, n)
        v = mg.tensor(unit(np.ones(run["W"].size // run["u_0"].size)).astype(run["W"].dtype))
        return any(x > 1e-4 for x in replayed(name, case, n, v).values())

    # `tiny` first: there, a wrong ε is seen
    assert any(misses(case, n) for case in reversed(RECORDED[name]["meta/cases"]) for n in (1, 3))


# What their gradients are derivatives of ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAN)
@pytest.mark.parametrize("case", ["linear", "wide", "conv2d", "embedding"])
def test_the_oracle_that_each_meets(name, case):
    """The recorded ∂L/∂W of a first call, far from convergence, against differences of the three functions W ↦ W̄."""
    run, library = recorded(name, case, 1), LIBRARIES[name]
    axis = int(run["axis"])
    w, g, grad = (matrix(run[key].astype(np.float64), axis) for key in ("W", "G_1", "dW_1"))
    u, v = swept(library, w, run["u_0"], run.get("v_0"))
    along = np.random.default_rng(0).standard_normal(w.shape)

    def difference(oracle):
        if oracle.name == "live" and library.order == "vu":  # which is the other order, of the transpose
            return derivative(lambda t: (oracle.normalize((w + t * along).T, v, run["u_0"]).T * g).sum(), 1e-3).value
        start = run["v_0"] if oracle.name == "live" else v
        return derivative(lambda t: (oracle.normalize(w + t * along, u, start) * g).sum(), 1e-3).value

    slope = (grad * along).sum()
    differences = {kind: difference(oracle) for kind, oracle in ORACLES.items()}
    agreeing = {kind for kind, value in differences.items() if abs(slope - value) < 1e-3 * abs(value)}
    expected = CONVENTIONS[library.gradient].oracle
    assert agreeing == ({expected} if expected else set())
    if expected:
        assert residual(grad, ORACLES[expected].gradient(g, w, u, v)) < TOLERANCE[name]


def swept(library, w, u, v):
    """The vectors after one sweep, in NumPy."""

    def normalized(x):
        size, eps = np.linalg.norm(x), library.eps
        return x / {"clamp": max(size, eps), "add": size + eps, "sqrt": np.sqrt(size**2 + eps)}[library.form]

    if library.order == "uv":
        u = normalized(w @ v)
        return u, normalized(w.T @ u)
    v = normalized(w.T @ u)
    return normalized(w @ v), v


def test_which_oracles_the_libraries_meet():
    meets = {name: CONVENTIONS[library.gradient].oracle for name, library in LIBRARIES.items()}
    assert [name for name, oracle in meets.items() if oracle is None] == [
        "paddle-op",
        "keras-tf",
        "keras-torch",
        "aidotnet",
    ]
    assert {oracle for oracle in meets.values() if oracle} == {"frozen"}


# What no record has ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "side"), [((1,), 1), ((2, 2), 2), ((5, 3), 4), ((4, 2, 2), 4), ((17, 1), 5)])
def test_aidotnet_takes_a_padded_square(shape, side):
    rng = np.random.default_rng(0)
    w, g, u = rng.standard_normal(shape), rng.standard_normal(shape), unit(rng.standard_normal(side))
    square = np.zeros(side * side)
    square[: w.size] = w.ravel()
    square = square.reshape(side, side)
    new_u, new_v = swept(LIBRARIES["aidotnet"], square, u, None)
    for training in (True, False):
        weight = mg.tensor(w, requires_grad=True)
        call = mg.spectral.emulate("aidotnet", weight, mg.tensor(u), training=training)
        np.testing.assert_allclose(call.weight_bar.detach().numpy(), w / (new_u @ square @ new_v), rtol=1e-13)
        np.testing.assert_array_equal(mg.grad(call.weight_bar, weight, mg.tensor(g))[0].numpy(), g)
        np.testing.assert_allclose(call.u.numpy(), new_u, rtol=1e-13)
        np.testing.assert_allclose(call.v.numpy(), new_v, rtol=1e-12, atol=1e-16)
        np.testing.assert_array_equal(call.weight_after.numpy(), w)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_given_is_changed_and_nothing_returned_will_be(name, training):
    rng = np.random.default_rng(0)
    given = [rng.standard_normal((4, 4)), unit(rng.standard_normal(4)), unit(rng.standard_normal(4))]
    weight, u, v = map(mg.tensor, given)
    call = mg.spectral.emulate(name, weight.requires_grad_(), u, v, training=training)
    for x, before in zip((weight.detach(), u, v), given, strict=True):
        np.testing.assert_array_equal(x.numpy(), before)
    assert call.weight_bar.requires_grad and not any(x.requires_grad for x in call[1:])
    after = call.weight_after.numpy().copy()
    with mg.no_grad():
        weight.zero_()
    np.testing.assert_array_equal(call.weight_after.numpy(), after)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_and_the_zero_weight(name, dtype):
    vectors = np.promote_types(dtype, np.float32)
    weight, x = mg.zeros(4, 4, dtype=np.dtype(dtype), requires_grad=True), mg.tensor(unit(np.ones(4)).astype(vectors))
    for training in (True, False):
        call = mg.spectral.emulate(name, weight, x, x, training=training)
        assert call.weight_bar.dtype == call.weight_after.dtype == dtype
        assert call.sigma.shape == () and call.sigma.dtype == call.u.dtype == call.v.dtype == vectors
        assert not call.weight_bar.detach().numpy().any()
        assert np.isfinite(mg.grad(call.weight_bar.sum(), weight)[0].numpy()).all()


def test_errors():
    w, u, v = mg.ones(3, 4), mg.ones(3), mg.ones(4)
    with pytest.raises(ValueError, match=re.escape(f"one of {', '.join(LIBRARIES)}; got 'jax'")):
        mg.spectral.emulate("jax", w, u, v)
    with pytest.raises(ValueError, match="n_power_iterations of at least 1; got 0"):
        mg.spectral.emulate("torch", w, u, v, n_power_iterations=0)
    with pytest.raises(ValueError, match="'torch' trains from v too; got v=None"):
        mg.spectral.emulate("torch", w, u)
    with pytest.raises(ValueError, match="'torch-old' evaluates from v too; got v=None"):
        mg.spectral.emulate("torch-old", w, u, training=False)
    assert mg.spectral.emulate("keras-jax", w, u, training=False).v is None
    for name in LIBRARIES:
        for training in (True, False):
            with pytest.raises(ValueError, match=r"expected u of shape \((3|4),\)"):
                mg.spectral.emulate(name, w, mg.ones(2), v, training=training)
            with pytest.raises(TypeError, match="expected u of dtype float32"):
                mg.spectral.emulate(name, mg.ones(4, 4), mg.ones(4, dtype=mg.float64), v, training=training)
            with pytest.raises(RuntimeError, match="u is a constant"):
                mg.spectral.emulate(name, mg.ones(4, 4), mg.ones(4, requires_grad=True), v, training=training)
            with pytest.raises(IndexError, match="expected dim in"):
                mg.spectral.emulate(name, w, u, v, axis=2, training=training)
