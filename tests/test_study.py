"""`minigrad study` end to end: the report of one quick run and the numbers beside it; other runs; runs cut short."""

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
from studies import study

import minigrad as mg
from minigrad.ops import conventions
from minigrad.spectral.emulation import LIBRARIES
from minigrad.spectral.libraries import findings, measure
from minigrad.spectral.study import command, lipschitz, models, output, report
from minigrad.spectral.study.report import scientific

markupsafe = pytest.importorskip("markupsafe")  # with jinja2

QUICK = ("--quick", "--steps", "12")


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


def test_numbers_as_one_writes_them():
    assert [scientific(x) for x in (0.0, 0.0312, 1.5, 123.4, 8.13e-14, -2e-7, math.nan)] == [
        "0", "0.031", "1.5", "123", "8.1·10⁻¹⁴", "−2.0·10⁻⁷", "—",
    ]  # fmt: skip


# Other runs -----------------------------------------------------------------------------------------------------------


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
    out = tmp_path / "[bold][" / "out]:x:"  # no style of the terminal's, nor a picture
    assert study(*arguments, "--data", path, "--out", out) == 0
    assert "own.npz" in (out / output.REPORT).read_text(encoding="utf-8")
    told = capsys.readouterr().out
    assert f"Report: {out / output.REPORT} (and" in told
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
    (tmp_path / "training.csv").write_text("of an earlier run")
    assert study(*arguments, "--out", tmp_path) == command.INTERRUPTED
    assert not (tmp_path / "training.csv").exists()
    text = (tmp_path / output.REPORT).read_text(encoding="utf-8")
    assert "interrupted" in text and (">passed<" in text) == (at != "gradients at the node")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["unfinished"] == at


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child there")
@pytest.mark.usefixtures("ctrl_c")
def test_a_real_sigint_ends_in_a_report(tmp_path):
    endless = [sys.executable, "-m", "minigrad", "study", "--steps", "100000", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == command.INTERRUPTED and "Traceback" not in errors
    assert (tmp_path / "out" / output.REPORT).exists()
