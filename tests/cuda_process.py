"""CUDA in processes of their own: what needs its compiler, and what runs on Numba's simulator, which has none.

Or on `cuda_emulator.py`'s, which runs what the compiler has made.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _needs_the_compiler() -> None:
    for package in ("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvrtc"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed, so kernels cannot be compiled: pip install -e .[dev]")


def compiled(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script that compiles kernels."""
    _needs_the_compiler()
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def emulated(names: list[str], device: str) -> int:
    """How many tests of these files pass with what kernels are compiled to."""
    _needs_the_compiler()
    return passed(names, device, "MINIGRAD_EMULATE")


def passed(names: list[str], device: str, on: str = "NUMBA_ENABLE_CUDASIM") -> int:
    """How many tests of these files pass on the simulator; the others must have been skipped."""
    if device == "cuda":
        pytest.skip("this is such a process already")
    command = [sys.executable, "-m", "pytest", "-q", "--device", "cuda", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" if name.startswith("test_") else name for name in names]
    environment = os.environ | {on: "1"}
    made = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert made.returncode == 0, made.stdout[-20000:]
    reasons = re.findall(r"SKIPPED \[\d+\] \S+ (.*)", made.stdout)
    print(*made.stdout.splitlines()[-1:], *reasons, sep="\n")
    found = re.search(r"(\d+) passed", made.stdout)
    assert found
    return int(found[1])
