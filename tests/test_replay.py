"""Launches made again from machine code: what a captured step does on the CPU, without the step."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh import python
from numba import prange

from minigrad.kernels.cpu import _jit
from minigrad.kernels.cpu._jit import jit
from minigrad.kernels.cpu._replay import Replay, noted

# Of every kind of argument that a kernel is given ---------------------------------------------------------------------


@jit()
def _of_all_kinds(out: Any, x: Any, y: Any, whole: int, real: float, single: Any, truth: bool, pair: Any) -> None:
    for i in range(len(out)):
        out[i] = x[i, 0] + 10 * x[i, 1] + whole * real + single + pair[0] * pair[1]
        if truth:
            out[i] += 1000
        if y is not None:
            out[i] += y[i]


@jit(1000)
def _count(out: Any, x: Any) -> None:
    for i in prange(out.size):
        out[i] = x[i] + 1


@jit()
def _count_up(out: Any, x: Any) -> None:
    for i in range(out.size):
        if x[i] < 0:
            raise ValueError("below zero")
        out[i] = x[i] + 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("y", [None, np.arange(3)])
@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("pair", [(2, 3), (2.5, 3), (0.5, -4.0)])
def test_a_replay_gives_a_kernel_what_a_call_does(dtype: Any, y: Any, truth: bool, pair: Any) -> None:
    out, x = np.zeros(3), np.arange(6).reshape(3, 2).astype(dtype)
    x_read_only = x.view()
    x_read_only.flags.writeable = False
    args = (out, x_read_only, y, -7, 1e-3, np.float32(0.1), truth, pair)
    _of_all_kinds(*args)
    expected = out.copy()
    replay = Replay([(_of_all_kinds, args)])
    for step in range(3):
        x += 1
        out[:] = np.nan
        replay()
        np.testing.assert_allclose(out, expected + 11 * (step + 1), rtol=1e-15)


def test_launches_follow_each_other() -> None:
    x, y, z = np.zeros(4), np.zeros(4), np.zeros(4)
    replay = Replay([(_count, (y, x)), (_count, (z, y)), (_count, (x, z))])
    for i in range(1, 4):
        replay()
        assert (x[0], y[0], z[0]) == (3 * i, 3 * i - 2, 3 * i - 1)


def test_an_error_is_the_kernels_own_and_the_launches_before_it_are_made() -> None:
    x, y, z = np.zeros(3), np.zeros(3), np.array([0.0, 0.0, -9.0])
    replay = Replay([(_count, (y, x)), (_count_up, (x, z)), (_count, (z, z))])
    for i in range(1, 3):
        with pytest.raises(ValueError, match="below zero"):
            replay()
        assert (x[0], y[0], z[0]) == (1, i, 0)
    z[2] = 0
    replay()
    assert x.tolist() == z.tolist() == [1.0] * 3


def test_launches_go_on_where_an_error_was_over() -> None:
    """Of memory, say, which was there when the kernel was called once more."""

    @jit()
    def fail_once(x: Any) -> None:
        if x[0] == 0:
            x[0] = 1
            raise ValueError("not yet")

    x, y = np.zeros(1), np.zeros(1)
    Replay([(fail_once, (x,)), (_count, (y, x)), (_count, (x, y))])()
    assert (x[0], y[0]) == (3, 2)


def test_the_number_of_threads_and_a_fork_choose_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """By which of the two is asked for its code."""
    x, y = np.zeros(3000), np.zeros(3000)
    replay = Replay([(_count, (y, x))])
    chosen = []
    for threads, forked in ((None, False), (1, False), (2, True), (2, False)):
        monkeypatch.setattr(_jit, "_threads", threads)
        monkeypatch.setattr(_jit, "_forked", forked)
        x += 1
        replay()
        assert (y == x + 1).all()
        chosen.append(replay._variants == [_count.parallel])
    assert chosen == [True, False, False, True]


def test_a_kernel_that_returns_something_is_refused() -> None:
    @jit()
    def first(x: Any) -> Any:
        return x[0]

    with pytest.raises(AssertionError, match=r"first returns something"):
        Replay([(first, (np.ones(2),))])()


# Memory ---------------------------------------------------------------------------------------------------------------


def test_a_replay_holds_memory_and_notes_do_not() -> None:
    x, y = np.zeros(100), np.zeros(100)
    gone = weakref.ref(x)
    notes = noted([(_count, (y[:50], x.reshape(10, 10)[1]))])
    replay = Replay(notes)
    del x
    gc.collect()
    assert gone() is not None
    replay()
    assert y[:10].tolist() == [1.0] * 10
    del replay
    assert gone() is None
    with pytest.raises(RuntimeError, match=r"let go of a tensor"):
        Replay(notes)


def test_machine_code_goes_with_its_replay() -> None:
    """A quarter of a megabyte for each, were it left to Numba, which keeps all that it has made; 30 MB here."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("memory is read from /proc, which this system has not")
    code = """
        import gc, os
        import numpy as np
        from minigrad.kernels.cpu import array
        from minigrad.kernels.cpu._replay import Replay

        def held():
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def work(times):
            for _ in range(times):
                x, y = np.zeros(3), np.ones(3)
                Replay([(array._move, (x, y))] * 40)()
                assert x.sum() == 3

        work(40)
        before = held()
        work(120)
        print(held() - before)
    """
    assert int(python(code)) < 15e6


def test_kernels_of_one_text_that_other_processes_compiled_are_told_apart(tmp_path: Path) -> None:
    """relu and silu, each the first kernel that its process compiled."""
    for name in ("relu", "silu"):
        python(f"import minigrad as mg; mg.{name}(mg.ones(2))", MINIGRAD_CACHE_DIR=str(tmp_path))
    code = """
        import minigrad as mg
        x = -mg.ones(2)
        step = mg.capture(mg.relu)
        step(x), step(x), mg.silu(x)
        print(step(x).tolist())
    """
    assert python(code, MINIGRAD_CACHE_DIR=str(tmp_path)) == "[0.0, 0.0]"


def test_what_cannot_be_made_again_is_not_noted() -> None:
    x, y = np.zeros((4, 4)), np.zeros(4)
    assert noted([(_count, (y, x[0]))])
    assert not noted([(_count, (y, x[:, 0]))])
    assert not noted([(_count, (y, x[0].copy()))])  # a copy for the launch alone, which is gone
