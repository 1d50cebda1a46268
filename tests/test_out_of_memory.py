"""No memory left: the error names who asked, for how much, and what is in use; the process trains on as if nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from fresh import python

TRAINING = """
    import minigrad as mg
    from minigrad import nn

    def trained(device):
        mg.manual_seed(0)
        net = nn.Sequential(mg.nn.utils.spectral_norm(nn.Linear(8, 16)), nn.Softplus(), nn.Linear(16, 1)).to(device)
        optimizer = mg.optim.Adam(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            net(mg.randn(4, 8, device=device)).square().mean().backward()
            optimizer.step()
        return [t.to("cpu").numpy().tobytes() for t in net.state_dict().values()]

    def refused(f):
        try:
            f()
        except MemoryError as error:
            print(error)
        else:
            raise AssertionError("there was memory for it")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
def test_on_the_cpu() -> None:
    code = TRAINING + """
    import resource
    expected = trained("cpu")
    column, row = mg.ones(1 << 14, 1), mg.ones(1, 1 << 14)
    parameter = nn.Parameter(mg.ones(100 << 18))  # 100 MiB
    captured = mg.capture(lambda x: (x.exp(), -x, x.abs()))
    for _ in range(2):
        captured(parameter.detach())
    mg.softplus(mg.ones(1 << 17)).sum(); column.T @ column  # threads are started, buffers of BLAS made
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (250 << 20), resource.RLIM_INFINITY))

    for _ in range(3):  # nothing of a failure stays
        refused(lambda: mg.zeros(1 << 28))
        refused(lambda: column * row)
        refused(lambda: column @ row)
        refused(lambda: mg.softplus(column.expand(1 << 14, 1 << 14)))
        refused(lambda: parameter.exp().exp().sum())
        loss = parameter.exp().sum()  # for which there is memory, but not for its gradient
        refused(loss.backward)
        assert parameter.grad is None
        del loss
        parameter.grad = parameter.detach()
        refused(mg.optim.Adam([parameter]).step)
        parameter.grad = None
        refused(lambda: captured(parameter.detach()))
        assert trained("cpu") == expected
    assert float(parameter.exp().sum()) > 0
    """
    lines = python(code, MINIGRAD_REUSE_MEMORY="0").splitlines()  # so that the limit alone says what there is
    assert len(lines) == 24 and lines[:8] != lines[8:16]  # what is in use is asked every time
    kinds = ["full: Unable to allocate 1.00 GiB for an array with shape (268435456,) and data type float32"]
    kinds += [f"{op}: Unable to allocate 1.00 GiB for an array with shape (16384, 16384)" for op in ("mul", "matmul")]
    kinds += ["softplus: Unable to allocate 1.00 GiB", "exp: Unable to allocate 100. MiB", "mul: Unable to allocate"]
    kinds += ["full: Unable to allocate 100. MiB", "mg.capture: Unable to allocate 100. MiB"]
    end = r"\(device 'cpu'; ([\d,]+) bytes are in use\)\. Free tensors, or work on smaller batches\.$"
    for line, kind in zip(lines, 3 * kinds, strict=True):
        assert line.startswith(kind)
        found = re.search(end, line)
        assert found and 100 << 20 < int(found[1].replace(",", "")) < 2 << 30


def test_on_the_gpu(device: str) -> None:
    if device == "cuda":
        pytest.skip("this needs a simulator of its own")
    code = TRAINING + f"""
    import sys
    sys.path.insert(0, {os.path.dirname(__file__)!r})
    import cuda_simulator
    cuda_simulator.install()
    from minigrad.kernels.cuda import memory
    from minigrad.kernels.cuda._numba import cuda

    expected = trained("cuda")
    x, there = mg.ones(1000, device="cuda"), memory._reserve
    failures = []
    def reserve(size):
        if left[0] <= 0:
            failures.append(size)
            raise cuda.cudadrv.driver.CudaAPIError(2, "Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
        left[0] -= 1
        return there(size)
    memory._reserve, left = reserve, [0]
    for _ in range(2):
        refused(lambda: mg.zeros(1 << 20, device="cuda"))
        refused(lambda: mg.zeros(1 << 20).to("cuda"))
        refused(lambda: x.expand(500, 1000) + x)
        assert len(failures) == 6  # each was tried again after what was free had been given back
        failures.clear()
    for allocations in range(0, 1000, 5):  # a step that fails at any of them, until there are enough
        memory.empty_cache()
        left[0] = allocations
        try:
            assert trained("cuda") == expected
            break
        except MemoryError:
            pass
    print(allocations)
    """
    lines = python(code, NUMBA_ENABLE_CUDASIM="1").splitlines()
    kinds = ["full: unable to allocate 4,194,304 bytes", "move: unable to allocate 4,194,304 bytes"]
    kinds += ["add: unable to allocate 2,097,152 bytes"]
    assert int(lines.pop()) > 20
    for line, kind in zip(lines, 2 * kinds, strict=True):
        assert line.startswith(f"{kind}: ") and "CUDA_ERROR_OUT_OF_MEMORY" in line
        assert re.search(r"\(device 'cuda'; [\d,]{5,9} bytes are in use\)\. Free tensors, or", line)
