"""`python -m benchmarks.cuda`: the cases on a GPU, by CUDA events, against torch on the same card."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.__main__ import conduct, destination, parser
from benchmarks.timer import QUICK, Call, Pace, Stopwatch


def events(call: Call, times: int) -> float:
    """Seconds of `times` calls between two CUDA events.

    The device is waited for before either: whichever stream a library launches on, its work lies between them. That
    adds one wait to a sample, some 10 µs.
    """
    cuda: Any = importlib.import_module("numba.cuda")
    start, end = cuda.event(), cuda.event()
    cuda.synchronize()
    start.record()
    for _ in range(times):
        call()
    cuda.synchronize()
    end.record()
    end.synchronize()
    return float(cuda.event_elapsed_time(start, end)) / 1e3


def problem() -> str:
    """Why minigrad cannot use a GPU here; empty if it can."""
    import minigrad as mg

    try:
        mg.zeros(1, device="cuda")
    except RuntimeError as error:
        return str(error)
    return ""


def sides() -> tuple[list[Any], dict[str, str]]:
    """minigrad and torch, each also captured; why any of them is left out."""
    missing: dict[str, str] = {}
    torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    from benchmarks import eager

    there: list[Any] = [eager.Minigrad("cuda"), eager.CapturedMinigrad("cuda")]
    if torch is None or not torch.cuda.is_available():
        missing["torch"] = "not installed" if torch is None else f"torch {torch.__version__} cannot use the GPU"
    else:
        there += [eager.Torch("cuda"), eager.CapturedTorch()]
    return there, missing


def card() -> dict[str, str]:
    """The card's name, driver and memory, as `nvidia-smi` has them."""
    asked = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(asked, lines[0].split(", "), strict=True))


def main(argv: Sequence[str] | None = None, at: list[Any] | None = None, stopwatch: Stopwatch = events) -> int:
    """0: all sides agreed; 1: a case was refused; 2: no GPU can be used. `at`: sides of another device, for tests."""
    options = parser("benchmarks.cuda", "Times minigrad against torch on a GPU, both with and without CUDA graphs.")
    arguments = options.parse_args(argv)
    if at is None and (why := problem()):
        print(f"benchmarks.cuda: {why}", file=sys.stderr)
        return 2
    there, missing = (at, {}) if at is not None else sides()
    pace = QUICK if arguments.quick else Pace(settle=0.05)
    return conduct(arguments, destination(arguments, "cuda"), there, missing, pace, stopwatch, gpu=card())


if __name__ == "__main__":
    sys.exit(main())
