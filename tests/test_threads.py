"""Python threads that train and evaluate at once, under every threading layer of Numba: the bits of a serial run."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from fresh import python

LAYERS = ["omp", "workqueue", "tbb"]

TRAINING = """
    import sys, threading
    import numpy as np
    import minigrad as mg
    from minigrad import nn
    from minigrad.nn import functional as F
    from minigrad.nn.utils import spectral_norm

    def network(seed):
        mg.manual_seed(seed)
        return nn.Sequential(
            spectral_norm(nn.Conv2d(1, 16, 3, padding=1)), nn.BatchNorm2d(16), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
            nn.Flatten(), spectral_norm(nn.Linear(256, 512)), nn.Softplus(), spectral_norm(nn.Linear(512, 10)),
        )

    shared = network(99).eval()

    def work(seed, net, results, steps=3):
        '''Train a network of the thread's own; look at every batch, and at a slope, through the one that all share.'''
        generator = mg.Generator(seed)
        optimizer = mg.optim.Adam(net.parameters(), lr=0.01)
        seen = []
        for _ in range(steps):
            x = mg.randn(64, 1, 8, 8, generator=generator, requires_grad=True)
            targets = (mg.rand(64, generator=generator) * 10).long()
            optimizer.zero_grad()
            F.cross_entropy(net(x.detach()), targets).backward()
            optimizer.step()
            out = shared(x)
            seen += [out.detach(), *mg.grad(out.square().sum(), x)]
        results[seed] = [t.detach().numpy().tobytes() for t in (*net.state_dict().values(), *seen)]

    def together(seeds):
        sys.setswitchinterval(1e-5)  # the interpreter changes threads as often as it can
        results, nets = {}, [network(seed) for seed in seeds]
        threads = [threading.Thread(target=work, args=(s, net, results)) for s, net in zip(seeds, nets)]
        for t in threads: t.start()
        for t in threads: t.join()
        return results
"""


def available(layer: str) -> None:
    if layer == "tbb":
        try:
            ctypes.CDLL("libtbb.so.12")
        except OSError:
            pytest.skip("TBB is not installed")


@pytest.mark.parametrize("layer", LAYERS)
def test_threads_train_to_the_bits_of_a_serial_run(layer: str) -> None:
    available(layer)
    code = TRAINING + """
    import numba
    serial = {}
    for seed in range(8):
        work(seed, network(seed), serial)
    before = [t.numpy().tobytes() for t in shared.state_dict().values()]
    for n in (2, 3, 8):
        found = together(range(n))
        assert sorted(found) == list(range(n)), "a thread died"
        assert all(found[seed] == serial[seed] for seed in range(n)), n
    assert len({repr(result) for result in serial.values()}) == 8
    assert [t.detach().numpy().tobytes() for t in shared.state_dict().values()] == before
    print(numba.threading_layer())
    """
    assert python(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == layer


def test_threads_that_compile_the_same_kernels_at_once(tmp_path: Path) -> None:
    code = """
    import threading
    import minigrad as mg
    x = mg.rand(1000, generator=mg.Generator(0), dtype=mg.float64)
    start, results = threading.Barrier(6), []
    def work():
        start.wait()
        results.append(mg.softplus(x).numpy().tobytes())
    threads = [threading.Thread(target=work) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(results) == 6 and len(set(results)) == 1
    print(len(results))
    """
    assert python(code, MINIGRAD_CACHE_DIR=str(tmp_path)) == "6"
    assert len(list(tmp_path.iterdir())) == 2, "a kernel was compiled twice, or scratch was left behind"
