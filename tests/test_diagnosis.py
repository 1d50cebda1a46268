"""`mg.spectral.diagnose` and `compare_gradients` on models of a user's own; and values that stand in for weights."""

import threading

import numpy as np
import pytest
from naive_spectral import matrix, pulled_back, unit
from normalized_layers import F64, layer, parts, same, snapshot

import minigrad as mg
from minigrad import _random
from minigrad._differences import derivative
from minigrad.nn._calls import substituted
from minigrad.nn.utils import remove_spectral_norm, spectral_norm
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral import compare_gradients, diagnose, gradients
from minigrad.spectral.emulation import LIBRARIES
from minigrad.spectral.gradients import library_axis

MEETS = {name: [row.oracle] if row.oracle else [] for name, row in CONVENTIONS.items()}

# Values that stand in -------------------------------------------------------------------------------------------------


def test_a_value_stands_in_for_a_weight_and_nothing_steps():
    module = layer()
    before, x = snapshot(module), mg.randn(3, 6, **F64)
    value = mg.randn(4, 6, **F64).requires_grad_()
    with substituted({(module, "weight"): value}):
        assert module.weight is value
        out = module.train()(x)
        inner = mg.zeros(4, 6, **F64)
        with substituted({(module, "weight"): inner}):
            assert module.weight is inner
        assert module.weight is value
    assert same(before, snapshot(module)) and module.weight is not value
    expected = x.numpy() @ value.detach().numpy().T + module.bias.detach().numpy()
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-13)
    assert mg.grad(out.sum(), parts(module)[0], allow_unused=True) == (None,)
    module(x)
    assert not same(before, snapshot(module))


def test_only_the_weight_named_is_replaced():
    cell = mg.nn.LSTMCell(3, 2, **F64)
    for name in ("weight_ih", "weight_hh"):
        spectral_norm(cell, name, n_init_iterations=0)
    (_, u_ih, _), (_, u_hh, _) = (parts(cell, name) for name in ("weight_ih", "weight_hh"))
    before = u_ih.numpy().copy(), u_hh.numpy().copy()
    with substituted({(cell, "weight_ih"): mg.zeros(8, 3, **F64)}):
        cell(mg.randn(2, 3, **F64))
    np.testing.assert_array_equal(u_ih.numpy(), before[0])
    assert np.abs(u_hh.numpy() - before[1]).max() > 1e-3


def test_a_shared_module_a_nested_call_and_an_exception():
    class Twice(mg.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = mg.nn.Parameter(mg.ones(2, 2))

        def forward(self, x, depth=1):
            if depth < 0:
                raise KeyError("on purpose")
            return (self(x, depth - 1) if depth else x) @ self.weight

    twice = spectral_norm(Twice())
    model = mg.nn.Sequential(twice, twice)
    with substituted({(twice, "weight"): 2 * mg.eye(2)}):
        assert model(mg.ones(1, 2)).tolist() == [[16.0, 16.0]]
        with pytest.raises(KeyError):
            twice(mg.ones(1, 2), depth=-1)
        assert twice.weight.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    with pytest.raises(KeyError), substituted({(twice, "weight"): mg.zeros(2, 2)}):
        twice(mg.ones(1, 2), depth=-1)
    assert twice.weight.tolist()[0][0] == pytest.approx(0.5)


def test_values_are_those_of_one_thread():
    module, read = layer(), []
    with substituted({(module, "weight"): mg.zeros(4, 6, **F64)}):
        thread = threading.Thread(target=lambda: read.append(module.weight))
        thread.start()
        thread.join()
    assert np.abs(read[0].detach().numpy()).max() > 0


def test_values_that_fit_nothing_are_refused():
    for name, value, message in [
        ("bias", mg.ones(4), "'bias' of Linear is not parametrized; weight is"),
        ("weight", mg.ones(6, 4), r"expected a tensor of shape \(4, 6\) for 'weight' of Linear; got \(6, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message), substituted({(layer(), name): value}):
            pass


# diagnose -------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("options", [{}, {"n_init_iterations": 0, "gradient": "exact"}, {"dtype": mg.float32}])
def test_the_numbers_of_every_kind_of_weight(options):
    model = Zoo(**options)
    table = diagnose(model)
    assert named(table) == NAMES
    tolerance = 1e-6 if "dtype" in options else 1e-12
    for row, name in zip(table, NAMES, strict=True):
        made = getattr(owner(model, name)[0].parametrizations, row["parameter"])
        w = matrix(made.original.detach().numpy().astype(np.float64), DIMS.get(name, 0))
        values = np.linalg.svd(w, compute_uv=False)
        if name == "gain":
            sigma_hat = np.linalg.norm(w)
        else:
            sigma_hat = values[0] if "gradient" in options else made.state._u.numpy() @ w @ made.state._v.numpy()
        assert row["shape"] == w.shape
        assert row["sigma_hat"] == pytest.approx(sigma_hat, rel=tolerance)
        assert row["sigma"] == pytest.approx(values[0], rel=1e-12)
        assert row["gap"] == pytest.approx(values[1] / values[0] if len(values) > 1 else 0, rel=1e-12)
        used = getattr(*owner(model, name)).detach().numpy() / row["scale"]
        norm = np.linalg.norm(matrix(used, DIMS.get(name, 0)), 2)
        assert row["norm"] == pytest.approx(norm, rel=max(tolerance, 1e-10))
        assert "lam" not in row
    scales = dict(zip(NAMES, (row["scale"] for row in table), strict=True))
    assert scales["gain"] == 2 and scales["again.weight"] == 0.5 and scales["conv.weight"] == 1
    assert scales["up.weight"] == pytest.approx(table[2]["sigma"], rel=1e-6)
    assert "γ·factor" in str(table)


def test_unconverged_vectors_show():
    rows = diagnose(Zoo(n_init_iterations=0))
    assert all(row["norm"] > 1.01 for row in rows if row["layer"])
    assert all(row["norm"] == pytest.approx(1, abs=1e-3) for row in diagnose(Zoo(n_init_iterations=400)))


def test_lambda_and_the_gradient_of_every_weight():
    """λ = d/dt L((1 + t) W̃) at 0, and (12) from the gradient that a twin without normalization has."""
    model = Zoo()
    table = diagnose(model, model.loss)
    assert named(table) == NAMES
    state = _random.default.get_state()
    for row, name in zip(table, NAMES, strict=True):
        module, parameter = owner(model, name)
        made = getattr(module.parametrizations, parameter)
        w, scale = made.original.detach().numpy(), row["scale"]
        read = {(m, n): getattr(m, n).detach() for m, n in (owner(model, each) for each in NAMES)}
        w_tilde = read[module, parameter]

        def value(t, read=read, key=(module, parameter), w_tilde=w_tilde):
            _random.default.set_state(state)
            with substituted({**read, key: (1 + t) * w_tilde}):
                return model.loss()

        assert row["lam"] == pytest.approx(derivative(lambda t, f=value: f(t).item(), 0.05).value, rel=1e-8, abs=1e-10)
        leaf = w_tilde.clone().requires_grad_()
        (g,) = mg.grad(value(0.0, w_tilde=leaf), [leaf])
        if name == "gain":
            u, v = unit(w), np.ones(1)
        else:
            u, v = made.state._u.numpy(), made.state._v.numpy()
        expected = pulled_back(scale * g.numpy(), w, u, v, DIMS.get(name, 0))
        assert row["grad_norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-9)
        assert abs(row["radial"]) < 1e-12 * max(1, abs(row["lam"])) and row["invariant"]
        _random.default.set_state(state)
    assert str(table).endswith("has ⟨∂L/∂W, W⟩ = 0.")


@pytest.mark.parametrize("dtype", [mg.float32, mg.float64])
@pytest.mark.parametrize("gradient", CONVENTIONS)
def test_a_gradient_that_is_none_of_w_over_sigma_is_named(gradient, dtype):
    mg.manual_seed(4)
    model = mg.nn.Sequential(mg.nn.Linear(5, 6, dtype=dtype), mg.nn.Tanh(), mg.nn.Linear(6, 3, dtype=dtype))
    spectral_norm(model[0], gradient=gradient, n_init_iterations=1)
    spectral_norm(model[2], n_init_iterations=1)
    x = mg.randn(7, 5, dtype=dtype)
    table = diagnose(model, lambda: model(x).sin().mean())
    row, right = table
    assert right["invariant"] and row["invariant"] == bool(CONVENTIONS[gradient].oracle)
    assert ("0.weight" in str(table).split("has ⟨∂L/∂W, W⟩ = 0")[1]) == (not row["invariant"])
    if gradient == "detached":
        assert row["radial"] == pytest.approx(row["lam"], rel=1e-5) and abs(row["lam"]) > 1e-3
    if gradient in ("straight_through", "projected"):
        assert row["radial"] == pytest.approx(row["lam"] * row["sigma_hat"], rel=1e-5)


def test_degenerate_and_frozen_weights_and_those_without_a_part_in_the_loss():
    model = mg.nn.Sequential(*(spectral_norm(mg.nn.Linear(3, 3, **F64), n_init_iterations=1) for _ in range(3)))
    with mg.no_grad():
        parts(model[0])[0].zero_()
    parts(model[1])[0].requires_grad = False
    x = mg.randn(4, 3, **F64)
    zero, frozen, unused = diagnose(model, lambda: model[1](model[0](x) + x).square().sum())
    assert zero["norm"] == zero["sigma"] == zero["grad_norm"] == 0 and np.isnan(zero["gap"])
    assert frozen["grad_norm"] > 0 and not parts(model[1])[0].requires_grad
    assert unused["lam"] is unused["grad_norm"] is unused["radial"] is unused["invariant"] is None
    assert "—" in str(diagnose(model, lambda: model[1](x).sum()))


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


def test_float16_has_the_numbers_and_no_differences():
    model = spectral_norm(mg.nn.Linear(6, 4, dtype=mg.float16))
    x = mg.randn(3, 6).half()
    (row,) = diagnose(model, lambda: model(x).square().sum())
    raw = parts(model)[0].detach().numpy().astype(np.float64)
    assert row["sigma"] == pytest.approx(np.linalg.norm(raw, 2), rel=1e-12)
    assert row["invariant"] and row["grad_norm"] > 0


# Nothing changes ------------------------------------------------------------------------------------------------------


def comparing(model, loss, **options):
    return compare_gradients(model, loss, layers="up", **options)


@pytest.mark.parametrize("call", [diagnose, comparing, lambda *a: comparing(*a, like="keras-tf")])
def test_nothing_of_the_model_changes(call):
    model = Zoo(gradient="projected")
    model.loss().backward()
    model.conv.eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def state():
        return [
            (x.detach().numpy().tobytes(), x.version[0], None if x.grad is None else x.grad.numpy().tobytes())
            for x in tensors.values()
        ], [m.training for m in model.modules()], _random.default.get_state()

    before, out = state(), model.norm.eval()(mg.ones(2, 4, 3, 3, **F64))
    model.norm.train()

    def loss():
        model.up.train()
        return model.loss()

    call(model, loss)
    assert {**dict(model.named_parameters()), **dict(model.named_buffers())}.keys() == tensors.keys()
    assert all(x is tensors[key] for key, x in [*model.named_parameters(), *model.named_buffers()])
    assert state() == before
    out.sum().backward()  # a graph that had saved the running statistics is whole

    def failing():
        model.eval()
        model.loss()
        raise KeyError("on purpose")

    before = state()
    with pytest.raises(KeyError):
        call(model, failing)
    assert state() == before


def test_it_works_inside_of_no_grad():
    model = Zoo()
    with mg.no_grad():
        assert diagnose(model, model.loss)[0]["grad_norm"] > 0
        assert compare_gradients(model, model.loss, layers="up")[0]["meets"] == ["frozen"]


# compare_gradients ----------------------------------------------------------------------------------------------------


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


# like another library -------------------------------------------------------------------------------------------------


def test_every_library_through_any_model():
    model = Zoo(n_init_iterations=0)
    for part in ("up", "again", "table"):
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


# Errors ---------------------------------------------------------------------------------------------------------------


def test_errors():
    plain, module, x = mg.nn.Linear(2, 2), layer(), mg.randn(3, 6, **F64)
    other, zero, drawn = layer(5), layer(), iter(range(100))
    two, half = mg.nn.Sequential(module, layer(1, m=3, n=4)), spectral_norm(mg.nn.Linear(3, 2, dtype=mg.float16))
    with mg.no_grad():
        parts(zero)[0].zero_()

    def loss():
        return module(x).sum()

    def compare(model, loss=loss, **options):
        return lambda: compare_gradients(model, loss, **options)

    for call, error, message in [
        (lambda: diagnose(plain), ValueError, "diagnose: Linear has no spectrally normalized weight. Register one"),
        (compare(plain), ValueError, "compare_gradients: Linear has no spectrally normalized weight"),
        (lambda: diagnose(module, lambda: module(x)), ValueError, r"to return a scalar Tensor.*; got shape \(3, 4\)"),
        (compare(module, mg.tensor(1.0)), TypeError, "expected loss to be a callable, .*; got Tensor"),
        (compare(module, lambda: 1.0), ValueError, "to return a scalar Tensor.*; got float"),
        (compare(module, lambda: module(x).sum() / 0), ValueError, "a finite loss; .* returned -?inf"),
        (lambda: diagnose(module, lambda: module(x).sum() / 0), ValueError, "a finite loss; .* returned -?inf"),
        (compare(module, like="jax"), ValueError, "like to be of torch, .*; got jax"),
        (compare(module, like=["torch", "tf"]), ValueError, "or 'all'; got tf"),
        (compare(two, layers="3"), ValueError, "below layers='3'; there are 0.weight, 1.weight"),
        (compare(module, lambda: module(x).sum() + next(drawn)), ValueError, "a deterministic loss"),
        (compare(module, lambda: other(x).square().sum()), ValueError, "deterministic .* outside of the model"),
        (compare(two), ValueError, "does not depend on 1.weight"),
        (compare(two, lambda: two(x).relu().sum() * 0), ValueError, "does not depend on 0.weight"),
        (compare(module, lambda: x.sum()), ValueError, "does not depend on weight"),
        (compare(zero, lambda: zero(x).sum()), ValueError, "σ of weight is 0"),
        (compare(half, lambda: half(x[:, :3].half()).sum()), TypeError, "weight is float16"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_only_spectral_normalization_makes_a_row():
    class Positive(mg.nn.Parametrization):
        def read(self):
            return self.original.exp()

    model = mg.nn.Sequential(layer(), layer(1, m=3, n=4), mg.nn.Linear(3, 2, **F64))
    remove_spectral_norm(model[0])
    model[2].parametrize("weight", Positive(model[2].weight))
    assert [row["layer"] for row in diagnose(model)] == ["1"]


def test_a_one_dimensional_weight_as_any_library_would_take_it():
    """As a column: one sweep is exact, and all oracles are one but for what the ε of each library leaves."""
    module = mg.nn.Module()
    module.gain, x = mg.nn.Parameter(mg.randn(5, **F64)), mg.randn(5, **F64)
    spectral_norm(module, "gain")
    for row in compare_gradients(module, lambda: (module.gain * x).sin().sum(), like="all"):
        assert ("frozen" in row["meets"]) == (LIBRARIES[row["library"]].gradient == "fixed_uv")
