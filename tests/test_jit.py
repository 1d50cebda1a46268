"""The kernel cache and the threads: each promise in processes of its own."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.codegen import JITCodeLibrary

import minigrad
from minigrad.kernels import disk_cache
from minigrad.kernels.cpu import _jit

RELU = """
    import minigrad as mg
    print(mg.relu(mg.tensor([-1.0, 2.0])).tolist())
"""


def run(code: str, cache: Path, package: Path, **environment: str) -> str:
    """Standard output of a fresh interpreter; a failure, or more than a minute, fails the test."""
    return ended(code, cache, package, **environment).stdout.strip()


def said_by(code: str, cache: Path, package: Path) -> list[str]:
    return ended(code, cache, package).stderr.splitlines()


def ended(code: str, cache: Path, package: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MINIGRAD_CACHE_DIR": str(cache), "PYTHONPATH": str(package), **environment}
    code = textwrap.dedent(code) + "\nassert mg.__file__.startswith(" + repr(str(package)) + "), mg.__file__"
    python = [sys.executable, "-c", code]
    done = subprocess.run(python, env=env, cwd=package, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def copy_of_the_package(folder: Path) -> Path:
    """Nobody edits a copy while the tests run."""
    shutil.copytree(Path(minigrad.__file__).parent, folder / "minigrad", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_package(tmp_path_factory.mktemp("package"))


def files(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("*")}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Path:
    """A cache with the kernel of relu in it."""
    cache = tmp_path_factory.mktemp("warm")
    assert run(RELU, cache, package) == "[0.0, 2.0]"
    assert len(files(cache)) == 1
    return cache


def test_nothing_compiles_at_import(tmp_path: Path, package: Path) -> None:
    code = """
        import gc
        import minigrad as mg
        from numba.core.dispatcher import Dispatcher
        everything = [d for d in gc.get_objects() if isinstance(d, Dispatcher)]
        ours = [d for d in everything if d.py_func.__module__.startswith("minigrad")]
        print(len(ours) > 0, sum(len(d.signatures) for d in ours))
    """
    assert (run(code, tmp_path, package), files(tmp_path)) == ("True 0", {})


def test_a_second_process_finds_the_kernels(warm: Path, package: Path) -> None:
    before = files(warm)
    assert run(RELU, warm, package) == "[0.0, 2.0]"
    assert files(warm) == before, "a kernel was compiled again"


def test_a_first_run_says_what_it_waits_for(warm: Path, package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    twice = RELU + "    mg.leaky_relu(mg.ones(2))"
    said = "minigrad: kernels are being compiled for this machine; "
    assert said_by(twice, tmp_path / "new", package) == [f"{said}the next run finds them in {tmp_path / 'new'}"]
    assert said_by(twice, tmp_path / "file" / "x", package) == [f"{said}{tmp_path / 'file' / 'x'} cannot be written"]
    assert said_by(RELU, warm, package) == []
    silenced = "import logging; logging.getLogger('minigrad').disabled = True\n" + textwrap.dedent(RELU)
    assert said_by(silenced, tmp_path / "another", package) == []


def test_a_changed_formula_is_never_served_stale(warm: Path, package: Path, tmp_path: Path) -> None:
    scalar = copy_of_the_package(tmp_path) / "minigrad" / "kernels" / "scalar.py"
    text = scalar.read_text()
    old = "return x if x > type(x)(0) or x != x else type(x)(0)"
    assert text.count(old) == 1
    scalar.write_text(text.replace(old, old.replace("else type(x)(0)", "else type(x)(7)")))
    before = files(warm)
    assert run(RELU, warm, tmp_path) == "[7.0, 2.0]"
    assert run(RELU, warm, package) == "[0.0, 2.0]"
    assert before.items() <= files(warm).items()


def test_a_damaged_file_is_compiled_again(package: Path, tmp_path: Path) -> None:
    run(RELU, tmp_path, package)
    (path,) = tmp_path.glob("*")
    good = path.read_bytes()
    run(RELU.replace("relu", "leaky_relu"), tmp_path, package)
    (another,) = set(tmp_path.glob("*")) - {path}
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for bad in (good[:-100], bytes(flipped), b"N.", another.read_bytes()):
        path.write_bytes(bad)
        assert run(RELU, tmp_path, package) == "[0.0, 2.0]"
        assert path.read_bytes() != bad, "it was trusted"
    path.unlink()
    path.mkdir()
    assert run(RELU, tmp_path, package) == "[0.0, 2.0]"
    assert set(tmp_path.glob("*")) == {path, another}, "scratch was left behind"


def test_processes_that_compile_the_same_kernel_at_once(package: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: run(RELU, tmp_path, package), range(3))) == ["[0.0, 2.0]"] * 3
    before = files(tmp_path)
    assert len(before) == 1, "scratch was left behind"
    assert run(RELU, tmp_path, package) == "[0.0, 2.0]"
    assert files(tmp_path) == before, "what they left cannot be loaded"


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_full_disk_costs_a_compilation_only(tmp_path: Path, package: Path) -> None:
    limit = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a kernel is longer: writing it breaks off
    """
    assert run(limit + RELU, tmp_path, package) == "[0.0, 2.0]"
    assert files(tmp_path) == {}, "a part was left behind"


def test_no_folder_at_all_costs_a_compilation_only(tmp_path: Path, package: Path) -> None:
    nowhere = """
    import os, pathlib, tempfile
    del os.environ["MINIGRAD_CACHE_DIR"]
    def refuse(error):
        raise error
    tempfile.gettempdir = lambda: refuse(FileNotFoundError("no usable temporary directory found"))
    pathlib.Path.home = lambda: refuse(RuntimeError("could not determine home directory"))
    """
    assert run(nowhere + RELU, tmp_path, package, XDG_CACHE_HOME="") == "[0.0, 2.0]"


def test_kernels_that_nobody_has_used_for_a_month_are_removed(package: Path, tmp_path: Path) -> None:
    def aged(path: Path, days: float) -> None:
        then = time.time() - days * 24 * 60 * 60
        os.utime(path, (then, then))

    run(RELU, tmp_path, package)
    (used,) = tmp_path.iterdir()
    kept = [tmp_path / name for name in ("a.kernel", "notes.txt")]
    gone = [tmp_path / name for name in ("b.kernel", "c.kernel-123-456")]
    for path in (*kept, *gone):
        path.touch()
    for path, days in zip((used, *kept, *gone), (29, 29, 99, 31, 31), strict=True):
        aged(path, days)
    assert run(RELU, tmp_path, package) == "[0.0, 2.0]"
    assert time.time() - used.stat().st_mtime < 24 * 60 * 60, "it was used now"
    aged(kept[0], 31)
    assert run(RELU.replace("relu", "leaky_relu"), tmp_path, package)  # compiles, and cleans up
    left = set(tmp_path.iterdir())
    assert left >= {used, kept[1]} and not left & {kept[0], *gone}


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_folder_that_cannot_be_written_costs_a_compilation_only(tmp_path: Path, package: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")  # root may write to any folder, but to no folder inside a file
    assert run(RELU, blocked / "cache", package) == "[0.0, 2.0]"


def test_a_temporary_folder_that_others_may_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = disk_cache._temporary_directory.__wrapped__()
    assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert disk_cache._temporary_directory.__wrapped__() == folder
    folder.chmod(0o777)
    assert disk_cache._temporary_directory.__wrapped__() not in (folder, tmp_path)


PARALLEL = """
    import os, sys
    import numpy as np
    import minigrad as mg
    x = mg.rand(1 << 17, generator=mg.Generator(0))
    def work():
        y = mg.softplus(x)
        return float(y.sum().item()), y.numpy().tobytes()
    expected = work()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_uses_kernels_after_its_parent_ran_parallel_ones(warm: Path, package: Path) -> None:
    code = PARALLEL + """
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() == expected else 1)
    print(os.waitpid(pid, 0)[1])
    """
    assert run(code, warm, package) == "0"


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_two_threads_may_run_parallel_kernels_at_once(layer: str, warm: Path, package: Path) -> None:
    code = PARALLEL + """
    import threading
    results = []
    def many():
        results.extend(work() for _ in range(50))
    threads = [threading.Thread(target=many) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    import numba
    print(len(results), all(r == expected for r in results), numba.threading_layer())
    """
    if layer == "omp" and sys.platform != "linux":
        pytest.skip("GNU OpenMP is Linux's")
    assert run(code, warm, package, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == f"100 True {layer}"


def test_size_chooses_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def increment(x: Any) -> None:
        for i in range(x.size):
            x[i] += 1

    kernel = _jit.jit(parallel_from=10)(increment)
    kernel.__dict__.update(serial=lambda x: ran.append("serial"), parallel=lambda x: ran.append("parallel"))
    kernel(np.zeros(9))
    kernel(np.zeros(10))
    monkeypatch.setattr(_jit, "_threads", 1)
    kernel(np.zeros(10))
    monkeypatch.setattr(_jit, "_threads", None)
    monkeypatch.setattr(_jit, "_forked", True)
    kernel(np.zeros(10))
    assert ran == ["serial", "parallel", "serial", "serial"]


def test_a_parallel_kernel_becomes_machine_code_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not its wrappers for threads and its loop too, as by Numba alone. The loop finds its constant, a text."""
    made: list[str] = []
    optimized: list[str] = []

    def note(function: str, names: list[str]) -> None:
        before = getattr(JITCodeLibrary, function)

        def noted(self: Any) -> None:
            names.append(self.name)
            before(self)

        monkeypatch.setattr(JITCodeLibrary, function, noted)

    def loop(x: Any) -> None:
        for i in numba.prange(x.size):
            print("number", x[i])

    note("_finalize_specific", made)
    note("_optimize_final_module", optimized)
    monkeypatch.setenv("MINIGRAD_CACHE_DIR", str(tmp_path))
    numba.njit(parallel=True)(loop)(np.ones(1))
    assert [len([name for name in names if name != "nrt"]) for names in (made, optimized)] == [4, 4]  # nrt: its memory
    made.clear()
    optimized.clear()
    _jit.Kernel(loop, "test.loop", 1)(np.full(1, 2.0))
    assert made == ["test.loop-parallel"] == optimized[1:]
    assert "number 2.0" in capsys.readouterr().out


def test_no_garbage_is_looked_for_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looking: list[bool] = []
    verify = JITCodeLibrary._verify_declare_only_symbols
    noted = lambda self: looking.append(gc.isenabled()) or verify(self)  # noqa: E731
    monkeypatch.setattr(JITCodeLibrary, "_verify_declare_only_symbols", noted)
    monkeypatch.setenv("MINIGRAD_CACHE_DIR", str(tmp_path))
    _jit.Kernel(lambda x: x.size, "test.size", None)(np.ones(1))
    assert looking and not any(looking) and gc.isenabled()
    with pytest.raises(numba.TypingError):
        _jit.Kernel(lambda x: x.nothing, "test.nothing", None)(np.ones(1))
    assert gc.isenabled()
    gc.disable()
    try:
        _jit.Kernel(lambda x: x.ndim, "test.ndim", None)(np.ones(1))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIGRAD_CACHE_DIR", str(tmp_path / "chosen"))
    assert disk_cache.cache_directory() == tmp_path / "chosen"
    monkeypatch.delenv("MINIGRAD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert disk_cache.cache_directory() == tmp_path / "xdg" / "minigrad"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be made a folder in
    assert disk_cache.cache_directory().name.startswith("minigrad-")
