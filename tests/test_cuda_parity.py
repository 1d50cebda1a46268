"""The GPU's kernels have the names and signatures of the CPU's; what is missing yet is listed here and only here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MISSING: set[str] = set()  # files, whole or in part

FUNCTIONS = """
import importlib, inspect, json, pkgutil, minigrad.kernels.cpu as cpu, minigrad.kernels.cuda as cuda

def public(package):
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            contents = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            for name, thing in contents.items():
                home, _, file = getattr(thing, "__module__", "").rpartition(".")
                kernel = home == package.__name__ and file != "launch" and not file.startswith("_")
                if inspect.isfunction(thing) and kernel and getattr(package, name, None) is thing:
                    yield name, [module.name, list(inspect.signature(thing).parameters)]

print(json.dumps([dict(public(cpu)), dict(public(cuda)), [m.name for m in pkgutil.iter_modules(cuda.__path__)]]))
"""


def functions() -> tuple[dict[str, tuple[str, list[str]]], dict[str, tuple[str, list[str]]], list[str]]:
    """Name -> (file, parameters) for either package, and the GPU's files; from a process that has the simulator."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    root = Path(__file__).parents[1]
    made = subprocess.run([sys.executable, "-c", FUNCTIONS], capture_output=True, text=True, env=environment, cwd=root)
    assert made.returncode == 0, made.stderr
    return tuple(json.loads(made.stdout))


CPU, CUDA, FILES = functions()


def test_the_functions_have_the_same_names() -> None:
    missing = {name: file for name, (file, _) in CPU.items() if name not in CUDA}
    assert set(missing.values()) <= MISSING, missing


def test_the_functions_have_the_same_parameters() -> None:
    """Where either side is made by a factory, that takes whatever comes, the names say nothing."""
    made = {("operands",), ("x",), ("x", "y")}
    pairs = {name: (CPU[name][1], CUDA[name][1]) for name in CPU.keys() & CUDA.keys()}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and not set(map(tuple, pair)) <= made}
    assert not different


def test_what_is_listed_as_missing_is_missing() -> None:
    complete = {file for file, _ in CPU.values()} - {file for name, (file, _) in CPU.items() if name not in CUDA}
    assert not complete & MISSING, "take it off the list"


def test_every_file_is_part_of_the_package() -> None:
    source = Path(__file__).parents[1].joinpath("minigrad/kernels/cuda/__init__.py").read_text()
    inner = ("_numba", "_stream", "launch", "gemm", "_block", "_blocks", "_places", "_sweep")
    assert [file for file in FILES if file not in inner and f"cuda.{file} import" not in source] == []


def test_that_the_tests_above_look_at_something() -> None:
    assert len(CPU) > 100
    assert {"add", "sum", "reshape", "randn"} <= set(CUDA)
