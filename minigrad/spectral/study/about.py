"""What made a report: command, version, seed, dtype, machine."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np

import minigrad as mg

DTYPE = "float32 training, float64 snapshots and differences"


def about(argv: Sequence[str], seed: int) -> dict[str, str | int]:
    """The line that lets a reader repeat the study."""
    return {
        "command": shlex.join(["minigrad", *argv]),
        "version": mg.__version__,
        "seed": seed,
        "dtype": DTYPE,
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "software": f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
