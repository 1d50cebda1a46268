"""Every example runs, in a process of its own, and ends in a line of results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {"exact_gradients": (), "spectral_mlp_digits": ("--epochs", "4"), "spectral_conv_digits": ("--epochs", "2")}


def test_every_example_is_listed():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example(name):
    if "digits" in name:
        pytest.importorskip("sklearn")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--seed", "1", *ARGUMENTS[name]]
    found = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert found.returncode == 0, found.stderr
    last = found.stdout.splitlines()[-1]
    if name == "exact_gradients":
        assert float(re.match(r"result: relative error (\S+) on cpu", last)[1]) < 1e-8
    else:
        assert float(re.match(r"result: test accuracy (\d\.\d+).* on cpu", last)[1]) > 0.7
