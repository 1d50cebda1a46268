"""What made a report: command, version, seed, dtype, machine."""

from __future__ import annotations

import os
import platform
import shlex

import numba
import numpy as np

import minigrad as mg
from minigrad._info import processor
from minigrad.ops.conventions import CONVENTIONS
from minigrad.spectral.study.settings import Settings

DTYPE = "float32 training, float64 snapshots and differences"


def about(settings: Settings) -> dict[str, str | int]:
    """The line that lets a reader repeat the study: the command, spelled out, and what ran it."""
    words = ["minigrad", "study", "--model", settings.model, "--steps", str(settings.steps)]
    words += ["--seed", str(settings.seed), "--device", settings.device]
    words += ["--conventions", ",".join(settings.conventions)] if set(settings.conventions) < set(CONVENTIONS) else []
    words += ["--layers", ",".join(settings.layers)] if settings.layers else []
    words += ["--data", settings.data] if settings.data else []
    words += ["--quick"] if settings.quick else []
    return made_by(words, settings.seed, DTYPE)


def made_by(words: list[str], seed: int, dtype: str) -> dict[str, str | int]:
    """The command and what it ran on."""
    return {
        "command": shlex.join(words),
        "version": mg.__version__,
        "seed": seed,
        "dtype": dtype,
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "software": f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}",
    }
