"""`minigrad info`: what minigrad runs on here."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np

import minigrad as mg
from minigrad import device
from minigrad.kernels.cpu import _loops, _memory
from minigrad.kernels.cpu._jit import _threading_layer
from minigrad.kernels.disk_cache import cache_directory, can_be_written

VECTOR_FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "neon", "fp-armv8", "sve", "sve2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `minigrad info`."""
    parser.add_argument("--device", default="cpu", help="fail (exit code 2) unless this one can be used: cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers shown, for comparing machines")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts, aligned; always 0."""
    facts = gather(arguments.seed)
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:{width}}  {fact}")
    return 0


def gather(seed: int) -> dict[str, str]:
    """Name -> fact."""
    features = llvmlite.binding.get_host_cpu_features()
    return {
        "minigrad": mg.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.platform()})",
        "NumPy": f"{np.__version__}, {_loops.ways()}",
        "Numba": f"{numba.__version__}, llvmlite {llvmlite.__version__}",
        "BLAS": _blas(),
        "processor": f"{processor()} ({llvmlite.binding.get_host_cpu_name()})",
        "vectors": " ".join(name for name in VECTOR_FEATURES if features.get(name)) or "none known",
        "threads": f"{numba.get_num_threads()} of {os.cpu_count()}, threading layer {_threading_layer()}",
        "memory": _memory.reuse(),
        "kernel cache": _cache(cache_directory()),
        "CUDA": _cuda(),
        "random": f"seed {seed} begins {' '.join(f'{x:.8f}' for x in _first_draws(seed))}",
    }


def processor() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _blas() -> str:
    config = np.show_config(mode="dicts") or {}
    found = config.get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()


def _cache(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.glob("*.kernel")]
    lost = "" if can_be_written(folder) else "; cannot be written: new kernels are not kept"
    return f"{folder} ({len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB{lost})"


def _cuda() -> str:
    try:
        device.check("cuda", "info")
    except RuntimeError as error:
        return f"cannot be used: {error}"
    return "can be used"


def _first_draws(seed: int) -> list[float]:
    draws: list[float] = mg.rand(3, dtype=mg.float64, generator=mg.Generator(seed)).tolist()
    return draws
