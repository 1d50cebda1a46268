"""`minigrad gradcheck` on the device: every layer and convention, to second order, and a wrong kernel found.

The differences are those of the device's own values for a layer, and of NumPy's oracles for a convention.
"""

from __future__ import annotations

import pytest

from minigrad import _checks, cli
from minigrad._cases import layers
from minigrad.device import kernels
from minigrad.ops.conventions import CONVENTIONS

pytestmark = pytest.mark.usefixtures("second_device")
PARTS = 12  # that the layers are checked in: the convolutions take the simulator half a minute each
QUICK = {"SiLU", "Embedding", "MaxPool2d, stride 1", "CrossEntropyLoss", "GAN hinge losses (16), (17)"}


@pytest.mark.parametrize("part", range(PARTS))
def test_layers(part: int, device: str, launched: list[str]) -> None:
    for case in list(layers(0, device))[part::PARTS]:
        launched.clear()
        row = _checks.layer(case, 0)
        assert row.passed and launched, row


@pytest.mark.parametrize("weight", _checks.WEIGHTS)
@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions(name: str, weight: str, device: str) -> None:
    row = _checks.convention(name, weight, 1, device)
    assert row.passed, row
    assert CONVENTIONS[name].oracle is None or max(row.first.residual, row.second.residual) < 1e-11


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command check what is quick on the simulator."""
    monkeypatch.setattr(_checks, "layers", lambda *given: [case for case in layers(*given) if case.name in QUICK])
    monkeypatch.setattr(_checks, "WEIGHTS", dict([*_checks.WEIGHTS.items()][:1]))


def test_the_command(few: None, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gradcheck", "--device", device]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(QUICK) + len(CONVENTIONS)} passed, 0 failed"
    assert sum(line.endswith("agrees") for line in lines) == len(QUICK)


def test_a_wrong_kernel_of_the_device_is_found(
    few: None, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With σ left out of the graph; on the CPU it is not."""
    there = kernels(device)
    monkeypatch.setattr(there, "spectral_pullback", lambda g, w, u, v, sigma, dim: there.spectral_scale(g, sigma))
    assert cli.main(["gradcheck", "--device", device]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAILS frozen")]
    assert len(wrong) == 1 and wrong[0].startswith("fixed_uv, against frozen")
    assert cli.main(["gradcheck"]) == 0
