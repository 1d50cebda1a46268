"""`minigrad study`: its mathematics against known values, one quick run end to end, and what it does with bad input."""

import argparse
import csv
import json
import math
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("sklearn")

import markupsafe

import minigrad as mg
from minigrad._differences import derivative
from minigrad._errors import UsageError
from minigrad.ops import conventions
from minigrad.spectral.emulation import LIBRARIES
from minigrad.spectral.libraries import findings, measure
from minigrad.spectral.oracles import ORACLES, sweep, unit
from minigrad.spectral.study import (
    command,
    comparison,
    convergence,
    data,
    lipschitz,
    models,
    opening,
    output,
    report,
    second_order,
)
from minigrad.spectral.study.end_to_end import Around
from minigrad.spectral.study.report import scientific
from minigrad.spectral.study.statistics import holm, interval, quantile, within
from minigrad.spectral.study.verdict import judge

QUICK = ("--quick", "--steps", "12")


def study(*argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in argv]))


# Oracles -------------------------------------------------------------------------------------------------------------


def problem(seed=0, shape=(5, 8)):
    rng = np.random.default_rng(seed)
    weight, upstream = rng.standard_normal((2, *shape))
    u, v = sweep(weight, unit(rng.standard_normal(shape[1])))
    return weight, upstream, u, v


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize("shape", [(5, 8), (8, 3), (1, 6), (6, 1)])
def test_an_oracles_closed_form_is_the_derivative_of_its_function(name, sweeps, shape):
    weight, upstream, u, v = problem(shape=shape)
    oracle = ORACLES[name]
    gradient = oracle.gradient(upstream, weight, u, v, sweeps)
    for direction in np.random.default_rng(1).standard_normal((5, *shape)):
        numeric = derivative(
            lambda t, d=direction: np.vdot(upstream, oracle.normalize(weight + t * d, u, v, sweeps)), 0.05
        )
        assert abs(np.vdot(gradient, direction) - numeric.value) <= max(1e-9, 10 * numeric.error)


def test_the_oracles_agree_at_convergence_and_nowhere_before():
    weight, upstream, u, v = problem()
    apart = [_distance(weight, upstream, u, v)]
    for _ in range(400):
        u, v = sweep(weight, v)
    apart.append(_distance(weight, upstream, u, v))
    assert apart[0] > 0.05
    assert apart[1] < 1e-12


def _distance(weight, upstream, u, v):
    found = [oracle.gradient(upstream, weight, u, v) for oracle in ORACLES.values()]
    return max(np.linalg.norm(a - b) for a in found for b in found) / np.linalg.norm(found[0])


def test_errors_fall_at_the_rates_of_theory():
    layer = opening.Layer("layer", (5, 8), *problem(3)[:1], *problem(3)[2:], problem(3)[1], "loss")
    found = next(part for part in convergence.falling(layer, seed=0) if part is not None)
    assert found.rate["fixed_uv"] == pytest.approx(found.gap**2, rel=0.02)
    assert found.rate["sigma"] == pytest.approx(found.gap**4, rel=0.02)


def test_the_plain_difference_is_a_v():
    layer = opening.Layer("layer", (5, 8), *problem()[:1], *problem()[2:], problem()[1], "loss")
    curve = convergence.step_curve(layer, seed=1)
    best = int(np.argmin(curve.float64))
    assert 10 < best < len(curve.steps) - 10
    assert curve.float64[best] < 1e-9 < min(curve.float32)


# Statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "confidence, freedom, known",  # a printed table of Student's t
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 4, 2.776), (0.99, 5, 4.032), (0.90, 9, 1.833), (0.95, 30, 2.042)],
)
def test_students_t(confidence, freedom, known):
    assert quantile(confidence, freedom) == pytest.approx(known, abs=6e-4)
    assert within(quantile(confidence, freedom), freedom) == pytest.approx(confidence, abs=1e-12)


def test_an_interval_by_hand():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.half == pytest.approx(2.77645 * math.sqrt(2.5 / 5), abs=1e-4)
    assert found.p == pytest.approx(0.0132, abs=1e-4)
    assert interval([0.0, 0.0, 0.0]).p == 1
    assert interval([0.5, 0.5, 0.5]).p == 0


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_difference_is_detected_where_there_is_one_and_not_where_there_is_none():
    rng = np.random.default_rng(0)
    records = [
        comparison.Record(name, seed, 9, "layer", loss, 0.9, 1.0, 1.0, 1.0, 0.0)
        for seed in range(6)
        for base in [rng.standard_normal()]
        for name, loss in (("fixed_uv", base), ("exact", base + 0.01 * rng.standard_normal()), ("detached", base + 1))
    ]
    found = {(p.convention, p.measure): p for p in comparison.differences(records, "fixed_uv")}
    assert found["detached", "loss"].detected and not found["exact", "loss"].detected
    assert not found["detached", "accuracy"].detected and found["detached", "accuracy"].difference.half == 0


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    assert study(*QUICK, "--out", out) == 0
    return out


class Resources(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "data", "srcset", "xlink:href")]


def test_the_report_is_one_self_contained_page(quick):
    text = (quick / output.REPORT).read_text(encoding="utf-8")
    page = Resources(text)
    assert all(url.startswith("#") for url in page.found)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", text)
    assert page.tags.count("svg") >= 14
    assert not re.search(r"\bnan\b|None|Undefined|&lt;svg", text)
    told = "miyato2018spectral", "Not to be taken for one another", "prefers-color-scheme: dark", "· seed 0 ·"
    for part in (">passed<", *told):
        assert part in text


def test_the_ids_in_the_page_are_unique(quick):
    ids = re.findall(r'\bid="([^"]+)"', (quick / output.REPORT).read_text(encoding="utf-8"))
    assert ids and len(ids) == len(set(ids))


def test_the_numbers_beside_it(quick):
    found = json.loads((quick / "results.json").read_text(encoding="utf-8"))
    assert found["passed"] is True and found["unfinished"] == ""
    assert set(found["minigrad"]) == {"command", "version", "seed", "dtype", "machine", "software"}
    tables = {path.stem for path in quick.glob("*.csv")}
    expected = {
        "verdict",
        "layers",
        "residuals",
        "spectra",
        "second_order",
        "lipschitz",
        "libraries",
        "sweeps",
        "rates",
        "steps",
        "tests",
        "losses",
        "training",
        "differences",
    }
    assert tables == expected <= set(found)
    assert len(found["verdict"]) == 3 * len(conventions.CONVENTIONS)
    for name in tables:
        lines = (quick / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(found[name]) + 1 and lines[0] == ",".join(found[name][0])


def test_how_steep_the_network_is(quick):
    """The dense layers by NumPy; SiLU's constant is the largest slope of it."""
    found = json.loads((quick / "results.json").read_text(encoding="utf-8"))
    rows = found["lipschitz"]
    of = {row["layer"]: row for row in found["layers"] if row["step"] == 12}
    x = np.linspace(0, 5, 100_001)
    slope = np.gradient(x / (1 + np.exp(-x)), x).max()
    product = 1.0
    for row in rows[:-3]:
        if row["kind"] == "Linear":
            expected = of[row["layer"]]["sigma"] / of[row["layer"]]["sigma_hat"]
            assert row["reshaped"] == row["constant"]
        else:
            expected = {"SiLU": slope, "Flatten": 1.0}[row["kind"]]
            assert row["reshaped"] is None
        assert row["constant"] == pytest.approx(expected, rel=1e-6)
        product *= expected
    lower, upper, reshaped = (row["constant"] for row in rows[-3:])
    assert 0 < lower < upper and upper == reshaped == pytest.approx(product, rel=1e-6)
    page = (quick / "report.html").read_text(encoding="utf-8")
    assert 'id="lipschitz"' in page and f"{lower:.4f} ≤ L ≤ {upper:.4f}" in page


def test_the_norms_of_convolutions_are_in_the_study():
    network = models.normalized("conv", (8, 8), 10, "fixed_uv", 0)
    found = lipschitz.steepness(3, network, mg.randn(4, 8, 8, dtype=mg.float64), lambda: None)
    first, second = (one for one in found.factors if one.kind == "Conv2d")
    for one in (first, second):
        layer = getattr(network, one.layer)
        reshaped = np.linalg.norm(layer.weight.detach().numpy().reshape(len(layer.weight), -1).astype(np.float64), 2)
        eye = mg.tensor(np.eye(64 * layer.in_channels, dtype=np.float32).reshape(-1, layer.in_channels, 8, 8))
        with mg.no_grad():
            matrix = (layer.eval()(eye) - layer.bias.reshape(-1, 1, 1)).numpy().reshape(len(eye), -1)
        assert one.ratio == pytest.approx(np.linalg.norm(matrix, 2) / reshaped, rel=1e-5)
        assert 1 < one.ratio < one.circular
    assert found.upper > 2 * found.reshaped and f"{first.ratio:.2f} at conv1" in lipschitz.summary(found)


def test_every_residual_is_decided_rightly(quick):
    found = json.loads((quick / "results.json").read_text(encoding="utf-8"))
    node = [r for r in found["residuals"] if r["where"] == "node" and r["vectors"] == "cold"]
    network = [r for r in found["residuals"] if r["where"] == "network"]
    assert node and network
    for row in node + network:
        assert row["meets"] == (conventions.CONVENTIONS[row["convention"]].oracle == row["oracle"])
    for row in found["layers"]:
        assert abs(row["radial"]) < 1e-12 and row["sigma_hat"] <= row["sigma"] * (1 + 1e-7)


def test_the_libraries_are_in_the_report_and_beside_it(quick):
    text = (quick / output.REPORT).read_text(encoding="utf-8")
    with (quick / "libraries.csv").open(newline="", encoding="utf-8") as file:
        found = {row["library"]: row for row in csv.DictReader(file)}
    assert list(found) == list(LIBRARIES)
    assert 'href="#libraries"' in text and '<section id="libraries">' in text
    cells = re.findall(r'<tr id="([\w-]+)">(.*?)</tr>', text, re.DOTALL)
    assert [name for name, _ in cells] == list(LIBRARIES)
    for name, shown in cells:
        row = measure(name)
        assert found[name]["meets"] == (" ".join(row.met) or "none") and found[name]["passed"] == "True"
        assert found[name]["evaluation"] == row.evaluation and float(found[name]["norm_tiny"]) == row.tiny
        assert shown.count("meets") == len(row.met) and "wrong" not in shown
        for part in (row.library.version, row.gradient, row.command, "ran" if row.library.ran else "read only"):
            assert part in shown
        for oracle, held in row.held.items():
            assert float(found[name][f"{oracle}_residual"]) == held.residual
            assert float(found[name][f"{oracle}_error"]) == held.error
            assert f"{scientific(held.residual)} <span" in shown
    for finding in findings([measure(name) for name in LIBRARIES]):
        assert str(markupsafe.escape(report.typeset(finding))) in text


def test_second_derivatives_lack_what_the_differences_say(quick):
    found = json.loads((quick / "results.json").read_text(encoding="utf-8"))["second_order"]
    assert [row["layer"] for row in found] == ["hidden1", "hidden2", "output"]
    for row in found:
        assert 0.01 < row["missing"] <= row["most"] and 0 < row["gap"] < 1
        assert row["residual"] <= max(1e-9, 10 * row["error"]) and row["error"] < 1e-6
        assert max(row["identity"], row["identity_fixed"]) < 1e-10
    text = (quick / output.REPORT).read_text(encoding="utf-8")
    assert '<section id="second-order">' in text and f"{found[0]['missing']:.2%}" in text


class OneLayer(mg.nn.Module):
    def __init__(self, outputs, inputs):
        super().__init__()
        self.layer = mg.nn.Linear(inputs, outputs).to(mg.float64)
        mg.nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.layer(x)


def around_a_layer(shape):
    """A layer, the network that is nothing else, and its loss W ↦ L(W/σ₁(W)) in NumPy."""
    weight, _, u, v = problem(shape=shape)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((9, shape[1])), rng.integers(0, shape[0], 9)

    def loss(weight):
        logits = x @ (weight / np.linalg.svd(weight, compute_uv=False)[0]).T
        logits = logits - logits.max(1, keepdims=True)
        return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(9), y]))

    around = Around(lambda: OneLayer(*shape), OneLayer(*shape), {"layer": weight}, (mg.tensor(x), mg.tensor(y)))
    return opening.Layer("layer", shape, weight, u, v, np.ones(shape), "loss"), around, loss


@pytest.mark.parametrize("shape", [(5, 8), (8, 3), (1, 6), (6, 1)])
def test_the_hessian_is_that_of_the_loss(shape):
    layer, around, loss = around_a_layer(shape)
    left, _, right = np.linalg.svd(layer.weight)
    rng = np.random.default_rng(7)
    d, e = (unit(x) for x in rng.standard_normal((2, *shape)))
    product, of_weight, gradient = second_order._products(layer, around, "exact", left[:, 0], right[0], [d])
    h = 1e-3
    corners = [(a, b, loss(layer.weight + a * h * d + b * h * e)) for a in (1, -1) for b in (1, -1)]
    mixed = sum(a * b * value for a, b, value in corners) / (4 * h * h)
    assert np.vdot(product, e) == pytest.approx(mixed, abs=1e-5)
    found = [one for one in second_order.second_order(7, layer, around, 8) if one is not None]
    assert len(found) == 1 and found[0].step == 7
    if shape[0] > 1:
        np.testing.assert_allclose(of_weight, -gradient, atol=1e-12)
        assert found[0].missing > 1e-3 and found[0].identity < 1e-10 and found[0].residual < 1e-9
    else:  # one class: the loss is 0 whatever the weight
        assert math.isnan(found[0].missing) and "no gradient" in second_order.summary(found)


def test_what_is_lacking_is_the_turning_of_the_pair():
    """−(λ/σ)(du vᵀ + u dvᵀ), with du and dv from the singular value decomposition."""
    layer, around, _ = around_a_layer((5, 8))
    left, s, right = np.linalg.svd(layer.weight)
    rng = np.random.default_rng(8)
    along = [unit(rng.standard_normal(40)).reshape(5, 8) for _ in range(second_order.DIRECTIONS)]
    exact = second_order._products(layer, around, "exact", left[:, 0], right[0], along)
    weight = mg.tensor(layer.weight / s[0], requires_grad=True)
    x, y = around.batch
    (upstream,) = mg.grad(mg.nn.functional.cross_entropy(x @ weight.T, y), weight)
    lam, ratios = np.vdot(upstream.numpy(), layer.weight / s[0]), []
    for d, product in zip(along, exact, strict=False):
        inner, sigma = left.T @ d @ right.T, np.append(s, [0, 0, 0])
        du = sum((s[0] * inner[i, 0] + s[i] * inner[0, i]) / (s[0] ** 2 - s[i] ** 2) * left[:, i] for i in range(1, 5))
        turned = [s[0] * inner[0, i] + sigma[i] * (inner[i, 0] if i < 5 else 0) for i in range(8)]
        dv = sum(turned[i] / (s[0] ** 2 - sigma[i] ** 2) * right[i] for i in range(1, 8))
        lacking = -lam / s[0] * (np.outer(du, right[0]) + np.outer(left[:, 0], dv))
        ratios.append(np.linalg.norm(lacking) / np.linalg.norm(product))
    (found,) = [one for one in second_order.second_order(0, layer, around, 8) if one is not None]
    assert (found.missing, found.most) == pytest.approx((np.mean(ratios), max(ratios)), rel=1e-9)
    assert found.gap == pytest.approx(s[1] / s[0])


def test_a_hessian_with_fixed_vectors_is_told_from_the_true_one(monkeypatch):
    layer, around, _ = around_a_layer((5, 8))
    honest = second_order._products
    monkeypatch.setattr(second_order, "_products", lambda a, b, name, *rest: honest(a, b, OTHER[name], *rest))
    found = next(one for one in second_order.second_order(0, layer, around, 8) if one is not None)
    assert found.residual > 1e-3 > found.identity


OTHER = {"exact": "fixed_uv", "fixed_uv": "exact"}


@pytest.fixture
def numbers_only(monkeypatch):
    """Draw no figures: for tests of everything else."""
    monkeypatch.setattr(report, "render", lambda *args: "")


def test_the_same_seed_gives_the_same_numbers(numbers_only, tmp_path):
    arguments = ("--quick", "--steps", "4", "--conventions", "fixed_uv,exact", "--layers", "hidden2")
    for name in "ab":
        assert study(*arguments, "--out", tmp_path / name) == 0
    for name in ("residuals", "training", "layers"):
        assert (tmp_path / "a" / f"{name}.csv").read_bytes() == (tmp_path / "b" / f"{name}.csv").read_bytes()


def test_the_convolutional_net_on_data_of_ones_own(tmp_path, capsys):
    rng = np.random.default_rng(0)
    path = tmp_path / "own.npz"
    np.savez(path, x=rng.standard_normal((60, 2, 6, 6)), y=rng.integers(0, 3, 60))
    arguments = (
        "--quick",
        "--steps",
        "3",
        "--model",
        "conv",
        "--layers",
        "conv1",
        "--conventions",
        "fixed_uv,detached",
    )
    assert study(*arguments, "--data", path, "--out", tmp_path / "out") == 0
    assert "own.npz" in (tmp_path / "out" / output.REPORT).read_text(encoding="utf-8")
    told = capsys.readouterr().out
    assert "Libraries: 10 of 14 meet (a) frozen" in told and "H·D lacks" in told and "at conv1 (ρ =" in told


@pytest.mark.parametrize(
    "victim, impostor, words",
    [("fixed_uv", "detached", "fixed_uv misses oracle"), ("detached", "fixed_uv", "detached meets oracle")],
)
def test_a_planted_wrong_convention_fails_the_study(victim, impostor, words, numbers_only, tmp_path, monkeypatch):
    honest = conventions.apply
    monkeypatch.setattr(
        conventions, "apply", lambda name, *a, **k: honest(impostor if name == victim else name, *a, **k)
    )
    arguments = ("--quick", "--steps", "2", "--layers", "hidden2", "--conventions", "fixed_uv,detached")
    assert study(*arguments, "--out", tmp_path) == 1
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["passed"] is False and words in found["sentence"]


def test_a_weight_of_one_row_may_meet_every_oracle():
    """There one sweep converges, the three oracles are one function, and each convention rightly meets all of them."""
    weight, upstream, _, _ = problem(shape=(1, 6))
    u, v = sweep(weight, np.ones(6))
    layer = opening.Layer("row", (1, 6), weight, u, v, upstream, "loss")
    names = tuple(conventions.CONVENTIONS)
    openings = [part for part in opening.measure(0, layer, names, 8, True, 0) if part is not None]
    met = [r for r in openings[0].residuals["cold"] if r.convention == "fixed_uv" and r.meets]
    assert {r.oracle for r in met} == set(ORACLES)
    assert judge(openings, ("fixed_uv", "exact", "unrolled")).passed


STAGES = ["gradients at the node", "second derivatives", "the libraries' gradients", "training under the conventions"]


@pytest.mark.parametrize("at", STAGES)
def test_ctrl_c_leaves_what_is_finished(at, tmp_path, monkeypatch):
    from minigrad.spectral.study import terminal

    stage = terminal.Terminal.stage

    def interrupted(self, name, total):
        if name == at:
            raise KeyboardInterrupt
        return stage(self, name, total)

    monkeypatch.setattr(terminal.Terminal, "stage", interrupted)
    arguments = ("--quick", "--steps", "2", "--layers", "hidden2", "--conventions", "fixed_uv")
    assert study(*arguments, "--out", tmp_path) == command.INTERRUPTED
    text = (tmp_path / output.REPORT).read_text(encoding="utf-8")
    assert "interrupted" in text and (">passed<" in text) == (at != "gradients at the node")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["unfinished"] == at


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child there")
def test_a_real_sigint_ends_in_a_report(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "minigrad", "study", "--steps", "100000", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    while not (tmp_path / "out").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == command.INTERRUPTED and "Traceback" not in errors
    assert (tmp_path / "out" / output.REPORT).exists()


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--steps", "-3"), "at least 1 training step; got -3"),
        (("--steps", "0"), "got 0"),
        (("--seed", "-1"), "not negative"),
        (("--model", "gan"), "expected one of mlp, conv; got 'gan'"),
        (("--conventions", "fixed_uv,wrong"), "'wrong'; choose among fixed_uv"),
        (("--layers", "hidden9"), "'hidden9'; choose among hidden1, hidden2, output"),
        (("--device", "tpu"), "cpu or cuda; got 'tpu'"),
        (("--data", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_a_wrong_argument(arguments, words, tmp_path):
    with pytest.raises(UsageError, match=re.escape(words)):
        study(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cuda_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(mg.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no usable CUDA device"):
        study("--device", "cuda", "--out", tmp_path)


X, Y = np.random.default_rng(0).standard_normal((40, 6)), np.arange(40) % 2


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x": X}, "'y' is missing"),
        ({"x": X, "y": Y[:9]}, "got (40, 6) and (9,)"),
        ({"x": X.ravel(), "y": Y}, "expected x of shape (examples, …)"),
        ({"x": X[:5], "y": Y[:5]}, "at least 20 examples"),
        ({"x": np.where(X[3, 2] == X, np.nan, X), "y": Y}, "1 that are NaN or infinite, the first at (3, 2)"),
        ({"x": X.astype(str), "y": Y}, "expected numbers in x"),
        ({"x": X, "y": Y + 0.5}, "whole numbers"),
        ({"x": X, "y": 0 * Y}, "at least two classes"),
        ({"x": 0 * X, "y": Y}, "examples that differ"),
    ],
)
def test_wrong_arrays(arrays, words, tmp_path):
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=re.escape(words)):
        data.load(str(path), 0)


def test_a_file_that_is_no_archive(tmp_path):
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("cut.npz", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=r"expected an \.npz"):
            data.load(str(tmp_path / name), 0)
    np.savez(tmp_path / "objects.npz", x=np.array([{}] * 30), y=np.arange(30))
    with pytest.raises(UsageError, match=r"expected an \.npz of plain arrays"):
        data.load(str(tmp_path / "objects.npz"), 0)


def test_flat_data_for_the_convolutional_net(tmp_path):
    np.savez(tmp_path / "flat.npz", x=X, y=Y)
    with pytest.raises(UsageError, match="expected images"):
        study("--quick", "--model", "conv", "--data", tmp_path / "flat.npz", "--out", tmp_path / "out")


def test_an_unwritable_folder_is_noticed_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out: expected a folder that can be written"):
        study("--quick", "--out", tmp_path / "file" / "out")


def test_a_failing_write_leaves_the_older_report(tmp_path, monkeypatch):
    output.write(tmp_path, "old", {"a": 1}, {"t": [{"k": 1}]})

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.Path, "write_text", full)
    with pytest.raises(UsageError, match="No space left"):
        output.write(tmp_path, "new", {"a": 2}, {"t": [{"k": 2}]})
    assert (tmp_path / output.REPORT).read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {output.REPORT, "results.json", "t.csv"}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        UsageError, match=re.escape('jinja2, which is not installed here. pip install "minigrad[study]"')
    ):
        study("--quick", "--out", tmp_path)


def test_numbers_as_one_writes_them():
    assert [scientific(x) for x in (0.0, 0.0312, 1.5, 123.4, 8.13e-14, -2e-7, math.nan)] == [
        "0", "0.031", "1.5", "123", "8.1·10⁻¹⁴", "−2.0·10⁻⁷", "—",
    ]  # fmt: skip
