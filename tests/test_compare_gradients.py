"""`mg.spectral.compare_gradients` on models of a user's own: conventions and libraries against differences."""

import numpy as np
import pytest
from naive_spectral import pulled_back, unit
from normalized_layers import F64, layer, parts
from normalized_zoo import NAMES, Zoo, named

import minigrad as mg
from minigrad.nn.utils import spectral_norm
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral import compare_gradients, diagnose, gradients
from minigrad.spectral.emulation import LIBRARIES
from minigrad.spectral.gradients import library_axis

MEETS = {name: [row.oracle] if row.oracle else [] for name, row in CONVENTIONS.items()}


@pytest.mark.parametrize("start", [0, 1])
def test_every_convention_meets_its_oracle_through_any_model(start):
    """Unconverged: all oracles differ; a 1-d weight is converged by nature, where they are one."""
    model = Zoo(n_init_iterations=start)
    table = compare_gradients(model, model.loss)
    assert named(table)[:: len(CONVENTIONS)] == NAMES
    for row in table:
        expected = MEETS[row["convention"]]
        if row["parameter"] == "gain":
            expected = ["frozen", "svd", "live"] if expected else []
        assert (row["layer"], row["convention"], row["meets"]) == (row["layer"], row["convention"], expected)
        for oracle in expected:
            assert row[oracle] < 1e-7
        assert (row["relative"] < 1e-12) == (row["convention"] == "fixed_uv" or expected == ["frozen", "svd", "live"])


@pytest.mark.parametrize("activation", [mg.nn.Tanh, mg.nn.ReLU])
def test_in_float32_nothing_right_is_missed_and_nothing_that_is_far_off_met(activation):
    mg.manual_seed(2)
    model = mg.nn.Sequential(
        spectral_norm(mg.nn.Linear(10, 40), n_init_iterations=1),
        activation(),
        spectral_norm(mg.nn.Linear(40, 3), n_init_iterations=1),
    )
    x, y = mg.randn(20, 10), mg.tensor(np.arange(20) % 3)

    def loss(offset=0.0):
        return mg.nn.functional.cross_entropy(model(x), y) + offset - offset

    for row in compare_gradients(model, lambda: loss(1000.0)):  # with noise far above its own rounding
        assert set(row["meets"]) >= set(MEETS[row["convention"]])

    coarse = compare_gradients(model, loss)
    model.to(mg.float64)
    x = x.to(mg.float64)
    for single, double in zip(coarse, compare_gradients(model, loss), strict=True):
        assert double["meets"] == MEETS[double["convention"]]
        assert set(double["meets"]) <= set(single["meets"])
        for oracle in ("frozen", "svd", "live"):
            assert single[f"{oracle}_error"] > double[f"{oracle}_error"]
            if double[oracle] > 0.1:
                assert oracle not in single["meets"]
    assert any(row["meets"] == MEETS[row["convention"]] for row in coarse)


def test_a_planted_wrong_convention_is_seen(monkeypatch):
    """A derivative that is wrong by one part in a million meets nothing, and says by how much it is off."""
    module, x = layer(n_init_iterations=0), mg.randn(5, 6, **F64)
    right = CONVENTIONS["fixed_uv"]
    wrong = right._replace(normalize=lambda w, at: right.normalize(w, at) * (1 + 1e-6 * (w - w.detach())))
    with monkeypatch.context() as patch:
        patch.setitem(CONVENTIONS, "fixed_uv", wrong)
        row = compare_gradients(module, lambda: module(x).sin().mean())[0]
    assert row["meets"] == [] and 1e-8 < row["relative"] < 1e-4
    assert compare_gradients(module, lambda: module(x).sin().mean())[0]["meets"] == ["frozen"]


def test_the_distance_from_the_frozen_gradient():
    """Of straight-through, G, in NumPy, at unconverged vectors."""
    module, g = layer(n_init_iterations=0), mg.randn(4, 6, **F64)
    table = compare_gradients(module, lambda: (module.weight * g).sum())
    w, u, v = (x.detach().numpy() for x in parts(module))
    right = pulled_back(g.numpy(), w, u, v, 0)
    row = next(row for row in table if row["convention"] == "straight_through")
    assert row["relative"] == pytest.approx(np.linalg.norm(g.numpy() - right) / np.linalg.norm(right), rel=1e-10)
    cosine = (right * g.numpy()).sum() / np.linalg.norm(right) / np.linalg.norm(g.numpy())
    assert row["angle"] == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-9)
    along = max(abs((g.numpy() - right).ravel() @ d) for d in directions(w, g.numpy(), np.outer(u, v)))
    assert row["frozen"] == pytest.approx(along / np.linalg.norm(g.numpy()) * abs(u @ w @ v), rel=1e-7)


def directions(w, g, uv):
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(w.size) for _ in range(gradients.RANDOM)] + [g.ravel(), w.ravel(), uv.ravel()]
    return [unit(row) for row in rows]


def test_the_distance_from_the_frozen_gradient_of_a_convolution():
    """In the entries of the filters, each of which stands in many places of the convolution's matrix."""
    module, g = spectral_norm(mg.nn.Conv1d(2, 3, 2, **F64), norm="operator", input_shape=6), mg.randn(3, 2, 2, **F64)
    rows = {row["convention"]: row for row in compare_gradients(module, lambda: (module.weight * g).sum())}
    made = module.parametrizations.weight
    w, u, v = (x.detach().numpy() for x in (made.original, *made.stored()))
    a = np.stack([u @ v[:, tap : tap + 5].T for tap in range(2)], axis=-1)  # σ = ⟨A, W⟩
    right = (g.numpy() - (g.numpy() * w).sum() / (a * w).sum() * a) / (a * w).sum()
    off = np.linalg.norm(g.numpy() - right) / np.linalg.norm(right)
    assert rows["straight_through"]["relative"] == pytest.approx(off, rel=1e-10)
    assert rows["fixed_uv"]["relative"] < 1e-12


def test_at_converged_vectors_all_oracles_are_one():
    module, x = layer(n_init_iterations=3000), mg.randn(5, 6, **F64)
    for row in compare_gradients(module, lambda: module(x).sin().mean()):
        assert row["meets"] == (["frozen", "svd", "live"] if MEETS[row["convention"]] else [])


def test_a_repeated_singular_value():
    """Orthogonal: no derivative of σ₁ for differences to find; with u and v frozen there is one."""
    module, x = layer(m=4, n=4, n_init_iterations=0), mg.randn(5, 4, **F64)
    with mg.no_grad():
        parts(module)[0].copy_(mg.eye(4, **F64))
    meets = {row["convention"]: row["meets"] for row in compare_gradients(module, lambda: module(x).sin().mean())}
    assert "frozen" in meets["fixed_uv"] and "live" in meets["unrolled"] and meets["exact"] == []


def test_a_parameter_of_two_modules_has_a_row_for_each():
    """Each with its own vectors, and its own part of the gradient."""
    one, other = mg.nn.Linear(3, 3, **F64), mg.nn.Linear(3, 3, **F64)
    other.weight = one.weight
    model = mg.nn.Sequential(*(spectral_norm(module, n_init_iterations=0) for module in (one, other)))
    x = mg.randn(4, 3, **F64)
    first, second = diagnose(model, lambda: model(x).sin().sum())
    assert first["sigma"] == second["sigma"] and first["sigma_hat"] != second["sigma_hat"]
    assert first["invariant"] and second["invariant"] and first["lam"] != second["lam"]
    meets = [row["meets"] for row in compare_gradients(model, lambda: model(x).sin().sum())]
    assert meets == [*MEETS.values()] * 2


# like another library -------------------------------------------------------------------------------------------------


def test_every_library_through_any_model():
    model = Zoo(n_init_iterations=0)
    for part in ("up", "table"):
        table = compare_gradients(model, model.loss, like="all", layers=part)
        assert [row["library"] for row in table] == list(LIBRARIES)
        for row in table:
            library = LIBRARIES[row["library"]]
            assert (row["version"], row["ran"]) == (library.version, library.ran)
            assert (row["library"], row["meets"]) == (row["library"], MEETS[library.gradient])
            assert (row["relative"] < 1e-9) == (library.gradient == "fixed_uv")
    assert "read only" in table._repr_html_() and "keras 3.15.1" in str(table)


def test_the_axis_of_every_library_is_that_of_its_own_layout():
    """From the records: the axis that u runs over, and where it is in torch's layout, which is ours."""
    from test_emulate import RECORDED

    layers = {
        "linear": mg.nn.Linear(2, 3),
        "conv2d": mg.nn.Conv2d(2, 3, 2),
        "conv_transpose2d": mg.nn.ConvTranspose2d(2, 3, 2),
        "embedding": mg.nn.Embedding(3, 2),
    }
    checked = 0
    for name, run in RECORDED.items():
        for case in set(layers) & set(run["meta/cases"]):
            to_torch, axis = list(run[f"{case}/1/to_torch"]), int(run[f"{case}/1/axis"])
            dim = 1 if case == "conv_transpose2d" else 0
            assert library_axis(name, layers[case], dim) == to_torch.index(axis), (name, case)
            checked += 1
    assert checked == 4 * len(RECORDED) - 1  # BigGAN has no transposed convolution


def test_several_libraries_and_a_wrong_entry(monkeypatch):
    module, x = layer(n_init_iterations=0), mg.randn(5, 6, **F64)

    def table(**options):
        return compare_gradients(module, lambda: module(x).sin().mean(), **options)

    assert [row["library"] for row in table(like=("haiku", "torch"))] == ["haiku", "torch"]
    (row,) = table(like="haiku")
    assert row["meets"] == ["frozen"]
    for wrong in ({"eps": 3e-4}, {"order": "uv"}, {"form": "clamp"}):  # what differences do not know of is seen
        real = LIBRARIES["haiku"]
        with monkeypatch.context() as patch:
            patch.setattr(gradients, "LIBRARIES", LIBRARIES | {"haiku": real._replace(**wrong)})
            assert table(like="haiku")[0]["meets"] == []


def test_a_one_dimensional_weight_as_any_library_would_take_it():
    """As a column: one sweep is exact, and all oracles are one but for what the ε of each library leaves."""
    module = mg.nn.Module()
    module.gain, x = mg.nn.Parameter(mg.randn(5, **F64)), mg.randn(5, **F64)
    spectral_norm(module, "gain")
    for row in compare_gradients(module, lambda: (module.gain * x).sin().sum(), like="all"):
        assert ("frozen" in row["meets"]) == (LIBRARIES[row["library"]].gradient == "fixed_uv")
