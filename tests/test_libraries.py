"""`minigrad.spectral.libraries` and `minigrad libraries`: the rows against formulas by hand, and the table printed."""

import re
import shutil
import sys
import unicodedata

import numpy as np
import pytest
from naive_spectral import pulled_back, sweeps, unit

from minigrad import cli
from minigrad._libraries import WIDTH
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral import libraries
from minigrad.spectral.emulation import LIBRARIES
from minigrad.spectral.libraries import Problem, findings, measure, summary

WRONG = {"paddle-op", "keras-tf", "keras-torch", "aidotnet"}


@pytest.fixture(scope="module")
def rows(device):
    return {name: measure(name, device=device) for name in LIBRARIES}


# The rows -------------------------------------------------------------------------------------------------------------


def test_which_oracle_each_meets(rows):
    assert {name: row.met for name, row in rows.items()} == {
        name: [] if name in WRONG else ["frozen"] for name in LIBRARIES
    }
    for name, row in rows.items():
        assert row.passed and row.cold < 0.99  # far from convergence, where the oracles differ
        for held in row.held.values():
            assert held.error < 1e-12 and len(held.along) == 19
            assert held.residual < 1e-12 if held.meets else held.residual > 1e-3, (name, held.oracle)


@pytest.mark.parametrize("name", [name for name in LIBRARIES if name != "aidotnet"])
def test_the_numbers_are_those_of_formulas_by_hand(name, rows):
    row, given, library = rows[name], Problem(LIBRARIES[name], 0), LIBRARIES[name]
    w, g = (x.T if given.axis else x for x in (given.weight, given.upstream))
    u, v, sigma = sweeps(w, *given.start, 1, library.order)
    left, _, right = np.linalg.svd(w)
    paper, exact = pulled_back(g, w, u, v, 0), pulled_back(g, w, left[:, 0], right[0], 0)

    def live(t, d):
        return (g * (w + t * d)).sum() / sweeps(w + t * d, *given.start, 1, library.order)[2]

    along = [unit(d) for d in (g, w, np.outer(u, v))]
    wanted = {
        "frozen": [(paper * d).sum() for d in along],
        "svd": [(exact * d).sum() for d in along],
        "live": [(live(1e-5, d) - live(-1e-5, d)) / 2e-5 for d in along],
    }
    scale, near = np.linalg.norm(g) / sigma, 1e-3 if name == "haiku" else 1e-5  # the formulas have no ε
    got = {"paddle-op": g * (1 - np.outer(u, v) * w.sum() / sigma) / sigma}.get(name, g if name in WRONG else paper)
    for oracle, held in row.held.items():
        assert held.along[-3:] == ["G", "W", "u vᵀ"]
        np.testing.assert_allclose(held.numeric[-3:] * scale, wanted[oracle], rtol=near, atol=near * scale)
        np.testing.assert_allclose(held.analytic[-3:] * scale, [(got * d).sum() for d in along], atol=near * scale)
    assert row.radial == pytest.approx((got * w).sum(), rel=near, abs=1e-12)
    assert row.lam == pytest.approx((g * w).sum() / sigma, rel=near)
    assert row.relative == pytest.approx(np.linalg.norm(got - paper) / np.linalg.norm(paper), rel=near, abs=1e-12)
    cosine = (got * paper).sum() / np.linalg.norm(got) / np.linalg.norm(paper)
    assert np.cos(np.radians(row.angle)) == pytest.approx(cosine, abs=near)


def test_the_square_of_aidotnet(rows):
    given = Problem(LIBRARIES["aidotnet"], 0)
    w, g = given.weight, given.upstream
    square = np.append(w.ravel(), np.zeros(10)).reshape(8, 8)
    u, v, sigma = sweeps(square, *given.start, 1, "vu")
    slope = np.outer(u, v).ravel()[:54].reshape(6, 9)
    np.testing.assert_allclose(given.paper, (g - (g * w).sum() / sigma * slope) / sigma, rtol=1e-9, atol=1e-12)
    largest = np.linalg.svd(square, compute_uv=False)[0]
    assert rows["aidotnet"].cold == pytest.approx(sigma / largest)
    assert rows["aidotnet"].converged == pytest.approx(np.linalg.norm(w, 2) / largest)


def test_what_else_a_call_does(rows):
    evaluation = {
        libraries.STORED: {"torch", "torch-old", "paddle", "equinox"},
        libraries.RAW: {"keras-jax", "keras-tf", "keras-torch"},
        libraries.AGAIN: {"paddle-op", "chainer", "flax-linen", "flax-nnx", "haiku", "biggan", "aidotnet"},
    }
    for what, names in evaluation.items():
        assert {name for name, row in rows.items() if row.evaluation == what} == names
    overwritten = {name: row.overwritten for name, row in rows.items() if row.overwritten != "never"}
    assert overwritten == {"keras-tf": "training", "keras-torch": "training", "flax-nnx": "always"}
    assert all(row.forward < 1e-15 for row in rows.values())
    for name in LIBRARIES:
        stays = name in evaluation[libraries.STORED] or name == "paddle-op"  # which keeps no step
        assert (rows[name].evaluation_gap < 1e-15) == stays


@pytest.mark.parametrize("name", [name for name in LIBRARIES if name not in ("paddle-op", "aidotnet")])
def test_what_epsilon_does_to_a_tiny_weight(name, rows):
    library, lengths = LIBRARIES[name], [1.0]
    for _ in "vu":  # of the vectors, as the sweep goes on from the leading pair
        raw = 1e-6 * lengths[-1]
        below = {"clamp": max(raw, library.eps), "add": raw + library.eps, "sqrt": np.sqrt(raw**2 + library.eps)}
        lengths.append(raw / below[library.form])
    assert rows[name].tiny == pytest.approx(1 / (lengths[1] * lengths[2]))
    assert name != "chainer" or rows[name].tiny == pytest.approx(6)


def test_directions_have_nothing_to_do_with_what_they_test():
    given = Problem(LIBRARIES["torch"], 0)
    drawn = np.random.default_rng(given.directions).standard_normal(given.weight.size)
    for x in (given.weight, given.upstream):
        assert abs(unit(drawn) @ unit(x.ravel())) < 0.5


@pytest.mark.parametrize("seed", [1, 2, 2**64 - 1])
def test_other_seeds_other_numbers_same_verdicts(seed, rows):
    for name, row in rows.items():
        other = measure(name, seed)
        assert other.passed and other.met == row.met and other.evaluation == row.evaluation
        assert other.lam != row.lam and other.overwritten == row.overwritten
    assert measure("torch", seed).lam == measure("torch", seed).lam


def test_an_unknown_library():
    with pytest.raises(ValueError, match=r"measure: expected like to be one of torch, .*; got 'theano'"):
        measure("theano")


def test_findings_name_the_libraries_that_show_them(rows):
    told = findings(list(rows.values()))
    for names, words in {
        "keras-tf, keras-torch, aidotnet (read only)": "gets G itself",
        "paddle-op (": "entry by entry",
        "keras-tf, keras-torch.": "Every training call overwrites",
        "flax-nnx.": "in evaluation too",
        "keras-jax, keras-tf, keras-torch.": "does not normalize",
        "chainer (13% off)": "sweeps again",
        "aidotnet (read only, 1.015)": "Converged u and v",
        "chainer (6), flax-linen (2.4), flax-nnx (2.4), haiku (1e12)": "‖W‖ = 1e-6",
    }.items():
        assert any(words in sentence and names in sentence for sentence in told), words
    assert findings([rows["torch"]]) == []
    assert summary(list(rows.values())) == (
        "10 of 14 meet (a) frozen; paddle-op, keras-tf, keras-torch, aidotnet meet none, as the tables say"
    )


# A wrong row ----------------------------------------------------------------------------------------------------------


def test_a_false_claim_is_seen(monkeypatch, capsys):
    monkeypatch.setitem(CONVENTIONS, "fixed_uv", CONVENTIONS["fixed_uv"]._replace(oracle="svd"))
    row = measure("torch")
    assert row.met == ["frozen"] and row.expected == "svd" and not row.passed
    assert cli.main(["libraries", "torch"]) == 1
    out = capsys.readouterr().out
    assert "frozen, where the table says svd" in out and out.endswith("0 as the table says, 1 not\n")
    assert summary([row]) == "1 of 1 meet (a) frozen; not as the tables say: torch"


@pytest.mark.parametrize("factor", [1 + 1e-6, -1.0, np.nan])
def test_a_wrong_gradient_is_seen(factor, monkeypatch):
    honest = libraries.emulate

    def planted(*args, **options):
        made = honest(*args, **options)
        made.weight_bar.register_hook(lambda g: g * factor)
        return made

    monkeypatch.setattr(libraries, "emulate", planted)
    assert measure("torch").met == []


# The command ----------------------------------------------------------------------------------------------------------


def columns(line):
    return sum(not unicodedata.combining(letter) for letter in re.sub("\x1b\\[[0-9;]*m", "", line))


def test_the_table(capsys, rows):
    assert cli.main(["libraries"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(columns, lines)) <= WIDTH
    assert len({columns(line.partition(" ± ")[0]) for line in lines if " ± " in line}) == 1
    for name, row in rows.items():
        first, second = (line for line in lines if line.startswith(f"{name} "))
        assert f"{row.held['svd'].residual:.1e} ± " in first and row.gradient in first
        assert first.endswith("ran" if name != "aidotnet" else "read only")
        assert row.library.version in second and row.evaluation in second
    assert lines[-1] == f"{len(LIBRARIES)} as the table says, 0 not"


def test_one_library_in_detail(capsys, rows):
    assert cli.main(["libraries", "keras-tf", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    row = measure("keras-tf", 3)
    for part in ("seed 3", "minigrad libraries keras-tf --seed 3", "tests/test_emulate.py -k keras-tf", "'projected'"):
        assert part in out
    assert sum(" ± " in line and line.startswith(("random ", "G ", "W ", "u v")) for line in out.splitlines()) == 19
    assert f"{row.held['live'].numeric[0]:+.10f}" in out and "torch-old" not in out
    assert max(map(columns, out.splitlines())) <= WIDTH


@pytest.mark.parametrize("names", [(), ("aidotnet",)])
@pytest.mark.parametrize("rich", [True, False])
def test_a_narrow_terminal(names, rich, monkeypatch, capsys):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "44")
    assert shutil.get_terminal_size().columns == 44
    assert cli.main(["libraries", *names]) == 0
    out = capsys.readouterr().out
    assert "aidotnet" in out and max(map(columns, out.splitlines())) <= 44


def test_an_unknown_name_is_bad_usage(capsys):
    assert cli.main(["libraries", "torch", "theano"]) == 2
    assert "there is no 'theano'; choose among torch, torch-old" in capsys.readouterr().err
