"""Scripts that compile CUDA kernels, in a process of their own: there is no compiler on the simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    for package in ("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvrtc"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed, so kernels cannot be compiled: pip install -e .[dev]")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
