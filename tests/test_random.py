"""The random stream: known answers, independence of threads, saved state, moments, no overlap."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.kernels import scalar
from minigrad.kernels.cpu import random as kernels

FLOATS = ["float64", "float32", "float16"]


def words(seed: int, counter: int) -> list[int]:
    with np.errstate(over="ignore"):  # products wrap around, as they shall
        return [int(w) for w in scalar.philox(np.uint64(seed), np.uint64(counter))]


def philox_of_the_paper(key: tuple[int, int], counter: list[int]) -> list[int]:
    """Philox 4×32-10 in exact integers, after section 4.3 of the paper."""
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ k0, b % 2**32, (a >> 32) ^ counter[3] ^ k1, a % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return counter


def test_known_answers() -> None:
    """Those of the authors' Random123 library; ours fixes the upper half of the counter at 0."""
    assert words(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones, pi = 2**32 - 1, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert philox_of_the_paper((ones, ones), [ones] * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox_of_the_paper((0xA4093822, 0x299F31D0), pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    for seed, counter in [(1, 0), (0, 1), (2**64 - 1, 2**64 - 1), (0x0123456789ABCDEF, 2**63 + 7), (2**32, 2**33)]:
        key, low = (seed % 2**32, seed >> 32), [counter % 2**32, counter >> 32, 0, 0]
        assert words(seed, counter) == philox_of_the_paper(key, low)


def test_a_draw_is_the_words_of_the_stream() -> None:
    x = mg.rand(10, generator=mg.Generator(7))
    stream = [w for block in range(3) for w in words(7, block)]
    assert x.tolist() == [(w >> 8) * 2.0**-24 for w in stream[:10]]
    y = mg.rand(3, dtype=mg.float64, generator=mg.Generator(7))
    assert y.tolist() == [((a << 21) ^ (b >> 11)) * 2.0**-53 for a, b in zip(stream[:6:2], stream[1:6:2], strict=True)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("draw", [mg.rand, mg.randn])
def test_the_stream_does_not_depend_on_threads_or_sizes(draw: Any, dtype: str) -> None:
    """A long draw runs in parallel, a short one serially; the first is the start of the second."""
    long = draw(300_000, dtype=dtype, generator=mg.Generator(3))
    short = draw(1_001, dtype=dtype, generator=mg.Generator(3))
    assert long[:1_001].tolist() == short.tolist()
    folded = draw(300, 1000, dtype=dtype, generator=mg.Generator(3))
    assert folded.reshape(-1).numpy().tobytes() == long.numpy().tobytes()


def test_both_variants_draw_the_same() -> None:
    for fill, dtype in ((kernels._fill32, np.float32), (kernels._fill64, np.float64)):
        for normal in (False, True):
            serial, parallel = np.empty(10_003, dtype), np.empty(10_003, dtype)
            fill.serial(serial, np.uint64(5), np.uint64(9), normal)
            fill.parallel(parallel, np.uint64(5), np.uint64(9), normal)
            assert serial.tobytes() == parallel.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_two_draws_never_overlap(dtype: str) -> None:
    g, sizes = mg.Generator(1), (1, 5, 3, 8, 2, 1)
    values = [v for n in sizes for v in mg.randn(n, dtype=dtype, generator=g).tolist()]
    assert len(set(values)) == len(values)
    assert g.offset == sum(-(-n // (2 if dtype == "float64" else 4)) for n in sizes)


def test_threads_share_a_generator_without_drawing_twice() -> None:
    g, drawn = mg.Generator(1), [[] for _ in range(4)]

    def work(mine: list[float]) -> None:
        for _ in range(200):
            mine.extend(mg.rand(4, dtype=mg.float64, generator=g).tolist())

    threads = [threading.Thread(target=work, args=(mine,)) for mine in drawn]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    values = [v for mine in drawn for v in mine]
    assert len(set(values)) == 4 * 200 * 4


def test_state_can_be_saved_and_restored() -> None:
    g = mg.Generator(11)
    mg.randn(7, generator=g)
    state, clones = g.get_state(), [copy.deepcopy(g), pickle.loads(pickle.dumps(g))]
    expected = mg.randn(5, generator=g).tolist()
    g.set_state(state)
    for generator in (g, *clones):
        assert mg.randn(5, generator=generator).tolist() == expected
    mg.manual_seed(2)
    a = mg.rand(3).tolist()
    mg.manual_seed(2)
    assert mg.rand(3).tolist() == a == mg.rand(3, generator=mg.Generator(2)).tolist()
    assert mg.rand(3, generator=mg.Generator(3)).tolist() != a


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_numbers(dtype: str) -> None:
    x = mg.rand(1_000_000, dtype=dtype)
    assert x.dtype == np.dtype(dtype)
    a = x.numpy().astype(np.float64)
    assert a.min() >= 0 and a.max() < 1
    assert a.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / a.size) + 2**-12 * (dtype == "float16"))
    assert a.var() == pytest.approx(1 / 12, rel=5e-3)
    counts = np.histogram(a, 64, (0, 1))[0]
    assert ((counts - a.size / 64) ** 2).sum() / (a.size / 64) < 63 + 5 * np.sqrt(2 * 63)  # χ², 5 standard deviations


@pytest.mark.parametrize("dtype", FLOATS)
def test_normal_numbers(dtype: str) -> None:
    a = mg.randn(1_000_000, dtype=dtype).numpy().astype(np.float64)
    assert np.isfinite(a).all()
    assert a.mean() == pytest.approx(0, abs=4e-3)
    assert a.var() == pytest.approx(1, abs=6e-3)
    assert (a**3).mean() == pytest.approx(0, abs=0.02)
    assert (a**4).mean() == pytest.approx(3, abs=0.05)
    assert np.corrcoef(a[:-1], a[1:])[0, 1] == pytest.approx(0, abs=4e-3)
    assert (np.abs(a) > 1.959964).mean() == pytest.approx(0.05, abs=1e-3)


def test_permutations() -> None:
    assert sorted(mg.randperm(1000).tolist()) == list(range(1000))
    assert (mg.randperm(0).shape, mg.randperm(5).dtype) == ((0,), mg.int64)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(3000):
        order = tuple(mg.randperm(3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6 and all(abs(c - 500) < 5 * np.sqrt(500 * 5 / 6) for c in counts.values())


def test_bad_arguments() -> None:
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=r"expected a seed in \[0, 2\*\*64\)"):
            mg.manual_seed(seed)
    with pytest.raises(TypeError, match="rand: expected a floating dtype; got int64"):
        mg.rand(3, dtype=mg.int64)
    with pytest.raises(ValueError, match="randn: expected extents of at least 0"):
        mg.randn(2, -1)
    assert mg.rand(0).shape == (0,) and mg.rand().shape == ()
