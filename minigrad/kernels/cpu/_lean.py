"""Compiling without what is of no use to kernels.

Numba makes four libraries of a parallel kernel, each of which takes in the one before: the body of its loop, two
wrappers that hand it to threads, the kernel. It optimizes each as a whole and makes machine code of it, where only the
last is ever run: three tenths of the time in which parallel kernels compile. Here the wrappers are passed on as they
are, and the body as it was optimized: by the kernel's own round alone, formulas came out up to a sixth slower.

And Python looks for garbage in cycles, again and again, of which compiling makes little: a twelfth of the time.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from llvmlite.binding import parse_assembly
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

_BODY = "__numba_parfor_gufunc"
_WRAPPERS = ("<numba.np.ufunc.wrappers._GufuncWrapper", "parallelgufuncwrapper")


class _Library(JITCodeLibrary):  # type: ignore[misc]
    def _optimize_final_module(self) -> None:
        if not self.name.startswith(_WRAPPERS):
            super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        if not self.name.startswith((_BODY, *_WRAPPERS)):
            super()._finalize_final_module()
            return
        # Numba now writes where the body's constants are into a variable of its, the only thing that needs an address.
        # The kernel has the same variable, at the same address: it is a common one.
        variables = [str(x) for x in self._final_module.global_variables if x.name.startswith("_ZN08NumbaEnv")]
        module = parse_assembly("\n".join([str(self._codegen._create_empty_module(self.name)), *variables]))
        self._codegen._add_module(module)
        self._codegen._engine.finalize_object()
        self._finalized = True


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """For what Numba compiles here and now; the functions of others stay as it makes them."""
    with global_compiler_lock:  # for which a fork waits, too: no child begins without collections
        codegen = cpu_target.target_context.codegen()
        before, collecting = codegen._library_class, gc.isenabled()
        codegen._library_class = _Library
        gc.disable()
        try:
            yield
        finally:
            codegen._library_class = before
            if collecting:
                gc.enable()
