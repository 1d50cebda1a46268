"""Kernels for a GPU that is not there, compiled or found on disk: a line each, how many were compiled, and their code.

    python tests/cuda_cache.py MAJOR MINOR       of its compute capability

What stands in for machine code is PTX: no driver is there to make it. Who imports this file, to look for doctests, gets
neither the compiler, which the simulator lacks, nor what it is made to do here.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any

KERNELS = ("array._conversion.convert.?", "elementwise._unary.one.relu")


def main(capability: tuple[int, ...]) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    codegen, dispatcher, devices = (
        importlib.import_module(f"numba.cuda.{name}") for name in ("codegen", "dispatcher", "cudadrv.devices")
    )
    importlib.import_module("minigrad.kernels.cuda")
    declared = importlib.import_module("minigrad.kernels.cuda.launch").KERNELS

    class Device:
        compute_capability = capability
        id = 0

    class Context:
        device = Device()

    def machine_code(library: Any, cc: Any = None) -> bytes:
        """Its PTX, of lines in one order: helpers are linked in another in every process."""
        lines = sorted(library.get_asm_str(cc).splitlines())
        code: bytes = library._cubin_cache.setdefault(capability, "\n".join(lines).encode())
        return code

    compiled = []
    compile_cuda = dispatcher.compile_cuda

    def counted(*args: Any, **kwargs: Any) -> Any:
        compiled.append(args)
        return compile_cuda(*args, **kwargs)

    dispatcher.compile_cuda = counted
    devices.get_context, dispatcher.get_current_device = Context, Device
    codegen.CUDACodeLibrary.get_cubin = machine_code
    dispatcher._Kernel.bind = lambda kernel: machine_code(kernel._codelibrary)
    for name in KERNELS:
        ((_, types), *_) = declared[name].signatures()
        before = len(compiled)
        kernel = declared[name]._compiled.compile(types)
        code = kernel._codelibrary._cubin_cache[capability]
        assert kernel._codelibrary._entry_name.encode() in code
        print(len(compiled) - before, name, hashlib.sha256(code).hexdigest())


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])))
