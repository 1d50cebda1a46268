"""Memory shared with other libraries: what is handed out, field by field, and what comes in; on the simulator, too."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from typing import Any

import fresh
import numpy as np
import pytest

import minigrad as mg
from minigrad.device import kernels

pytestmark = pytest.mark.usefixtures("on_cuda")

DTYPES = [mg.float16, mg.float32, mg.float64, mg.int64, mg.bool_]


def values(dtype: Any) -> Any:
    return (np.arange(24).reshape(4, 6) % 5).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_interface_says_where_and_what(dtype: Any) -> None:
    x = mg.tensor(values(dtype), device="cuda")
    said = x.__cuda_array_interface__
    assert (said["shape"], said["typestr"], said["version"], said["strides"]) == ((4, 6), dtype.str, 3, None)
    assert said["data"] == (x.data.address, False)
    assert said["stream"] not in (0, None)  # 0 is forbidden; None would promise that nothing is under way


def test_the_interface_of_views() -> None:
    x = mg.tensor(values(mg.float32), device="cuda")
    first = x.__cuda_array_interface__["data"][0]
    part = x.T[1:, ::2].__cuda_array_interface__
    assert (part["shape"], part["strides"]) == ((5, 2), (4, 48))
    assert part["data"][0] == first + 4
    assert x.flip(0).__cuda_array_interface__["strides"] == (-24, 4)
    assert x.flip(0).__cuda_array_interface__["data"][0] == first + 3 * 24
    assert mg.zeros(0, 3, device="cuda").__cuda_array_interface__["data"][0] == 0


@pytest.mark.parametrize("take", [lambda x: mg.cuda.from_array(x), lambda x: mg.from_dlpack(x)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_is_the_same_memory(take: Any, dtype: Any) -> None:
    x = mg.tensor(values(dtype), device="cuda")
    for view in (x, x.T, x[1:, ::2], x[0, 0], x[:, None]):
        y = take(view)
        assert (y.device, y.dtype, y.shape) == ("cuda", dtype, view.shape)
        assert np.array_equal(y.numpy(), view.numpy())
        assert y.data.address == view.data.address
    take(x.T)[2].copy_(mg.ones(4, device="cuda").to(dtype))
    assert (x.numpy()[:, 2] == 1).all()
    assert take(x[:0]).shape == (0, 6)
    assert np.array_equal((take(x.T) == x.T).numpy(), np.ones((6, 4), bool))  # a kernel reads it


def test_backwards_through_memory() -> None:
    x = mg.tensor(values(mg.float32), device="cuda")
    for view in (x.flip(0), x.flip((0, 1)).T):
        y = mg.cuda.from_array(view)
        assert np.array_equal(y.numpy(), view.numpy()) and y.data.address == view.data.address
        with pytest.raises(BufferError, match="backwards through its memory"):
            view.__dlpack__(stream=-1)


def test_memory_that_is_read_while_it_is_written_to_may_have_come_from_outside() -> None:
    x = mg.arange(6.0, device="cuda")
    y = mg.cuda.from_array(x)
    assert kernels("cuda").shares_memory(x.data, y.data)
    y.copy_(x.flip(0))
    assert x.tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("take", [lambda x: mg.cuda.from_array(x), lambda x: mg.from_dlpack(x)])
def test_memory_lives_as_long_as_its_taker(take: Any) -> None:
    x = mg.tensor(values(mg.float32), device="cuda")
    owned = weakref.ref(x.data.buffer)
    y = take(x)
    del x
    gc.collect()
    assert owned() is not None
    z = mg.full((4, 6), 9.0, device="cuda")  # would get the memory, had it been given back
    assert np.array_equal(y.numpy(), values(mg.float32))
    del y
    gc.collect()
    assert owned() is None
    del z


def test_a_capsule_that_nobody_takes_is_forgotten_with_the_next() -> None:
    from minigrad.kernels.cuda import exchange

    x = mg.ones(3, device="cuda")
    untaken, held = x.__dlpack__(stream=-1), x.__dlpack__(stream=-1)
    before = len(exchange._given)
    del untaken
    y = mg.from_dlpack(x)
    assert len(exchange._given) == before  # one more, one less
    del held, y
    x.__dlpack__(stream=-1)
    assert len(exchange._given) == before - 1


class DLTensor(ctypes.Structure):
    """As dlpack.h has it."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int), ("device_id", ctypes.c_int), ("ndim", ctypes.c_int),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "code", "bits"), list(zip(DTYPES, (2, 2, 2, 0, 6), (16, 32, 64, 64, 8), strict=True))
)
def test_the_fields_of_a_capsule(dtype: Any, code: int, bits: int) -> None:
    whole = mg.tensor(values(dtype), device="cuda")
    x = whole[1::2]
    capsule = x.__dlpack__(stream=-1, max_version=(1, 0), dl_device=(2, 0), copy=False)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    t = DLTensor.from_address(pointer(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, b"dltensor"))
    assert (t.device_type, t.device_id) == x.__dlpack_device__() == (2, 0)
    assert (t.code, t.bits, t.lanes, t.ndim, t.byte_offset) == (code, bits, 1, 2, 0)
    assert (t.shape[:2], t.strides[:2]) == ([2, 6], [12, 1])
    assert t.data == whole.data.address + 6 * dtype.itemsize
    assert t.deleter


def test_nothing_goes_to_the_host_in_silence() -> None:
    with pytest.raises((BufferError, RuntimeError, ValueError)):
        np.from_dlpack(mg.ones(3, device="cuda"))
    with pytest.raises(BufferError, match=r"not \(1, 0\)"):
        mg.ones(3, device="cuda").__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="clone"):
        mg.ones(3, device="cuda").__dlpack__(copy=True)


class Said:
    """An array of somebody's."""

    def __init__(self, **said: Any):
        self.held = np.arange(6.0, dtype=np.float32)
        data = (self.held.ctypes.data, False)
        self.__cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": data, "version": 3} | said


def test_what_is_refused() -> None:
    for said, error in [
        ({"typestr": "<f8", "strides": (4, 8)}, ValueError), ({"data": (1, True)}, ValueError),
        ({"typestr": "<c8"}, TypeError), ({"typestr": ">f4"}, TypeError), ({"mask": 1}, ValueError),
    ]:  # fmt: skip
        with pytest.raises(error, match="from_interface"):
            mg.cuda.from_array(Said(**said))
    with pytest.raises(TypeError, match="no __cuda_array_interface__"):
        mg.cuda.from_array(np.ones(2))
    w = mg.ones(2, device="cuda").requires_grad_()
    with pytest.raises(RuntimeError, match="detach"):
        w.__dlpack__()
    with pytest.raises(RuntimeError, match="detach"):
        _ = w.__cuda_array_interface__
    assert not hasattr(mg.ones(2), "__cuda_array_interface__")


class Fakes:
    """The driver's events and streams; what happens to them is written down."""

    def __init__(self, log: list[Any]):
        self.log = log

    def event(self, timing: bool) -> Any:
        log = self.log

        class Event:
            record = staticmethod(lambda stream: log.append(("record", stream)))
            wait = staticmethod(lambda stream: log.append(("wait", stream)))

        return Event

    def external_stream(self, number: int) -> Any:
        return number


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from minigrad.kernels.cuda import exchange

    log: list[Any] = []
    x = mg.ones(3, device="cuda")
    monkeypatch.setattr(exchange, "SIMULATED", False)
    monkeypatch.setattr(exchange, "cuda", Fakes(log))
    monkeypatch.setattr(exchange, "_device_number", lambda: 0)
    monkeypatch.setattr(exchange, "handle", lambda: 77)
    monkeypatch.setattr(exchange, "stream", lambda: "ours")
    x.__dlpack__(stream=None)
    x.__dlpack__(stream=5)
    x.__dlpack__(stream=-1)
    x.__dlpack__(stream=77)
    assert log == [("record", "ours"), ("wait", 1), ("record", "ours"), ("wait", 5)]
    del log[:]
    exchange._wait_for(9, 77)  # somebody's to ours
    assert log == [("record", 9), ("wait", "ours")]
    assert x.__cuda_array_interface__["stream"] == 77


def test_sizes_are_those_of_the_header() -> None:
    from minigrad.kernels.cuda import exchange

    assert ctypes.sizeof(exchange._Managed) == ctypes.sizeof(DLTensor) == 64
    assert sys.byteorder == "little"


def test_a_taker_may_outlive_minigrad_when_python_exits() -> None:
    """It is another library's tensor, which keeps the address of a DLManagedTensor, and calls its deleter."""
    if os.environ.get("MINIGRAD_EMULATE"):
        pytest.skip("a fresh process has no emulated device")
    code = f"""
        import ctypes
        from minigrad.kernels.cuda import array, exchange

        class Taker:
            def __init__(self, capsule):
                self.address = exchange._pointer(capsule, b"dltensor")
                exchange._rename(capsule, b"used_dltensor")
                self.word, self.function = ctypes.c_uint64, ctypes.CFUNCTYPE(None, ctypes.c_void_p)

            def __del__(self):
                deleter = self.word.from_address(self.address + {DLTensor.deleter.offset}).value
                self.function(deleter)(self.address)
                print("given back", flush=True)

        ctypes.taker = Taker(exchange.dlpack(array.empty((3,), "f4"), stream=-1))
        """
    assert fresh.python(code) == "given back"
