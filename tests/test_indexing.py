"""x[…] and x[…] = y for every kind of index, and einsum and friends: against NumPy, by Hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

import minigrad as mg
import minigrad.kernels.cpu.index as kernel
from minigrad.device import kernels

pytestmark = pytest.mark.usefixtures("on_device")


def arrays(shape: tuple[int, ...]) -> Any:
    return np.arange(1.0, 1 + np.prod(shape, dtype=int)).reshape(shape)


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def parts(draw: st.DrawFn, n: int, advanced: Any) -> Any:
    """An index for one dimension of extent n; `advanced` is the shape of integer arrays, None for basic ones only."""
    kinds = ["slice", "whole"] + ["int"] * (n > 0) + ["array"] * (n > 0 and advanced is not None)
    kind = draw(st.sampled_from(kinds))
    if kind == "int":
        return draw(st.integers(-n, n - 1))
    if kind == "array":
        size = int(np.prod(advanced))
        return np.array(draw(st.lists(st.integers(-n, n - 1), min_size=size, max_size=size)), int).reshape(advanced)
    bound = st.none() | st.integers(-n - 1, n + 1)
    step = draw(st.sampled_from([None, 1, 2, -1, -2]))
    return slice(draw(bound), draw(bound), step) if kind == "slice" else slice(None)


@st.composite
def indexed(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    """A shape and an index that fits it: slices, ints, None, ..., integer arrays that broadcast, masks."""
    shape = draw(shapes)
    if draw(st.booleans()) and shape:  # a mask over the first dimensions
        k = draw(st.integers(1, len(shape)))
        size = int(np.prod(shape[:k]))
        mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool).reshape(shape[:k])
        rest = draw(st.integers(0, 1)) if k < len(shape) else 0
        return shape, (mask, *[draw(parts(n, None)) for n in shape[k : k + rest]])
    advanced = draw(st.none() | st.sampled_from([(), (2,), (3, 1), (0,)]))
    given_dims = draw(st.integers(0, len(shape)))
    index = [draw(parts(n, advanced)) for n in shape[:given_dims]]
    if draw(st.booleans()):
        index.insert(draw(st.integers(0, len(index))), None)
    if draw(st.booleans()) and given_dims == len(index):
        index.append(Ellipsis)
    return shape, tuple(index)


def theirs(a: Any, index: Any) -> tuple[Any, Any]:
    """What NumPy has to index with what for torch's result: beside arrays, ints come first."""
    index = [int(i) if isinstance(i, np.ndarray) and not i.ndim else i for i in index]
    if not any(isinstance(i, np.ndarray) for i in index):
        return a, tuple(index)
    first: list[Any] = []
    for i in index:
        if i is not None:
            dims = i.ndim if isinstance(i, np.ndarray) and i.dtype == bool else 1
            first += [i] if isinstance(i, int) or i is ... else [slice(None)] * dims
    return a[tuple(first)], tuple(i for i in index if not isinstance(i, int))


def ours(index: Any) -> Any:
    return tuple(mg.tensor(i) if isinstance(i, np.ndarray) else i for i in index)


@given(indexed())
def test_reading_and_its_gradient(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    a = arrays(shape)
    x = mg.tensor(a, requires_grad=True)
    y = x[ours(index)]
    chosen, rest = theirs(a, index)
    expected = chosen[rest]
    assert y.shape == np.shape(expected)
    np.testing.assert_array_equal(y.detach().numpy(), expected)
    g = arrays(y.shape) + 0.5
    scattered = np.zeros_like(a)
    np.add.at(theirs(scattered, index)[0], rest, g)
    (dx,) = mg.grad(y, x, mg.tensor(g), create_graph=True)
    np.testing.assert_array_equal(dx.detach().numpy(), scattered)


MIXED = [
    (0, slice(None), [1, 2]), ([0, 1], slice(None), 3), (slice(None), 1, ..., [0, 3, 3]), (1, [], slice(None)),
    (1, None, [2, 0], slice(1, 3)), ([1, 0], 2, [3, 1]), (-1, [[True, False, False, True]] * 3), (0, 1, [3, 0]),
    (0, slice(None), [True, False, True, True]), (..., [0, 1], 2, None, [1, 1]),
]  # fmt: skip


@pytest.mark.parametrize("index", MIXED, ids=str)
def test_ints_beside_tensors_are_torchs(index: Any) -> None:
    torch = pytest.importorskip("torch")
    x, y = mg.tensor(arrays((2, 3, 4)), requires_grad=True), torch.tensor(arrays((2, 3, 4)), requires_grad=True)
    mixed = [tuple(lib.tensor(i) if i and isinstance(i, list) else i for i in index) for lib in (mg, torch)]
    found, expected = x[mixed[0]], y[mixed[1]]
    assert found.shape == expected.shape
    g = arrays(found.shape)
    (dx,), (dy,) = mg.grad(found, x, mg.tensor(g)), torch.autograd.grad(expected, y, torch.tensor(g))
    with torch.no_grad():
        x.detach()[mixed[0]] = mg.tensor(g)
        y[mixed[1]] = torch.tensor(g)
    assert (found.tolist(), dx.tolist(), x.tolist()) == (expected.tolist(), dy.tolist(), y.tolist())


@st.composite
def gathered(draw: st.DrawFn) -> Any:
    """A shape, a dimension of it, and an index that may be shorter in the others, and longer in this one."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    dim = draw(st.integers(0, len(shape) - 1))
    extents = tuple(draw(st.integers(0, 5 if d == dim else n)) for d, n in enumerate(shape))
    count = int(np.prod(extents))
    index = draw(st.lists(st.integers(0, shape[dim] - 1), min_size=count, max_size=count))
    return shape, dim, np.array(index, np.int64).reshape(extents)


@example(((2, 3, 2), 2, np.array([[[0, 1, 1], [1, 0, 0]]] * 2)), "float32")  # shorter in the middle
@given(gathered(), st.sampled_from(["float16", "float32", "float64", "int64", "bool"]))
def test_gathering_and_its_gradient(case: Any, dtype: str) -> None:
    shape, dim, index = case
    a = (arrays(shape) % 5).astype(dtype)
    x = mg.tensor(a, requires_grad="float" in dtype)
    y = mg.gather(x, dim, mg.tensor(index))
    places = [*np.indices(index.shape)]
    places[dim] = index
    np.testing.assert_array_equal(y.detach().numpy(), a[tuple(places)])
    if x.requires_grad:
        g = (arrays(y.shape) % 7).astype(dtype)
        scattered = np.zeros_like(a)
        np.add.at(scattered, tuple(places), g)
        (dx,) = mg.grad(y, x, mg.tensor(g))
        assert str(dx.dtype) == dtype
        np.testing.assert_array_equal(dx.numpy(), scattered)


@given(indexed())
def test_writing(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    a = arrays(shape)
    x = mg.tensor(a)
    chosen, rest = theirs(a, index)  # a view
    shape_of_value = np.shape(chosen[rest])
    x[ours(index)] = mg.tensor(-arrays(shape_of_value))
    chosen[rest] = -arrays(shape_of_value)
    np.testing.assert_array_equal(x.numpy(), a)
    assert x.version == [1]
    x[ours(index)] = 7
    chosen[rest] = 7
    np.testing.assert_array_equal(x.numpy(), a)


@given(indexed())
def test_basic_indices_are_views_and_others_are_copies(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    x = mg.tensor(arrays(shape))
    y = x[ours(index)]
    basic = not any(isinstance(i, np.ndarray) and i.ndim for i in index)
    if y.numel():
        assert kernels(x.device).shares_memory(x.data, y.data) == basic
        y.zero_()
        assert (x.version == y.version == [1]) == basic
        assert bool((x == 0).any()) == basic


@pytest.mark.parametrize("index", [[2, -1, 2], np.array([[0, 1], [-3, 2]]), [True, False, True]], ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_whole_slices_are_selected_whole(dim: int, index: Any) -> None:
    """Not element by element: x[:, [1, 2]] is an index_select, also of masks and of more dimensions."""
    x = mg.tensor(arrays((3, 3, 3)), requires_grad=True)
    where = (*[slice(None)] * dim, index)
    y = x[where]
    np.testing.assert_array_equal(y.detach().numpy(), x.detach().numpy()[where])
    assert "index_select" in (y.node.op.name, getattr(y.node.edges[0], "op", y.node.op).name)


def test_lists_numbers_and_arrays_are_indices_too() -> None:
    x = mg.tensor(arrays((3, 4)))
    assert x[[2, 0]].tolist() == x[np.array([2, 0])].tolist() == x[mg.tensor([2, 0])].tolist()
    assert x[[True, False, True]].shape == (2, 4)
    assert x[np.int64(1), mg.tensor(2)].item() == 7.0
    assert x[[]].shape == (0, 4)
    assert [row.tolist() for row in x] == x.tolist()


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (3, r"shape \(3, 4\): index 3 is out of bounds for axis 0"),
        ((0, 0, 0), r"shape \(3, 4\): too many indices"),
        ([0, 5], r"shape \(3, 4\): index 5 is out of bounds"),
        ((slice(None), [0, -5]), r"shape \(3, 4\): index -5 is out of bounds for axis 1 with size 4"),
        (([0], slice(None), slice(None)), r"shape \(3, 4\): too many indices"),
        (mg.tensor([True, False]), r"shape \(3, 4\): boolean index did not match"),
        (mg.tensor([0.5]), "expected an integer or bool tensor as index; got float32"),
        (1.0, r"expected ints, slices, None, ..., int or bool tensors; got 1.0"),
        ("a", "expected ints, slices"),
        (True, "expected ints, slices"),
    ],
)
def test_bad_indices(index: Any, match: str) -> None:
    x = mg.tensor(arrays((3, 4)))
    with pytest.raises(IndexError, match=match):
        x[index]
    with pytest.raises(IndexError, match=match):
        x[index] = 1.0


def test_bad_writes() -> None:
    x = mg.zeros(3, 4)
    with pytest.raises(ValueError, match=r"a value of shape \(3,\) does not broadcast into shape \(3, 4\)"):
        x[:, :] = mg.ones(3)
    for number in (float("nan"), float("inf"), 1 << 63):
        with pytest.raises(ValueError, match=f"expected a number that int64 can hold; got {number}"):
            mg.zeros(2, dtype=mg.int64)[0] = number
    with pytest.raises(TypeError, match="expected a value of dtype float32; got float64"):
        x[0] = mg.ones(4, dtype=mg.float64)
    with pytest.raises(TypeError, match="expected a tensor or a number; got list"):
        x[0] = [1.0] * 4
    with pytest.raises(RuntimeError, match=r"the value .* requires grad"):
        x[0] = mg.ones(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="read-only: an expanded view"):
        x[:1].expand(2, 4)[0] = 1.0
    with pytest.raises(RuntimeError, match=r"this tensor \(shape \(2,\)\) requires grad"):
        mg.ones(2, requires_grad=True)[:] = 1.0
    assert x.version == [0] and not x.any(), "a write that fails changes nothing"


@st.composite
def contractions(draw: st.DrawFn) -> tuple[str, list[Any]]:
    extents = dict(zip("abcde", draw(st.lists(st.integers(0, 3), min_size=5, max_size=5)), strict=True))
    letters = st.lists(st.sampled_from("abcde"), max_size=4, unique=True).map("".join)
    terms = draw(st.lists(letters, min_size=1, max_size=4))
    left = ",".join(terms)
    used = sorted(set(left) - {","})
    result = draw(st.permutations(used).map(lambda p: "".join(p[: len(p) // 2 + 1])))
    equation = left + draw(st.sampled_from(["", "->" + result]))
    return equation, [np.cos(arrays(tuple(extents[c] for c in term))) for term in terms]


@given(contractions())
def test_einsum(case: tuple[str, list[Any]]) -> None:
    equation, operands = case
    found = mg.einsum(equation, *map(mg.tensor, operands))
    expected = np.einsum(equation, *operands)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "equation", ["ii", "ij,j->k", "ij->ii", "ijk", "ij,jk,kl", "i...", ",i->i", "ij;j", "1j"]
)
def test_einsum_refuses(equation: str) -> None:
    with pytest.raises(ValueError, match="einsum"):
        mg.einsum(equation, mg.ones(2, 2), *[mg.ones(2)] * equation.count(","))


@given(shapes.filter(bool), st.data())
def test_split_and_cat_are_inverse(shape: tuple[int, ...], data: st.DataObject) -> None:
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = data.draw(st.integers(1, 5))
    x = mg.tensor(arrays(shape))
    pieces = x.split(size, dim)
    np.testing.assert_array_equal(mg.cat(pieces, dim).numpy(), x.numpy())
    torch = pytest.importorskip("torch").tensor(x.numpy())
    assert [p.tolist() for p in pieces] == [p.tolist() for p in torch.split(size, dim)]
    assert [p.tolist() for p in x.chunk(size, dim)] == [p.tolist() for p in torch.chunk(size, dim)]


@pytest.mark.parametrize("shape", [(2, 0), (0, 2)])
def test_chunks_of_nothing_are_as_many_as_asked_for(shape: tuple[int, int]) -> None:
    assert [piece.shape for piece in mg.zeros(shape).chunk(3, shape.index(0))] == [shape] * 3


@given(shapes.filter(bool), st.data())
def test_pad_is_torchs(shape: tuple[int, ...], data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")
    widths: list[int] = []
    for n in shape[::-1][: data.draw(st.integers(1, len(shape)))]:
        before = data.draw(st.integers(-n, 2))
        widths += [before, data.draw(st.integers(-(n + min(before, 0)), 2))]
    x = arrays(shape)
    found = mg.pad(mg.tensor(x), widths, 9.0)
    expected = torch.nn.functional.pad(torch.tensor(x), widths, value=9.0)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64"])
@pytest.mark.parametrize(
    ("shape", "dim"), [((9, 700), 0), ((3, 9, 512), 1), ((2, 3, 700), 2), ((9, 4, 128), 0), ((9, 127), 0)]
)
def test_large_selections(dtype: str, shape: tuple[int, ...], dim: int) -> None:
    """On both sides of where the threads share the lines; of transposed memory, and of such as may not be written."""
    rng = np.random.default_rng(0)
    x = rng.integers(-99, 99, shape).astype(dtype)
    index = rng.integers(0, shape[dim], kernel._SHARED * shape[dim] // x.size + 1)
    locked = x.copy()
    locked.flags.writeable = dtype != "float32"  # each kind of memory is a kernel to compile
    for laid in (x, np.asfortranarray(x), np.repeat(x, 2, -1)[..., ::2], locked):
        made = kernel.index_select(laid, dim, np.repeat(index, 2)[::2])
        assert made.dtype == x.dtype and made.flags.c_contiguous and made.size >= kernel._SHARED
        np.testing.assert_array_equal(made, np.take(x, index, axis=dim))


def test_large_selections_look_at_their_bounds_first(most_elements: int) -> None:
    """The kernel does not: also in a captured step, whose indices change."""
    weight = mg.randn(40, min(700, most_elements // 400))
    rows = np.random.default_rng(0).integers(0, 40, 400)

    @mg.capture
    def step(index: mg.Tensor) -> mg.Tensor:
        return mg.embedding(index, weight)

    for _ in range(3):
        step(mg.tensor(rows))
    rows[7] = 40
    for select in (step, lambda index: mg.embedding(index, weight)):
        with pytest.raises(IndexError, match=r"embedding: expected indices in \[0, 39\]; got 40"):
            select(mg.tensor(rows))
