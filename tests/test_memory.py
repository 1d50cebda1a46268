"""What the graph holds in memory: no cycles, buffers freed as the walk passes, gradients that alias nothing."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad._op import primitive


def leaf(*values: float) -> mg.Tensor:
    return mg.tensor(list(values), dtype=mg.float64, requires_grad=True)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Whatever dies here dies by reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def network() -> tuple[mg.Tensor, mg.Tensor, list[weakref.ref[Any]]]:
    """A leaf, a loss, and weak references to everything between them that has memory of its own."""
    x = mg.rand(8, 8, dtype=mg.float64, requires_grad=True)
    h = mg.exp(x)
    y = mg.softmax(h @ h.T, 1)
    loss = (y * y).sum() + mg.norm(x[::2])
    return x, loss, [weakref.ref(memory) for memory in (h, h.data, y.data)]  # Tensors are saved, or their arrays


@pytest.mark.usefixtures("no_collector")
def test_a_graph_dies_with_its_output() -> None:
    x, loss, inner = network()
    outer = [weakref.ref(x), weakref.ref(loss)]
    assert inner[0]() is not None  # it is saved in the graph
    del loss
    assert [r() for r in inner] == [None] * 3
    del x
    assert [r() for r in outer] == [None] * 2


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", ["backward", "grad", "create_graph", "error", "anomaly"])
def test_a_walk_leaves_no_cycles(way: str) -> None:
    x, loss, inner = network()
    if way == "backward":
        loss.backward()
        assert [r() for r in inner] == [None] * 3, "what ops saved is freed by the walk, though the loss lives on"
    elif way == "grad":
        mg.grad(loss, x)
    elif way == "create_graph":
        (g,) = mg.grad(loss, x, create_graph=True)
        g.sum().backward()
        del g
    elif way == "error":
        x.register_hook(lambda g: 1)
        with pytest.raises(RuntimeError):
            loss.backward()
    else:
        with mg.detect_anomaly(), pytest.raises(RuntimeError):
            (mg.log(x * 0 - 1) + loss).backward()
    gone = [weakref.ref(x), *inner]
    del x, loss
    assert [r() for r in gone] == [None] * 4


@pytest.mark.usefixtures("no_collector")
def test_buffers_are_freed_as_the_walk_passes() -> None:
    x = mg.ones(4, requires_grad=True)
    middle = mg.exp(x)
    alive: list[bool] = []
    x.register_hook(lambda g: alive.append(inner() is not None))
    late = mg.exp(middle * 1)
    inner = weakref.ref(late)
    out = (late * late).sum()
    del late, middle
    assert inner() is not None
    out.backward()
    assert alive == [False]


def test_a_chain_of_a_hundred_thousand_ops() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1.0]
    del y  # no recursion here either


def memory_of(*ts: Any) -> list[np.ndarray[Any, Any]]:
    return [t.detach().numpy() for t in ts]


@pytest.mark.parametrize(
    "f",
    [lambda x, y: x + y, lambda x, y: x.reshape(2, 2) + y.T.reshape(2, 2), lambda x, y: mg.cat([x, y]),
     lambda x, y: (x + y).flip(0), lambda x, y: x.clone() + y.contiguous(), lambda x, y: x - (-y)],
)  # fmt: skip
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_have_memory_of_their_own(f: Any, create_graph: bool) -> None:
    x, y = leaf(1.0, 2.0, 3.0, 4.0), leaf(5.0, 6.0, 7.0, 8.0)
    out = f(x, y)
    out.retain_grad()
    upstream = mg.rand(*out.shape, dtype=mg.float64)
    out.backward(upstream, create_graph=create_graph)
    parts = memory_of(x, y, out, upstream, x.grad, y.grad, out.grad)
    for i, a in enumerate(parts):
        assert not any(np.shares_memory(a, b) for b in parts[i + 1 :]), i
    x.grad = y.grad = out.grad = None


def test_gradients_do_not_alias_what_rules_and_hooks_hold() -> None:
    @primitive()
    def bilinear(k: Any, x: Any, y: Any) -> Any:
        return np.asarray(x @ y)

    bilinear.vjp(x=lambda g, y: y, y=lambda g, x: x)  # right for g = 1, and hands out what it saved
    x, y, z = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0)
    held: list[mg.Tensor] = []
    z.register_hook(held.append)
    (bilinear(x, y) + (z * 3).sum()).backward()
    assert not np.shares_memory(*memory_of(x.grad, y))
    assert not np.shares_memory(*memory_of(y.grad, x))
    assert not np.shares_memory(*memory_of(z.grad, held[0]))


def test_gradients_that_rules_share_do_not_alias() -> None:
    @primitive()
    def total(k: Any, x: Any, y: Any) -> Any:
        return np.asarray(x + y)

    def rule(g: mg.Tensor, shared: list[mg.Tensor]) -> mg.Tensor:
        if not shared:
            shared.append(g * 1)
        return shared[0]

    total.vjp(x=rule, y=rule)
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    total(x, y).sum().backward()
    assert x.grad.tolist() == y.grad.tolist() == [1.0, 1.0]
    assert not np.shares_memory(*memory_of(x.grad, y.grad))


# The C library's allocator -------------------------------------------------------------------------------------------

FAULTS = """
import resource, sys
import minigrad as mg

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

size = int(sys.argv[1])
x = mg.ones(size)
for repeat in range(3):
    before = faults()
    for _ in range(8):
        y = x + x; z = y + x; w = z + y; del y, z, w
print(faults() - before, 8 * 3 * size // 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
@pytest.mark.parametrize(
    ("chosen", "size"),
    [
        ("", 1 << 20), ("", 10 << 20),  # blocks above 32 MiB are mapped, each for itself, by default
        ("MALLOC_MMAP_THRESHOLD_=131072", 1 << 20), ("MALLOC_TRIM_THRESHOLD_=131072", 1 << 20),
        ("MINIGRAD_REUSE_MEMORY=0", 10 << 20),
    ],
)  # fmt: skip
def test_freed_memory_is_used_again(chosen: str, size: int) -> None:
    """Without it every one of the pages would be fetched anew; variables of the environment switch it off."""
    environment = os.environ | dict([chosen.split("=")] if chosen else []) | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    command = [sys.executable, "-c", FAULTS, str(size)]
    made = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found, pages = map(int, made.stdout.split())
    assert found > pages / 8 if chosen else found < pages / 100
