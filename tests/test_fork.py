"""Processes forked and spawned by one that has run kernels: they compute, or say what they cannot; none hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fresh import python, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

CHILD = """
    import os, signal, sys, threading, time, traceback
    import minigrad as mg

    def in_a_child(work):
        '''The exit code of a forked child that runs `work`; 14 hides in it if that takes more than half a minute.'''
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            code = 1
            try:
                code = 0 if work() else 2
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        return os.waitpid(pid, 0)[1]
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_a_forked_child_trains_on_after_parallel_kernels_in_other_threads_too(layer: str) -> None:
    code = CHILD + """
    from minigrad import nn
    def trained():
        mg.manual_seed(0)
        net = nn.Sequential(mg.nn.utils.spectral_norm(nn.Linear(64, 512)), nn.Softplus(), nn.Linear(512, 1))
        optimizer = mg.optim.Adam(net.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            net(mg.randn(256, 64)).square().mean().backward()
            optimizer.step()
        return [t.numpy().tobytes() for t in net.state_dict().values()]
    mg.set_num_threads(1)
    expected = trained()  # compiles what children will run: their half a minute is for those that hang
    mg.set_num_threads(2)
    assert trained() == expected
    other = threading.Thread(target=trained)  # has threads of its own in GNU OpenMP
    other.start(); other.join()
    stop = threading.Event()
    def always():  # it computes while the process forks
        x = mg.rand(1 << 16, generator=mg.Generator(0))
        while not stop.is_set():
            mg.softplus(x)
    busy = threading.Thread(target=always)
    busy.start()
    def child():
        return trained() == expected and in_a_child(lambda: trained() == expected) == 0  # and a grandchild
    codes = [in_a_child(child) for _ in range(3)]
    stop.set(); busy.join()
    assert trained() == expected
    print(codes)
    """
    assert python(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == "[0, 0, 0]"


def test_a_fork_in_the_middle_of_a_compilation_leaves_a_child_that_can_compile(tmp_path: Path) -> None:
    code = CHILD + """
    import numba.core.event as event
    compiling = threading.Event()
    class Listener(event.Listener):
        def on_start(self, event): compiling.set()
        def on_end(self, event): pass
    event.register("numba:compile", Listener())
    x = mg.rand(10, generator=mg.Generator(0))
    compiling.clear()
    thread = threading.Thread(target=lambda: mg.gelu(x))
    thread.start()
    assert compiling.wait(30)
    code = in_a_child(lambda: mg.softplus(x).shape == mg.gelu(x).shape == (10,))
    thread.join()
    print(code, os.waitstatus_to_exitcode(code))
    """
    assert python(code, MINIGRAD_CACHE_DIR=str(tmp_path)) == "0 0"


def test_a_fork_in_the_middle_of_a_draw_leaves_a_child_that_can_draw() -> None:
    code = CHILD + """
    from minigrad import _mode
    started = threading.Event()
    class Slow:  # an integer of which addition takes its time, so that the fork meets a draw
        def __init__(self, n): self.n = n
        def __add__(self, k):
            started.set(); time.sleep(0.3)
            return Slow(self.n + k)
    generator = mg.Generator(0)
    generator.offset = Slow(0)
    thread = threading.Thread(target=generator.draw, args=(4, "float32"))
    thread.start()
    assert started.wait(30)
    code = in_a_child(lambda: mg.rand(3).shape == (3,))
    thread.join()
    print(code)
    """
    assert python(code) == "0"


def test_a_child_of_a_process_that_uses_the_gpu_is_refused_it(device: str) -> None:
    if device == "cuda":
        pytest.skip("this needs a simulator of its own")
    code = CHILD + """
    def refused(f):
        try:
            f()
        except RuntimeError as error:
            return "forked process" in str(error) and "spawn" in str(error)
    x = mg.ones(3, device="cuda")
    def child():
        return refused(lambda: x + x) and refused(x.tolist) and refused(lambda: mg.ones(2).to("cuda")) and (
            not mg.cuda.is_available() and mg.ones(2).tolist() == [1, 1])
    print(in_a_child(child), x.tolist())
    """
    assert python(code, NUMBA_ENABLE_CUDASIM="1") == "0 [1.0, 1.0, 1.0]"


LOADER = """
import multiprocessing, sys
import numpy as np
import minigrad as mg

def batch(seed):
    '''What a loader's worker does: read or draw in NumPy, transform by minigrad's kernels, send arrays back.'''
    x = mg.from_numpy(np.random.default_rng(seed).standard_normal((256, 256)).astype(np.float32))
    noisy = mg.softplus(x) + mg.randn(256, 256, generator=mg.Generator(seed))
    return seed, noisy.numpy(), mg.softmax(x @ x.T, 1)

def main(method):
    expected = [batch(seed) for seed in range(6)]  # kernels have run in parallel before the workers start
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map_async(batch, range(6), chunksize=1).get(90)
    for (i, x, y), (j, z, w) in zip(found, expected):
        assert i == j and type(y) is mg.Tensor
        np.testing.assert_array_equal(x, z)
        np.testing.assert_array_equal(y.numpy(), w.numpy())
    print(len(found))

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_load_batches(method: str, tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    assert run(str(script), method) == "6"
