"""Nothing is left to the cycle collector: whatever way a graph ends, reference counts alone free all of it."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fresh import python
from ops_table import TABLE, Row, inputs

import minigrad as mg
from minigrad._mode import witnessed


class Failure(Exception):
    """What a test lets an op raise."""


def failing_at(n: int) -> witnessed:
    """The n-th op from here on has run when it fails."""
    counted = iter(range(n, -1, -1))

    def fail(*what: Any) -> None:
        if next(counted, 1) == 0:
            raise Failure

    return witnessed(fail)


def inner(row: Row) -> tuple[list[mg.Tensor], mg.Tensor]:
    """Leaves, and the op of the row at an inner place of a graph: both its inputs and its output are intermediate."""
    xs = [mg.tensor(a, requires_grad=True) for a in inputs(row, row.shapes[0])]
    y = row.function(mg, *[x * 1.0 for x in xs])
    return xs, (y * y).sum()


def dropped(row: Row) -> None:
    inner(row)


def backward(row: Row) -> None:
    inner(row)[1].backward()


def retained_graph(row: Row) -> None:
    _, out = inner(row)
    out.backward(retain_graph=True)
    out.backward()


def double_backward(row: Row) -> None:
    xs, out = inner(row)
    gs = mg.grad(out, xs, create_graph=True)
    total = sum((g * g).sum() for g in gs)
    if total.requires_grad:
        total.backward()


def third_order_dropped(row: Row) -> None:
    xs, out = inner(row)
    for _ in range(2):
        out = sum((g * g).sum() for g in mg.grad(out, xs, create_graph=True) if g.requires_grad) + out


def hooks(row: Row) -> None:
    """And kept gradients; some hooks are never taken off."""
    xs, out = inner(row)
    y = out * 2
    seen: list[mg.Tensor] = []
    handles = [x.register_hook(seen.append) for x in (*xs, out, y)]
    y.retain_grad()
    out.retain_grad()
    y.backward()
    for handle in handles[1:]:
        handle.remove()


def failed_forward(row: Row, which: int) -> None:
    with contextlib.suppress(Failure), failing_at(which):
        inner(row)


def failed_backward(row: Row, which: int, create_graph: bool) -> None:
    _, out = inner(row)
    with contextlib.suppress(Failure), failing_at(which):
        out.backward(create_graph=create_graph)


def refused(row: Row) -> None:
    """Errors of our own, some raised in the midst of others."""
    xs, out = inner(row)
    xs[0].register_hook(lambda g: 1)
    for attempt in (
        out.backward, lambda: out + mg.ones(7) + mg.ones(5), lambda: out[3], lambda: xs[0].copy_(xs[0]), out.numpy,
        lambda: mg.matmul(xs[0], mg.ones(97, 89)), lambda: mg.tensor([[1], [2, 3]]), lambda: xs[0].reshape(97),
    ):  # fmt: skip
        with contextlib.suppress(RuntimeError, ValueError, IndexError, TypeError):
            attempt()


WAYS: dict[str, Callable[[Row], None]] = {
    f.__name__: f for f in (dropped, backward, retained_graph, double_backward, third_order_dropped, hooks, refused)
}
WAYS |= {f"failed forward {n}": functools.partial(failed_forward, which=n) for n in (0, 1, 2)}
WAYS |= {
    f"failed walk {n}{', recorded' * create}": functools.partial(failed_backward, which=n, create_graph=create)
    for n in (0, 1, 3)
    for create in (False, True)
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what was there before is not looked at again
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", WAYS)
def test_no_op_leaves_a_cycle(way: str) -> None:
    for row in TABLE.values():
        WAYS[way](row)  # kernels are compiled, rules planned
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    for row in TABLE.values():
        WAYS[way](row)
        gc.collect()
        assert gc.garbage == [], f"{row.name}: {[type(thing).__name__ for thing in gc.garbage]}"


TRAINING = """
    import gc, sys
    import minigrad as mg
    from minigrad import nn
    from minigrad.nn.utils import spectral_norm

    def resident():
        return int(open("/proc/self/statm").read().split()[1])

    mlp = nn.Sequential(spectral_norm(nn.Linear(8, 16)), nn.LeakyReLU(0.1), spectral_norm(nn.Linear(16, 1)))
    cnn = nn.Sequential(
        spectral_norm(nn.Conv2d(1, 2, 3, padding=1)), nn.ReLU(), nn.Flatten(), spectral_norm(nn.Linear(32, 1))
    )
    net, shape = {"mlp": (mlp, (4, 8)), "cnn": (cnn, (2, 1, 4, 4))}[NAME]
    optimizer = mg.optim.Adam(net.parameters(), lr=1e-3)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            net(mg.randn(*shape)).square().mean().backward()
            optimizer.step()

    train(1)
    gc.collect()
    gc.disable()  # a cycle would show; and Python's free lists, which a collection empties, fill up and stay
    train(1999)
    before, blocks = resident(), sys.getallocatedblocks()
    train(3000)
    print(resident() / before - 1, sys.getallocatedblocks() - blocks, gc.collect())
"""


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_five_thousand_steps_take_no_more_memory_than_two_thousand(name: str) -> None:
    growth, blocks, cycles = python(TRAINING.replace("NAME", repr(name))).split()
    assert float(growth) < 0.01
    assert int(blocks) < 300 and int(cycles) == 0  # not a tenth of an object in a step
