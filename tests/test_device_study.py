"""`minigrad study` and `sweep` on the device: the numbers are the CPU's, and the verdict is about the device's kernels.

The networks are small enough for the simulator; the oracles are NumPy's, on the CPU.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import study

from minigrad import cli
from minigrad.device import kernels
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral.study import models, output, report, settings, study as stages, training

pytestmark = pytest.mark.usefixtures("second_device")


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow networks, small batches, one seed, and data to go with them."""
    monkeypatch.setattr(models, "MODELS", {"mlp": 4, "conv": 2})
    monkeypatch.setattr(settings, "QUICK_SEEDS", 1)
    monkeypatch.setattr(training, "BATCH", 8)
    monkeypatch.setattr(stages, "OPENED_ON", 8)
    monkeypatch.setattr(stages, "THROUGH_ON", 4)
    y = np.repeat(np.arange(3), 8)
    x = np.random.default_rng(0).standard_normal((24, 4, 4)) + y[:, None, None]
    np.savez(tmp_path / "own.npz", x=x, y=y)


def quick(folder: Path, device: str, *more: str) -> int:
    given = "--quick", "--steps", "2", "--data", folder / "own.npz", "--out", folder / device, "--device", device
    return study(*given, *more)


def found(folder: Path, device: str) -> dict[str, Any]:
    return json.loads((folder / device / "results.json").read_text(encoding="utf-8"))


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """In float32, as the training is."""
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for key, value in other.items():
            wanted = pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value
            assert one[key] == wanted, (key, one, other)


def agree(folder: Path, device: str) -> None:
    ours, theirs = found(folder, device), found(folder, "cpu")
    assert ours["passed"] is theirs["passed"] is True
    for table in ("layers", "losses", "tests", "training", "second_order", "lipschitz", "spectra", "sweeps"):
        same(ours[table], theirs[table])
    for row in ours["residuals"]:
        if row["vectors"] == "cold" or row["where"] == "network":
            assert row["meets"] == (CONVENTIONS[row["convention"]].oracle == row["oracle"])
            assert not row["meets"] or row["residual"] < 1e-11
    for row in ours["second_order"]:
        assert row["residual"] <= max(1e-9, 10 * row["error"]) and max(row["identity"], row["identity_fixed"]) < 1e-10


def test_a_study_is_that_of_the_cpu(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "render", lambda *args: "")
    for where in (device, "cpu"):
        assert quick(tmp_path, where, "--layers", "hidden2") == 0
    agree(tmp_path, device)


def test_the_verdict_is_about_the_kernels_of_the_device(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With σ left out of the graph, but on the device alone."""
    monkeypatch.setattr(report, "render", lambda *args: "")
    there = kernels(device)
    monkeypatch.setattr(there, "spectral_pullback", lambda g, w, u, v, sigma, dim: there.spectral_scale(g, sigma))
    assert quick(tmp_path, device, "--layers", "output", "--conventions", "fixed_uv") == 1
    wrong = found(tmp_path, device)
    assert "fixed_uv misses oracle (a)" in wrong["sentence"]
    assert not any(row["meets"] for row in wrong["residuals"] if row["where"] in ("node", "network"))
    assert min(row["identity_fixed"] for row in wrong["second_order"]) > 1e-3
    assert quick(tmp_path, "cpu", "--layers", "output", "--conventions", "fixed_uv") == 0


def test_a_study_of_convolutions_with_its_page(device: str, tmp_path: Path) -> None:
    for where in (device, "cpu"):
        assert quick(tmp_path, where, "--model", "conv") == 0
    agree(tmp_path, device)
    page = (tmp_path / device / output.REPORT).read_text(encoding="utf-8")
    assert ">passed<" in page and f"--device {device}" in page and page.count("<svg") >= 14


@pytest.mark.parametrize("kind", ["training", "study"])
def test_a_sweep(kind: str, device: str, tmp_path: Path, launched: list[str]) -> None:
    pytest.importorskip("joblib")
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'run = "{kind}"\nsteps = 2\nseeds = [0]\nconventions = ["fixed_uv", "detached"]\nwidths = [4]\n'
        'data = "own.npz"\n',
        encoding="utf-8",
    )
    tables = []
    for where in (device, "cpu"):
        launched.clear()
        assert cli.main(["sweep", str(file), "--out", str(tmp_path / where), "--jobs", "1", "--device", where]) == 0
        assert ("spectral._pulled_back" in launched) == (where == device)
        with (tmp_path / where / "sweep.csv").open(encoding="utf-8", newline="") as lines:
            tables.append(list(csv.DictReader(lines)))
    assert len(tables[0]) == 2
    for ours, theirs in zip(*tables, strict=True):
        assert ours["state"] == "finished" and float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-4)
        assert ours["accuracy"] == theirs["accuracy"] and ours["passed"] == theirs["passed"]
