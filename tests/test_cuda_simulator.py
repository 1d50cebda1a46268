"""CUDA kernels on Numba's simulator, in a process of its own: the op table and what else lives on the device.

All of it, which takes minutes: NUMBA_ENABLE_CUDASIM=1 python -m pytest --device cuda
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ON_THE_DEVICE = [
    "test_ops.py", "test_device.py", "test_device_products.py", "test_broadcasting.py", "test_special_values.py",
    "test_indexing.py", "test_dtypes.py", "test_autograd.py", "test_tensor.py", "test_device_training.py",
    "test_cuda_graph.py", "test_cuda_exchange.py", "test_device_features.py",
]  # fmt: skip


def passed(names: list[str], device: str) -> int:
    """How many tests of these files pass on the simulator; the others must have been skipped."""
    if device == "cuda":
        pytest.skip("this is such a process already")
    command = [sys.executable, "-m", "pytest", "-q", "--device", "cuda", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" for name in names]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    made = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert made.returncode == 0, made.stdout[-20000:]
    reasons = re.findall(r"SKIPPED \[\d+\] \S+ (.*)", made.stdout)
    print(*made.stdout.splitlines()[-1:], *reasons, sep="\n")
    found = re.search(r"(\d+) passed", made.stdout)
    assert found
    return int(found[1])


def test_the_device_passes_the_suite_of_the_cpu(device: str) -> None:
    assert passed(ON_THE_DEVICE, device) > 1000
