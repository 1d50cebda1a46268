"""The way to the driver without a driver: what a launch hands over, and what its Python costs.

    python tests/cuda_launch.py       checks, then prints µs per launch: Numba's way, and ours

In a process of its own, not the simulator's: the compiler is told of a device that is not there, and the driver's
launch is a function that looks at what it gets.
"""

from __future__ import annotations

import ctypes
import re
import sys
import timeit
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from numba import cuda
from numba.cuda import dispatcher

from minigrad.kernels.cuda import _stream
from minigrad.kernels.cuda.array import Array, row_major
from minigrad.kernels.cuda.launch import FLOATS, kernel
from minigrad.kernels.cuda.memory import Block, Buffer


class Device:
    compute_capability = 9, 0
    id = 0


@kernel("u4 T[] T[] T[]", T=FLOATS)
def add(size: Any, out: Any, x: Any, y: Any) -> None:
    for i in range(np.uint32(cuda.grid(1)), size, np.uint32(cuda.gridsize(1))):
        out[i] = x[i] + y[i]


@kernel("i8[] T ? u4 u8 f8 T[] i8", T=FLOATS)
def all_kinds(out: Any, a: Any, b: Any, c: Any, d: Any, e: Any, x: Any, f: Any) -> None:
    out[np.uint32(0)] = c + d + f if b and x[np.uint32(0)] > a and e > type(e)(0) else f


def at(address: int, dtype: Any, *shape: int) -> Array:
    """An array at an address where there is nothing."""
    size = 4096
    memory: Any = type("Memory", (), {"device_ctypes_pointer": ctypes.c_uint64(address)})()
    return Array(Buffer(Block(size, memory), None), shape, row_major(shape), 0, np.dtype(dtype), False)


class Driver:
    """Takes launches, and reads their parameters where it is told that they are."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.parameters: list[Any] = []  # ctypes, one for each

    def cuLaunchKernel(self, function: Any, *numbers: Any) -> Any:
        *grid_and_block, shared, stream, pointers, extra = numbers
        assert (shared, extra) == (0, 0)
        places = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
        values = [kind.from_address(places[i]).value for i, kind in enumerate(self.parameters)]  # type: ignore[arg-type]
        self.seen.append((function, tuple(grid_and_block), stream, values))
        return (0,)


def declared(ptx: str) -> list[int]:
    """The sizes of a kernel's parameters, as its code has them."""
    return [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+)", ptx.partition("{")[0])]


POINTER = [ctypes.c_uint64] * 7


def check() -> None:
    sizes = []
    for k in (add, all_kinds):
        ((_, signature), *_) = k.signatures()
        ptx, _ = cuda.compile_ptx(k.fn, signature, cc=(9, 0), device=False)
        sizes.append(declared(ptx))
    scalars = [4, 1, 4, 8, 8]  # T is float32, a bool is a byte
    assert sizes == [[4, *[8] * 21], [*[8] * 7, *scalars, *[8] * 7, 8]], sizes

    driver = Driver()
    _stream.driver, _stream.handle, _stream.function_of = driver, lambda: 77, lambda compiled: compiled

    class Compiled:
        def compile(self, types: Any) -> str:
            assert not _stream._lock.locked(), "what is collected while the compiler is at work may launch kernels"
            return "f"

    for k in (add, all_kinds):
        k.__dict__["_compiled"] = Compiled()

    driver.parameters = [ctypes.c_uint32, *POINTER * 3]
    out, x, y = at(0x1000, "f4", 10, 10), at(0x2000, "f4", 10, 10), at(0x3000, "f4", 100)
    part = Array(x.buffer, (50,), (1,), 30, x.dtype, True)
    backwards = Array(x.buffer, (50,), (-1,), 80, x.dtype, True)
    add.each(100, out, x, y)
    add[(2, 3), (4, 5, 6)](7, out, part, backwards)
    (f, shape, stream, values), (_, shape2, _, values2) = driver.seen
    assert (f, shape, stream) == ("f", (1, 1, 1, 256, 1, 1), 77)
    assert shape2 == (2, 3, 1, 4, 5, 6)
    assert values == [100, *words(0x1000), *words(0x2000), *words(0x3000)]
    start = 0x2000 + 4 * 31
    assert values2 == [7, *words(0x1000), *words(0x2000 + 120), *words(start)]
    nothing = Array(x.buffer, (3, 0), (0, 1000), 1999, x.dtype, True)  # a last element of none lies beyond the memory
    add[1, 1](0, out, nothing, nothing)
    assert driver.seen[-1][3] == [0, *words(0x1000), *words(0x2000) * 2]

    driver.parameters = [
        *POINTER, ctypes.c_float, ctypes.c_bool, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_double, *POINTER,
        ctypes.c_int64,
    ]  # fmt: skip
    n, z = at(0x1000, "i8", 3), at(0x2000, "f4", 3)
    for given, taken in [
        ((0.5, True, 3, 2**64 - 1, 0.1, z, -5), (0.5, True, 3, 2**64 - 1, 0.1, -5)),
        ((1e300, np.False_, np.uint32(9), 0, 3, z, 2.7), (np.inf, False, 9, 0, 3.0, 2)),  # what NumPy makes of them
        ((-np.inf, 0, 2**32 - 1, 1, np.float32(0.25), z, -(2**63)), (-np.inf, False, 2**32 - 1, 1, 0.25, -(2**63))),
    ]:
        all_kinds[1, 1](n, *given)
        values = driver.seen[-1][3]
        assert (*values[7:12], values[-1]) == taken, values
    for wrong in (2**32, -1):
        try:
            all_kinds[1, 1](n, 0.5, True, wrong, 0, 0, z, 0)
        except ValueError as error:
            assert "fewer than 2**32" in str(error)
        else:
            raise AssertionError(wrong)


def words(address: int) -> list[int]:
    """What a kernel is given for an array: nothing but where it begins."""
    return [0, 0, 0, 0, address, 0, 0]


def microseconds(call: Any) -> float:
    return min(timeit.repeat(call, number=2000, repeat=7)) / 2000 * 1e6


def measure() -> None:
    """Three arrays and a number; the driver's call itself does nothing."""
    from numba.cuda.cudadrv import devicearray, devices, driver as numbas

    class Memory:
        size, device_pointer_value = 4096, 0x1000
        device_ctypes_pointer = ctypes.c_uint64(0x1000)

    def flat() -> Any:
        return devicearray.DeviceNDArray((1024,), (4,), np.float32, gpu_data=Memory())

    class Function:
        kernel = name = None

    devices.get_context = lambda *a: type("Context", (), {"device": Device()})()
    ready = cuda.jit(add.fn)
    dispatcher._Kernel.bind = lambda self: None
    dispatcher.launch = lambda *a: None
    dispatcher.LaunchConfig = lambda **a: None
    numbas._to_core_stream = lambda stream: stream
    dispatcher.driver._to_core_stream = numbas._to_core_stream
    kernel_of = ready.compile(next(add.signatures())[1])
    type(kernel_of._codelibrary).get_cufunc = lambda self: Function
    reused = flat(), flat(), flat()
    size = np.uint32(100)
    launched = {
        "Numba, arrays reused": lambda: ready[1, 256](size, *reused),
        "Numba, arrays fresh": lambda: ready[1, 256](size, flat(), flat(), flat()),
    }
    arrays = at(0x1000, "f4", 100), at(0x2000, "f4", 100), at(0x3000, "f4", 100)
    bufferss = [a.buffer for a in arrays]

    def fresh() -> None:
        add.each(100, *[Array(b, (100,), (1,), 0, a.dtype, False) for a, b in zip(arrays, bufferss, strict=True)])

    launched["ours, arrays reused"] = lambda: add.each(100, *arrays)
    launched["ours, arrays fresh"] = fresh
    function = (_stream.driver, "cuLaunchKernel")
    setattr(*function, lambda *a: (0,))
    for name, call in launched.items():
        print(f"{name}: {microseconds(call):.1f} µs")


if __name__ == "__main__":
    dispatcher.get_current_device = Device
    check()
    print("checked")
    if "--check" not in sys.argv:
        measure()
