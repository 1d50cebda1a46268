"""Every example on the device, made small enough for the simulator: it prints what it prints on the CPU, to rounding.

What the CPU prints has other oracles (test_examples.py and its neighbours); what must hold at any size is asked here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_examples_cifar10 import write

import minigrad as mg
from minigrad import cli

pytestmark = pytest.mark.usefixtures("second_device")
EXAMPLES = Path(__file__).parents[1] / "examples"
DIGITS = 40  # images, out of the 1797


class Small(NamedTuple):
    """An example with other numbers in its text, its arguments, and what must be true of the numbers it prints."""

    text: dict[str, str]
    arguments: str
    holds: Callable[[list[float]], bool]


THREE_BATCHES = {"1400": "24", ", 20)": ", 3)"}
TWO_CHANNELS = {"(1, 16, 3": "(1, 2, 3", "(16, 32, 4": "(2, 2, 4", "512": "32"}
SMALL = {
    "exact_gradients": Small({}, "", lambda x: abs(x[0] - x[1]) < 1e-8 < 1e-2 < abs(x[0] - x[2]) and x[-1] < 1e-8),
    "spectral_mlp_digits": Small(
        {**THREE_BATCHES, "/ 20": "/ 3", "128": "6"}, "--epochs 2", lambda x: x[0] > x[1] and 0.99 < x[-1] < 1.1
    ),
    "spectral_conv_digits": Small(
        {**THREE_BATCHES, "/ 20": "/ 3", **TWO_CHANNELS}, "--epochs 2",
        lambda x: x[0] > x[1] and 0.99 < min(x[2:5]) <= max(x[2:5]) < 1.1,
    ),
    "wgan_gp_sn": Small({"128": "4"}, "--steps 2", lambda x: x[-1] > 0),
    "hessian_spectrum": Small(
        {"size=128": "size=4", "32": "3", "-4, 7)": "-2, 2)", ", 20)": ", 3)", "5e-3": "5e-2"},
        "--steps 20 --iterations 6", lambda x: x[-2] > 1.1 * x[-1] > 0,
    ),
    "certified_mlp": Small(
        {"1300": "24", "256": "4", "128": "4", "steps=40": "steps=3", "lr=2e-3": "lr=3e-2"},
        "--steps 12 --radii 3", lambda x: x[-5] > x[-2] > x[-3] and x[-1] > 0,
    ),
    "sngan_digits": Small(
        {**THREE_BATCHES, **TWO_CHANNELS, "(12)": "(2)", "LATENT = 32": "LATENT = 3", "lr=2e-3": "lr=2e-2"},
        "--steps 4 --width 1 --batch 2 --lr 0.05", lambda x: x[-5] > x[-4] > 0,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cli, "exit_on_interrupt", lambda: None)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    mg.set_num_threads(os.cpu_count())


def few(load: Callable[[], object]) -> object:
    """Of the digits, the first zeros and ones: soon told from each other."""
    digits = load()
    chosen = np.flatnonzero(digits.target < 2)[:DIGITS]
    digits.data, digits.images, digits.target = (x[chosen] for x in (digits.data, digits.images, digits.target))
    return digits


def run(name: str, small: Small, more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = EXAMPLES / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    for number, smaller in small.text.items():
        assert number in text, f"{name}.py has no {number!r} any more"
        text = text.replace(number, smaller)
    monkeypatch.setattr(sys, "argv", [str(path), *small.arguments.split(), *more])
    exec(compile(text, path, "exec"), {"__name__": "__main__"})


def numbers(printed: str) -> list[float]:
    """All that have a decimal point: times, which are never the same twice, have none."""
    return [float(x) for x in re.findall(r"[-+]?\d+\.\d+(?:e[-+]\d+)?", printed)]


@pytest.mark.parametrize("name", SMALL)
def test_an_example(
    name: str,
    device: str,
    launched: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name != "exact_gradients":
        datasets = pytest.importorskip("sklearn.datasets")
        load = datasets.load_digits
        monkeypatch.setattr(datasets, "load_digits", lambda: few(load))
    pictured = "_common" in (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    found = {}
    for where in (device, "cpu"):
        launched.clear()
        picture = tmp_path / f"{where}.png"
        run(name, SMALL[name], ["--device", where, *(["--out", str(picture)] if pictured else [])], monkeypatch)
        assert ("spectral._pulled_back" in launched) == (where == device)
        printed = capsys.readouterr().out
        assert f"on {where}" in printed.splitlines()[-1]
        assert not pictured or picture.read_bytes().startswith(b"\x89PNG")
        found[where] = numbers(printed)
        assert SMALL[name].holds(found[where]), printed
    np.testing.assert_allclose(found[device], found["cpu"], rtol=2e-3, atol=2e-3)


def test_cifar10_in_parts(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Captured steps, and checkpoints: what went on after the second step is what never stopped, to the bit."""
    write(tmp_path / "data", "binary")
    images = {"(-1, 3, 32, 32)": "(-1, 3, 32, 32)[..., ::2, ::2]", "* 16": "* 4", "4, 4))": "2, 2))"}  # of 16×16 pixels
    given = f"--data {tmp_path / 'data'} --width 1 --batch 2 --look 3"
    small = Small({**images, "64, LATENT": "8, LATENT", "2e-4": "1e-2"}, given, bool)

    def trained(folder: str, steps: int, where: str = device) -> list[float]:
        (tmp_path / folder).mkdir(exist_ok=True)
        more = f"--steps {steps} --device {where} --out {tmp_path / folder / 'samples.png'} "
        run("sngan_cifar10", small, f"{more} --checkpoints {tmp_path / folder / 'kept'}".split(), monkeypatch)
        printed = capsys.readouterr().out
        assert f"on {where}" in printed.splitlines()[-1]
        assert (tmp_path / folder / "samples.png").read_bytes().startswith(b"\x89PNG")
        return numbers(printed.splitlines()[-1])

    whole = trained("whole", 4)
    assert 0 < whole[0] < 4 and 1 <= whole[2] < 1.3
    np.testing.assert_allclose(whole, trained("cpu", 4, "cpu"), atol=2e-3)
    trained("parts", 2)
    assert trained("parts", 4) == whole
    one, other = ((tmp_path / folder / "samples.safetensors").read_bytes() for folder in ("whole", "parts"))
    assert one == other
