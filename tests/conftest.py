"""What all tests share: the device they run on, and random numbers that repeat."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import numba
import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels.cpu import _scratch

pytest.register_assert_rewrite("exported")  # its failures show their numbers, as those of a test file do

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("simulator", deadline=None, derandomize=True, max_examples=20)
simulated = "simulator" if numba.config.ENABLE_CUDASIM else ""
hypothesis.settings.load_profile(simulated or ("ci" if os.environ.get("CI") else "local"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where the tensors of the tests live")


def pytest_configure(config: pytest.Config) -> None:
    if numba.config.ENABLE_CUDASIM:
        importlib.import_module("cuda_simulator").install()
    if os.environ.get("MINIGRAD_EMULATE"):
        importlib.import_module("cuda_emulator").install()
    if config.getoption("--device") == "cuda" and not mg.cuda.is_available():
        raise pytest.UsageError("--device cuda: no CUDA device can be used here. Run without it, or with --device cpu.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """An op without a kernel on the device is skipped by its own words; test_cuda_parity.py has the list of them."""
    try:
        return (yield)
    except AttributeError as error:
        if type(error).__name__ == "MissingKernel":
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.getoption("--device"))


@pytest.fixture
def second_device(device: str) -> None:
    if device == "cpu":
        pytest.skip("there is no second device")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """It is heard, here and in the processes that a test starts: a job in the background begins by ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def on_cuda(device: str) -> None:
    if device != "cuda":
        pytest.skip("runs on device 'cuda': test_cuda_simulator.py and others take it to the simulator")


@pytest.fixture
def on_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test makes is on the device, unless it says where."""
    for name in ("tensor", "zeros", "ones", "full", "empty", "eye", "arange", "rand", "randn", "capture"):
        monkeypatch.setattr(mg, name, functools.partial(getattr(mg, name), device=device))


@pytest.fixture
def launched(device: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that the GPU, or the simulator, is given to run."""
    names: list[str] = []
    if device == "cuda":
        kernel = importlib.import_module("minigrad.kernels.cuda.launch").Kernel
        launch = kernel._launch

        def noted(self: Any, *args: Any) -> None:
            names.append(self.name)
            launch(self, *args)

        monkeypatch.setattr(kernel, "_launch", noted)
    return names


@pytest.fixture(scope="session")
def most_elements(device: str) -> int:
    """How many elements a test may give to the device: the simulator takes some 20 µs for each."""
    return 5000 if device == "cuda" and numba.config.ENABLE_CUDASIM else 1 << 62


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    mg.manual_seed(0)


@pytest.fixture
def dirty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels on the CPU borrow to work in holds NaN."""
    new = _scratch._new
    monkeypatch.setattr(_scratch, "_buffers", [])
    monkeypatch.setattr(_scratch, "_KEPT", 0)
    monkeypatch.setattr(_scratch, "_new", lambda size: np.full_like(new(size), 255))
