"""What only a fresh process can tell: import time, the first step with and without compiled kernels, and peak memory.

The parent runs `python -m benchmarks.processes …`, which prints JSON; nothing is imported before its time.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

#: Side -> the package whose import is timed, and the variable that says where its compiled code is kept.
STARTS = {
    "minigrad": ("minigrad", "MINIGRAD_CACHE_DIR"),
    "torch": ("torch", ""),
    "torch.compile": ("torch", "TORCHINDUCTOR_CACHE_DIR"),
    "JAX jit": ("jax", "JAX_COMPILATION_CACHE_DIR"),
}
#: The environment of peers, whose numbers are drawn with minigrad's help: it leaves the C library's memory as it is.
OTHERS = {"MINIGRAD_REUSE_MEMORY": "0"}
IMPORTS = 5  # of which the median counts


def child(*arguments: str, **environment: str) -> dict[str, Any]:
    """What a process of its own prints. RuntimeError with its last words, should it fail."""
    settings = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONWARNINGS": "ignore", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.processes", *arguments],
        env={**os.environ, **settings}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"benchmarks.processes {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def starts(side: str, case: str, quick: bool) -> dict[str, Any]:
    """Seconds of a side's import, and of its first step with an empty and with a filled cache."""
    package, variable = STARTS[side]
    options = [side, case, *(["--quick"] if quick else [])]
    own = {} if side == "minigrad" else OTHERS
    imports = [child("import", package)["import"] for _ in range(1 if quick else IMPORTS)]
    row: dict[str, Any] = {"side": side, "import": median(imports), "imports": imports}
    with tempfile.TemporaryDirectory() as folder:
        environment = own | ({variable: folder} if variable else {})
        cold = child("start", *options, **environment)
        row |= {"empty cache": cold["first"], "second step": cold["second"], "kernels": cold["kernels"]}
        if variable:
            row["filled cache"] = child("start", *options, **environment)["first"]
        row["cache bytes"] = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return row


def peak(side: str, group: str, case: str, quick: bool) -> int:
    """Bytes that a process grows by at its peak, doing a case after the library has been loaded."""
    own = {} if side == "minigrad" else OTHERS
    return int(child("memory", side, group, case, *(["--quick"] if quick else []), **own)["peak"])


# In the process itself ------------------------------------------------------------------------------------------------


def _import(package: str) -> dict[str, Any]:
    start = time.perf_counter()
    importlib.import_module(package)
    return {"import": time.perf_counter() - start}


def _start(name: str, case: str, quick: bool) -> dict[str, Any]:
    from benchmarks import cases, suite

    side = suite.made(name)
    chosen = next(row for row in cases.table(quick) if row.name == case)
    work: Any = chosen.work
    compiled: dict[str, float] = {}
    if name == "minigrad":
        _record(compiled)
    seconds = []
    if name != "minigrad":
        importlib.import_module("benchmarks.eager").state(work.build, work.dtype)  # drawn by minigrad, for all
    for step in range(2):
        start = time.perf_counter()
        if step == 0:
            running = side.start(chosen)
        running.step()
        side.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "second": seconds[1], "kernels": compiled}


def _record(compiled: dict[str, float]) -> None:
    """Keep how long Numba compiles each function, those compiled on its behalf included."""
    from numba.core import event

    class Recorder(event.Listener):  # type: ignore[misc]
        def __init__(self) -> None:
            self.begun: list[float] = []

        def on_start(self, found: Any) -> None:
            self.begun.append(time.perf_counter())

        def on_end(self, found: Any) -> None:
            seconds = time.perf_counter() - self.begun.pop()
            if not self.begun:  # the outermost
                fn = found.data["dispatcher"].py_func
                name = f"{fn.__module__.rpartition('.')[2]}.{fn.__qualname__}".replace("<locals>.", "")
                compiled[name] = compiled.get(name, 0.0) + seconds

    event.register("numba:compile", Recorder())


def _memory(name: str, group: str, case: str, quick: bool) -> dict[str, Any]:
    from benchmarks import cases, suite

    side = suite.made(name)
    eager = importlib.import_module("benchmarks.eager")
    (chosen,) = (row for row in cases.table(quick) if (row.group, row.name) == (group, case))
    (least, *_) = (row for row in cases.table(quick=True) if row.group == group)
    side.start(least).step()  # loads libraries and kernels
    _give_back()
    before = _status("VmRSS")
    running = side.start(chosen)
    running.step()
    for made in (eager.state, eager.upstream):
        made.cache_clear()  # the numbers that the work began with are the benchmark's own
    _give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(3):
        running.step()
    side.synchronize()
    return {"peak": max(0, _status("VmHWM") - before)}


def _give_back() -> None:
    """What nobody uses any more goes back to the system, also what the C library keeps of it."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(arguments: list[str]) -> None:
    """`import PACKAGE`, `start SIDE CASE`, `memory SIDE GROUP CASE`, the last two with `--quick`."""
    quick = "--quick" in arguments
    kind, *rest = (a for a in arguments if a != "--quick")
    kinds: dict[str, Any] = {"start": _start, "memory": _memory}
    print(json.dumps(_import(*rest) if kind == "import" else kinds[kind](*rest, quick)))


if __name__ == "__main__":
    main(sys.argv[1:])
