"""What a launch hands to the driver, compared with the parameters of the compiled kernel; in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest


def test_arguments_lie_where_the_kernel_looks_for_them() -> None:
    for package in ("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvrtc"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed, so kernels cannot be compiled: pip install -e .[dev]")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, str(Path(__file__).with_name("cuda_launch.py")), "--check"]
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "checked\n"
