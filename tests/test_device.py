"""What raw arrays, memory and random numbers of a device must do beside the op table; NumPy is the oracle."""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.device import kernels

RNG = np.random.default_rng


def test_tensors_move_and_gradients_move_back(device: str) -> None:
    x = mg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    there = x.T.to(device)
    assert (there.device, there.tolist()) == (device, [[1, 3], [2, 4]])
    (there * there).to("cpu").sum().backward()
    assert x.grad is not None
    assert (x.grad.device, x.grad.tolist()) == ("cpu", [[2, 4], [6, 8]])
    copied = mg.tensor(np.arange(3), device=device)
    assert (copied.dtype, copied.to("cpu").to(device).tolist()) == (mg.int64, [0, 1, 2])


def test_modules_move(device: str) -> None:
    layer = mg.nn.Embedding(3, 2).to(device)
    assert layer.weight.device == device
    state = {name: value.to("cpu") for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)
    assert layer.weight.tolist() == state["weight"].tolist()


@pytest.mark.usefixtures("second_device")
def test_devices_do_not_mix(device: str) -> None:
    with pytest.raises(RuntimeError, match=r"add: expected all tensors on one device; got \['cuda', 'cpu'\]"):
        mg.ones(2, device=device) + mg.ones(2)


# Views ---------------------------------------------------------------------------------------------------------------

STEPS: list[Callable[[Any], Any]] = [
    lambda x: x[1:],
    lambda x: x[..., ::2],
    lambda x: x.flip(0) if isinstance(x, mg.Tensor) else np.flip(x, 0),
    lambda x: x[:, None, ..., -1],
    lambda x: x[0],
    lambda x: x.T,
    lambda x: x.reshape(-1),
    lambda x: x.reshape(2, -1),
    lambda x: x.expand(2, *x.shape) if isinstance(x, mg.Tensor) else np.broadcast_to(x, (2, *x.shape)),
]


@pytest.mark.parametrize("start", [(4, 6), (2, 3, 4), (6, 1, 2)])
def test_chains_of_views_are_numpys(start: tuple[int, ...], device: str) -> None:
    host = np.arange(math.prod(start), dtype=np.float32).reshape(start)
    for chain in itertools.product(STEPS, repeat=3):
        x, y = mg.tensor(host, device=device), host
        for step in chain:
            if y.size < 2 or y.ndim < 2 or y.size % 2:
                break
            x, y = step(x), step(y)
        np.testing.assert_array_equal(x.numpy(), y)


def test_writing_to_a_view_writes_to_its_source(device: str) -> None:
    x = mg.zeros(4, 6, device=device)
    x[1:, ::2].T[:, 0].copy_(mg.tensor([1.0, 2.0, 3.0], device=device))
    x.reshape(2, 2, 6)[1, 1] = 7.0
    x.flip(0)[3, 5] = 9.0
    expected = np.zeros((4, 6))
    expected[1, ::2], expected[3], expected[0, 5] = [1, 2, 3], 7, 9
    np.testing.assert_array_equal(x.numpy(), expected)
    x.T.reshape(-1).zero_()  # of a copy
    assert x[0, 5].item() == 9
    with pytest.raises(RuntimeError, match="read-only"):
        x[0].expand(2, 6).zero_()


INDICES = [
    (slice(1, None), 2), (..., slice(None, None, -2)), (None, 1), ([2, 0, 2], slice(None)), (slice(None), [1, 1, 0]),
    np.array([True, False, True]), (np.array([[0, 1], [2, 2]]), [0, 3]),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_setting_items(index: Any, device: str) -> None:
    x, expected = mg.zeros(3, 4, device=device), np.zeros((3, 4), np.float32)
    value = RNG(0).standard_normal(expected[index].shape).astype(np.float32)
    x[index] = mg.tensor(value, device=device)
    expected[index] = value
    np.testing.assert_array_equal(x.numpy(), expected)
    x[index] = 5.0
    expected[index] = 5.0
    np.testing.assert_array_equal(x.numpy(), expected)


def test_overlapping_memory_is_read_before_it_is_written(device: str) -> None:
    x = mg.arange(6, device=device)
    x[1:] = x[:-1]
    assert x.tolist() == [0, 0, 1, 2, 3, 4]
    x[:] = x.flip(0)
    assert x.tolist() == [4, 3, 2, 1, 0, 0]


# Numbers and dtypes --------------------------------------------------------------------------------------------------


def test_every_cast_is_numpys(device: str) -> None:
    values = np.array([[0, 1, 2.75], [-3.5, 100, 7]])
    for source, target in itertools.product(("float16", "float32", "float64", "int64", "bool"), repeat=2):
        host = values.astype(source)
        for view in (host, host.T):
            moved = mg.tensor(host, device=device)
            found = (moved if view is host else moved.T).to(dtype=target)
            assert found.dtype == np.dtype(target)
            np.testing.assert_array_equal(found.numpy(), view.astype(target), err_msg=f"{source} to {target}")


def test_integers_and_booleans(device: str) -> None:
    i, j = (mg.tensor(v, device=device) for v in ([-7, 0, 3], [2, 5, 3]))
    p, q = (mg.tensor(v, device=device) for v in ([True, True, False], [True, False, False]))
    assert (i + j).tolist() == [-5, 5, 6] and (2 - i).tolist() == [9, 2, -1] and (i * i).tolist() == [49, 0, 9]
    assert (i**j).tolist() == [49, 0, 27] and (i**3).tolist() == [-343, 0, 27] and (2**j).tolist() == [4, 32, 8]
    assert (p + q).tolist() == [True, True, False] and (p * q).tolist() == [True, False, False]
    assert (p & ~q).tolist() == [False, True, False] and (p | q).tolist() == [True, True, False]
    assert mg.maximum(i, j).tolist() == [2, 5, 3] and i.abs().tolist() == [7, 0, 3] and i.sign().tolist() == [-1, 0, 1]
    assert i.clip(-1, 2).tolist() == [-1, 0, 2] and (i > 0.5).tolist() == [False, False, True]
    assert mg.where(p, i, 0).tolist() == [-7, 0, 0] and mg.where(p, 1, 2).tolist() == [1, 1, 2]
    assert (p.sum().item(), i.sum().item(), i.cumsum(0).tolist()) == (2, -4, [-7, -7, -4])
    assert (p.any().item(), p.all().item(), i.argmin().item(), i.amax().item()) == (True, False, 0, 3)
    big = mg.tensor([2**53 + 1, -(2**62)], device=device)
    assert big.tolist() == [2**53 + 1, -(2**62)] and (big + 1).tolist() == [2**53 + 2, 1 - 2**62]


def test_float16_is_rounded_once_and_compared_as_it_is_stored(device: str) -> None:
    x = mg.tensor([0.1, 1 / 3, 50000.0], dtype=mg.float16, device=device)
    host = np.array([0.1, 1 / 3, 50000.0], np.float16)
    np.testing.assert_array_equal((x * 1.1).numpy(), (host.astype(np.float32) * np.float32(1.1)).astype(np.float16))
    assert (x == 0.1).tolist() == [True, False, False]
    assert (x + x).tolist()[2] == math.inf and x[2:].sum().item() == float(host[2])


# Reductions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)])
def test_reductions_over_any_dimensions_of_any_layout(order: tuple[int, ...], device: str) -> None:
    host = RNG(1).standard_normal((3, 4, 2, 17)).transpose(order)
    x = mg.tensor(np.ascontiguousarray(host.transpose(np.argsort(order))), device=device).permute(*order).flip(1)
    host = np.flip(host, 1)
    for count in range(1, 5):
        for dims in itertools.combinations(range(4), count):
            np.testing.assert_allclose(x.sum(dims).numpy(), host.sum(dims), rtol=1e-13, atol=1e-13)
            np.testing.assert_array_equal(x.amax(dims, keepdim=True).numpy(), host.max(dims, keepdims=True))
            np.testing.assert_array_equal(x.amin(dims).numpy(), host.min(dims))
            np.testing.assert_allclose(x.norm(dim=dims).numpy(), np.sqrt((host**2).sum(dims)), rtol=1e-13)
    for d in range(4):
        np.testing.assert_array_equal(x.argmax(d).numpy(), host.argmax(d))
        np.testing.assert_allclose(x.cumsum(d).numpy(), host.cumsum(d), rtol=1e-13, atol=1e-13)
        share = np.exp(host) / np.exp(host).sum(d, keepdims=True)
        np.testing.assert_allclose(x.softmax(d).numpy(), share, rtol=1e-13)
        np.testing.assert_allclose(x.log_softmax(d).numpy(), np.log(share), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 3001])
def test_sums_are_accurate_at_lengths_around_a_piece(n: int, device: str) -> None:
    host = (RNG(2).standard_normal(n) * 10.0 ** RNG(3).integers(-3, 6, n)).astype(np.float32)
    found = mg.tensor(host, device=device).sum().item()
    assert abs(found - math.fsum(host)) <= 1e-6 * math.fsum(np.abs(host))


def test_sums_of_columns_are_accurate(device: str) -> None:
    host = np.full((5001, 5), 0.1, np.float32)
    found = mg.tensor(host, device=device).sum(0).numpy()
    np.testing.assert_allclose(found, host.astype(np.float64).sum(0), rtol=1e-6)


def test_extrema_of_equals_and_nans(device: str) -> None:
    host = np.zeros((2, 40), np.float32)
    host[0, [11, 29]], host[1, [17, 35]] = 5, math.nan
    x = mg.tensor(host, device=device)
    assert x.argmax(1).tolist() == [11, 17] and x.argmin(1).tolist() == [0, 17]
    assert x.amax(1).isnan().tolist() == [False, True] and x.T.amin(0).isnan().tolist() == [False, True]
    infinite = mg.tensor([1.0, math.inf, 2.0] * 20, device=device)
    assert infinite.sum().item() == math.inf and math.isnan((infinite - infinite).sum().item())


def test_reductions_give_the_same_bits_every_time(device: str) -> None:
    x = mg.tensor(RNG(4).standard_normal((20, 30)).astype(np.float32), device=device)
    for reduce in (lambda: x.sum(), lambda: x.sum(0), lambda: x.sum(1), lambda: x.norm(), lambda: x.cumsum(1)):
        assert reduce().numpy().tobytes() == reduce().numpy().tobytes()
    assert x.sum(0).numpy().tobytes() == x.T.sum(1).numpy().tobytes() or device == "cpu"


def test_norms_neither_overflow_nor_vanish(device: str) -> None:
    for scale in (1e-30, 1e30):
        assert mg.tensor([3 * scale, 4 * scale], device=device).norm().item() == pytest.approx(5 * scale, rel=1e-6)


# Positions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_gradients_of_repeated_places_add_up(dtype: str, device: str) -> None:
    rng = RNG(5)
    index = rng.integers(0, 6, (5, 7))
    host = np.round(rng.standard_normal((5, 7, 3)) * 64) / 64  # sums of these are exact
    rows, flat = np.zeros((9, 3)), np.zeros((9, 4))
    np.add.at(rows, index, host)
    np.add.at(flat, (index, np.arange(7) % 4), host[..., 0])
    weight = mg.zeros(9, 3, dtype=dtype, device=device, requires_grad=True)
    g = mg.tensor(host.astype(dtype), device=device)
    (found,) = mg.grad(mg.embedding(mg.tensor(index, device=device), weight), weight, g)
    np.testing.assert_array_equal(found.numpy(), rows)
    x = mg.zeros(9, 4, dtype=dtype, device=device, requires_grad=True)
    (found,) = mg.grad(x[index, np.arange(7) % 4], x, g[..., 0])
    np.testing.assert_array_equal(found.numpy(), flat)


def test_gathering_from_views_and_its_adjoint(device: str) -> None:
    rng = RNG(6)
    host, index = rng.standard_normal((4, 3, 6)), rng.integers(0, 6, (4, 2, 5))
    for dims in ((1,), (0, 1)):  # backwards through memory, where the index is shorter
        x = mg.tensor(np.flip(host, dims).copy(), device=device).flip(dims)
        found = mg.gather(x, 2, mg.tensor(index, device=device))
        np.testing.assert_array_equal(found.numpy(), np.take_along_axis(host[:, :2], index, 2))
    x = mg.tensor(np.flip(host, 2).copy(), device=device).flip(2).requires_grad_()
    y = mg.gather(x, 2, mg.tensor(index, device=device))
    np.testing.assert_array_equal(y.detach().numpy(), np.take_along_axis(host[:, :2], index, 2))
    g, expected = rng.standard_normal(index.shape), np.zeros(host.shape)
    a, b, _ = np.indices(index.shape)
    np.add.at(expected, (a, b, index), g)
    (found,) = mg.grad(y, x, mg.tensor(g, device=device))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14, atol=1e-14)
    found = mg.index_select(x.detach().T, 1, mg.tensor([2, 0, 2], device=device))
    np.testing.assert_array_equal(found.numpy(), host.T[:, [2, 0, 2]])


# Softmax -------------------------------------------------------------------------------------------------------------


def test_softmax_of_long_rows_in_any_dimension(device: str) -> None:
    host = RNG(7).standard_normal((3, 50, 2)) * 5
    x = mg.tensor(host, device=device)
    e = np.exp(host - host.max(1, keepdims=True))
    np.testing.assert_allclose(x.softmax(1).numpy(), e / e.sum(1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(x.T.logsumexp(1).numpy(), np.log(np.exp(host).sum(1)).T, rtol=1e-13)
    extreme = mg.tensor([[-math.inf, 1000.0], [-math.inf, -math.inf], [math.inf, 0.0]], device=device)
    assert extreme.logsumexp(1).tolist() == [1000, -math.inf, math.inf]
    assert extreme[0].softmax(0).tolist() == [0, 1]


# Random numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
def test_the_stream_is_the_cpus(dtype: str, seed: int, device: str) -> None:
    for size in (1, 4, 13):
        here, there = mg.Generator(seed), mg.Generator(seed)
        for _ in range(2):  # the second draw starts where the first ended
            a = mg.rand(size, dtype=dtype, generator=here).numpy()
            b = mg.rand(size, dtype=dtype, device=device, generator=there).numpy()
            assert a.tobytes() == b.tobytes()
            c = mg.randn(size, dtype=dtype, generator=here).numpy()
            d = mg.randn(size, dtype=dtype, device=device, generator=there).numpy()
            np.testing.assert_allclose(d, c, rtol=4 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


# Memory --------------------------------------------------------------------------------------------------------------


def test_memory_is_handed_out_again(device: str) -> None:
    if device == "cpu":
        pytest.skip("the CPU's memory is NumPy's")
    gc.collect()
    mg.cuda.synchronize()
    before = mg.cuda.memory_allocated()
    x = mg.zeros(1000, device=device)
    view = x[10:20]
    taken = mg.cuda.memory_allocated() - before
    assert 4000 <= taken <= 4000 * 9 / 8 + 512
    del x
    assert mg.cuda.memory_allocated() == before + taken, "the view still leans on it"
    del view
    assert mg.cuda.memory_allocated() == before
    reserved = mg.cuda.memory_reserved()
    for _ in range(5):
        mg.zeros(1000, device=device)
    assert mg.cuda.memory_reserved() == reserved
    mg.cuda.empty_cache()
    assert mg.cuda.memory_reserved() == mg.cuda.memory_allocated() == before < reserved


def test_what_is_read_belongs_to_nobody_else_until_it_was_read(on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may take memory and write to it while this one is on its way to the driver."""
    array = importlib.import_module("minigrad.kernels.cuda.array")
    x = mg.tensor(np.arange(6.0).reshape(2, 3), device="cuda").T
    copy_out = array.copy_out

    def late(host: Any, address: int) -> None:
        others = mg.full((6,), 7.0, device="cuda")
        copy_out(host, address)
        del others

    monkeypatch.setattr(array, "copy_out", late)
    assert x.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_memory_given_back_does_not_wait_to_be_freed(on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba-cuda keeps freed memory in a list of its memory manager; the list of its context is for other things."""
    memory = importlib.import_module("minigrad.kernels.cuda.memory")
    cleared: list[str] = []
    waiting = {name: SimpleNamespace(clear=functools.partial(cleared.append, name)) for name in ("memory", "streams")}
    manager = SimpleNamespace(deallocations=waiting["memory"])
    context = SimpleNamespace(deallocations=waiting["streams"], memory_manager=manager)
    monkeypatch.setattr(memory.cuda, "current_context", lambda: context)
    mg.cuda.empty_cache()
    assert "memory" in cleared


def test_places_that_uint32_cannot_count_are_refused(on_cuda: None) -> None:
    """Of memory that is only said to be so large."""
    k = kernels("cuda")
    part = k.empty((2, 3), np.float32)
    whole = part.view((1 << 16, (1 << 16) + 1), ((1 << 16) + 1, 1))
    block, size = part.buffer.block, part.buffer.block.size
    block.size = 4 * whole.size
    edge = part.view((1, (1 << 32) - (1 << 18) + 1), (1, 1))
    for ask in (k.sum, k.amax, lambda x, dims, keepdim: k.logsumexp(x, *dims, keepdim)):
        for x in (whole, edge):
            with pytest.raises(ValueError, match="fewer than 2\\*\\*32 - 2\\*\\*18 places apart"):
                ask(x, (1,), False)
    assert k.softmax(part.view((2, 3), (8, 1)), 1).shape == (2, 3)
    block.size = size


def test_what_has_no_kernel_says_so(device: str) -> None:
    k = kernels(device)
    assert not hasattr(k, "no_such_kernel")
    if device == "cuda":
        with pytest.raises(NotImplementedError, match="no CUDA kernel 'no_such_kernel' yet"):
            k.no_such_kernel  # noqa: B018
