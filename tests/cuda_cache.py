"""Kernels for a GPU that is not there, compiled or found on disk: a line each, how many were compiled, and their code.

    python tests/cuda_cache.py MAJOR MINOR       of its compute capability

What stands in for machine code is PTX: no driver is there to make it.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from numba.cuda import codegen, dispatcher
from numba.cuda.cudadrv import devices

from minigrad.kernels.cuda import array, elementwise  # noqa: F401
from minigrad.kernels.cuda.launch import KERNELS


class Device:
    compute_capability = tuple(map(int, sys.argv[1:]))
    id = 0


class Context:
    device = Device()


def machine_code(library: Any, cc: Any = None) -> bytes:
    """Its PTX, of lines in one order: helpers are linked in another in every process."""
    lines = sorted(library.get_asm_str(cc).splitlines())
    code: bytes = library._cubin_cache.setdefault(Device.compute_capability, "\n".join(lines).encode())
    return code


def main() -> None:
    devices.get_context, dispatcher.get_current_device = Context, Device
    codegen.CUDACodeLibrary.get_cubin = machine_code
    dispatcher._Kernel.bind = lambda kernel: machine_code(kernel._codelibrary)  # type: ignore[method-assign]
    for name in ("array._conversion.convert.?", "elementwise._unary.one.relu"):
        ((_, types), *_) = KERNELS[name].signatures()
        before = len(compiled)
        kernel = KERNELS[name]._compiled.compile(types)
        code = kernel._codelibrary._cubin_cache[Device.compute_capability]
        assert kernel._codelibrary._entry_name.encode() in code
        print(len(compiled) - before, name, hashlib.sha256(code).hexdigest())


compiled = []
whole = dispatcher.compile_cuda


def counted(*args: Any, **kwargs: Any) -> Any:
    compiled.append(args)
    return whole(*args, **kwargs)


dispatcher.compile_cuda = counted

if __name__ == "__main__":
    main()
