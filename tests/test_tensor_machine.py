"""Any sequence of views, copies, writes, casts and arithmetic: values, memory and versions as NumPy's arrays have them.

Hypothesis draws the sequences. Beside each tensor stands the array that NumPy makes of the same calls, and the number
of writes that its memory has seen; graphs that were recorded on the way are walked later, and must know of the writes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import minigrad as mg

DTYPES = ["float16", "float32", "float64", "int64", "bool"]
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
WHICH = st.integers(0, 1 << 20)
NUMBERS = st.integers(-4, 4)  # and so all sums are exact, in any order
MOST = 8  # tensors that are kept
WAYS = ["T", "flat", "unsqueeze", "flip", "expand", "detach", "itself", "contiguous", "clone", "rolled"]
REDUCTIONS = ["sum", "amax", "amin", "cumsum"]


class Kept(NamedTuple):
    tensor: mg.Tensor
    array: Any
    writes: list[int]  # shared by all who lie in one memory


def largest(x: Kept) -> float:
    """float16 holds all integers up to 2048."""
    return float(np.max(np.abs(x.array), initial=0))


class Graph(NamedTuple):
    leaf: mg.Tensor
    loss: mg.Tensor
    slope: Any
    writes: list[int]
    then: int


def drawn_index(data: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Slices, integers, None and an ellipsis."""
    index: list[Any] = []
    for n in shape[: data.draw(st.integers(0, len(shape)))]:
        kind = data.draw(st.sampled_from(["slice", "int"] if n else ["slice"]))
        index.append(data.draw(st.integers(-n, n - 1)) if kind == "int" else data.draw(st.slices(n)))
    if data.draw(st.booleans()):
        index.append(...)
    if data.draw(st.booleans()):
        index.insert(data.draw(st.integers(0, len(index))), None)
    return tuple(index)


class Tensors(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Kept] = []
        self.graphs: list[Graph] = []

    def one(self, which: int, kind: str = "fib") -> Kept | None:
        """One of those kept, of such a dtype."""
        fit = [k for k in self.kept if k.array.dtype.kind in kind]
        return fit[which % len(fit)] if fit else None

    def keep(self, tensor: mg.Tensor, array: Any, source: Kept | None = None) -> None:
        array = np.asarray(array)
        shares = source is not None and np.may_share_memory(array, source.array)
        assert tensor.dtype == array.dtype
        self.kept.append(Kept(tensor, array, source.writes if shares and source else [0]))
        if len(self.kept) > MOST:
            del self.kept[array.size % MOST]

    # Making them -----------------------------------------------------------------------------------------------------

    @rule(shape=SHAPES, dtype=st.sampled_from(DTYPES), data=st.data(), shared=st.booleans())
    def from_data(self, shape: tuple[int, ...], dtype: str, data: Any, shared: bool) -> None:
        size = int(np.prod(shape))
        values = data.draw(st.lists(NUMBERS, min_size=size, max_size=size))
        array = np.array(values, dtype).reshape(shape)
        self.keep(mg.from_numpy(array), array) if shared else self.keep(mg.tensor(array), array.copy())

    @rule(shape=SHAPES, dtype=st.sampled_from(DTYPES), value=NUMBERS)
    def filled(self, shape: tuple[int, ...], dtype: str, value: int) -> None:
        self.keep(mg.full(shape, value, dtype=dtype), np.full(shape, value, dtype))

    # Views and copies ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.kept)
    @rule(which=WHICH, data=st.data())
    def sliced(self, which: int, data: Any) -> None:
        source = self.kept[which % len(self.kept)]
        index = drawn_index(data, source.array.shape)
        self.keep(source.tensor[index], source.array[(*index, ...) if ... not in index else index], source)

    @precondition(lambda self: self.kept)
    @rule(which=WHICH, way=st.sampled_from(WAYS))
    def moved(self, which: int, way: str) -> None:
        source = self.kept[which % len(self.kept)]
        x, a = source.tensor, source.array
        if way == "rolled" and a.ndim > 1:
            order = (*range(1, a.ndim), 0)
            self.keep(x.permute(order), a.transpose(order), source)
        elif way == "T":
            self.keep(x.T, a.T, source)
        elif way == "flat":
            self.keep(x.reshape(-1) if a.size else x.flatten(), a.reshape(-1), source)
        elif way == "unsqueeze":
            self.keep(x.unsqueeze(-1), a[..., None], source)
        elif way == "flip" and a.ndim:
            self.keep(x.flip(0), a[::-1], source)
        elif way == "expand":
            self.keep(x.expand(2, *a.shape), np.broadcast_to(a, (2, *a.shape)), source)
        elif way in ("detach", "itself"):
            self.keep(x.detach() if way == "detach" else x.to(x.dtype), a, source)
        elif way == "contiguous":
            self.keep(x.contiguous(), np.asarray(a, order="C"), source)
        elif way == "clone":
            self.keep(x.clone(), a.copy(), source)

    @precondition(lambda self: self.kept)
    @rule(which=WHICH, data=st.data())
    def picked(self, which: int, data: Any) -> None:
        source = self.one(which)
        assert source
        if source.array.ndim and source.array.shape[0]:
            n = source.array.shape[0]
            places = np.array(data.draw(st.lists(st.integers(-n, n - 1), max_size=3)), int)
            self.keep(source.tensor[mg.tensor(places)], source.array[places], source)
        mask = source.array > 0
        self.keep(source.tensor[source.tensor > 0], source.array[mask], source)

    @precondition(lambda self: self.kept)
    @rule(which=WHICH, dtype=st.sampled_from(DTYPES))
    def cast(self, which: int, dtype: str) -> None:
        source = self.kept[which % len(self.kept)]
        self.keep(source.tensor.to(np.dtype(dtype)), source.array.astype(dtype, copy=False), source)

    @precondition(lambda self: len(self.kept) > 1)
    @rule(which=WHICH)
    def forgotten(self, which: int) -> None:
        del self.kept[which % len(self.kept)]  # its memory lives on in its views

    # Writes ----------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.kept)
    @rule(which=WHICH, other=WHICH, data=st.data(), value=NUMBERS)
    def written(self, which: int, other: int, data: Any, value: int) -> None:
        """A number, or another tensor that may lie in the same memory."""
        target, source = self.kept[which % len(self.kept)], self.kept[other % len(self.kept)]
        index = drawn_index(data, target.array.shape)
        place = target.array[(*index, ...) if ... not in index else index]
        fits = source.array.dtype == target.array.dtype and source.array.shape == place.shape
        if not target.array.flags.writeable:
            with pytest.raises(RuntimeError, match="read-only"):
                target.tensor[index] = value
            return
        target.tensor[index] = source.tensor if fits else value
        place[...] = source.array.copy() if fits else value
        target.writes[0] += 1

    @precondition(lambda self: self.kept)
    @rule(which=WHICH, other=WHICH, zero=st.booleans())
    def overwritten(self, which: int, other: int, zero: bool) -> None:
        target, source = self.kept[which % len(self.kept)], self.kept[other % len(self.kept)]
        if not target.array.flags.writeable:
            return
        if zero:
            assert target.tensor.zero_() is target.tensor
            target.array[...] = 0
        elif source.array.dtype != target.array.dtype:
            with pytest.raises(TypeError, match=f"expected a value of dtype {target.array.dtype}"):
                target.tensor.copy_(source.tensor)
            return
        else:
            values = np.empty_like(target.array)
            try:
                values[...] = source.array
            except ValueError:
                with pytest.raises(ValueError, match="does not broadcast"):
                    target.tensor.copy_(source.tensor)
                return
            target.tensor.copy_(source.tensor)
            target.array[...] = values
        target.writes[0] += 1

    @precondition(lambda self: self.kept)
    @rule(which=WHICH, value=NUMBERS)
    def written_through_numpy(self, which: int, value: int) -> None:
        """Seen by all tensors of the memory, and by no version."""
        target = self.kept[which % len(self.kept)]
        if target.array.flags.writeable:
            target.tensor.numpy()[...] = value
            target.array[...] = value

    # Arithmetic and reductions ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.one(0, "fi"))
    @rule(which=WHICH, other=WHICH, way=st.sampled_from(["add", "sub", "mul", "maximum", "minimum"]), value=NUMBERS)
    def computed(self, which: int, other: int, way: str, value: int) -> None:
        x, y = self.one(which, "fi"), self.one(other, "fi")
        assert x and y
        numpys = getattr(np, {"sub": "subtract", "mul": "multiply"}.get(way, way))
        if x.array.dtype != y.array.dtype or max(largest(x), largest(y)) > 40:
            self.keep(mg.clip(getattr(mg, way)(x.tensor, value), -40, 40), np.clip(numpys(x.array, value), -40, 40))
            return
        try:
            expected = numpys(x.array, y.array)
        except ValueError:
            with pytest.raises(ValueError, match="do not broadcast"):
                getattr(mg, way)(x.tensor, y.tensor)
            return
        self.keep(getattr(mg, way)(x.tensor, y.tensor), expected, x)

    @precondition(lambda self: self.one(0, "fi"))
    @rule(which=WHICH, way=st.sampled_from(REDUCTIONS), dim=st.integers(-3, 2), keepdim=st.booleans())
    def reduced(self, which: int, way: str, dim: int, keepdim: bool) -> None:
        x = self.one(which, "fi")
        assert x
        a, n = x.array, x.array.ndim
        if not -n <= dim < n:
            with pytest.raises(IndexError, match=way):
                getattr(mg, way)(x.tensor, dim)
        elif (a.shape[dim] or way == "sum") and largest(x) * a.size <= 2048:
            if way == "cumsum":
                self.keep(mg.cumsum(x.tensor, dim), a.cumsum(dim, dtype=a.dtype), x)
            else:
                expected = getattr(np, way)(a, axis=dim, keepdims=keepdim)
                self.keep(getattr(mg, way)(x.tensor, dim, keepdim), expected, x)

    @precondition(lambda self: self.kept)
    @rule(which=WHICH, other=WHICH)
    def compared(self, which: int, other: int) -> None:
        x, y = self.kept[which % len(self.kept)], self.kept[other % len(self.kept)]
        if x.array.shape == y.array.shape:
            self.keep(x.tensor == y.tensor, x.array == y.array, x)

    # Graphs ----------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.one(0, "f") and len(self.graphs) < 3)
    @rule(which=WHICH)
    def recorded(self, which: int) -> None:
        """Σ x³ over a leaf in memory that others may write to."""
        x = self.one(which, "f")
        assert x
        if largest(x) > 8 or not x.array.size:
            return
        leaf = x.tensor.detach().requires_grad_()
        self.graphs.append(Graph(leaf, (leaf * leaf * leaf).sum(), 3 * np.square(x.array), x.writes, x.writes[0]))

    @precondition(lambda self: self.graphs)
    @rule(which=WHICH)
    def walked(self, which: int) -> None:
        graph = self.graphs.pop(which % len(self.graphs))
        if graph.writes[0] != graph.then:
            with pytest.raises(RuntimeError, match="changed in place after the forward pass"):
                graph.loss.backward()
            assert graph.leaf.grad is None
        elif np.array_equal(3 * np.square(graph.leaf.detach().numpy()), graph.slope):  # or written to through NumPy
            graph.loss.backward()
            assert graph.leaf.grad is not None
            np.testing.assert_array_equal(graph.leaf.grad.numpy(), graph.slope)
            assert not np.may_share_memory(graph.leaf.grad.numpy(), graph.leaf.detach().numpy())

    # What holds at any time ------------------------------------------------------------------------------------------

    @invariant()
    def values_and_versions_agree(self) -> None:
        for k in self.kept:
            assert (k.tensor.dtype, k.tensor.shape) == (k.array.dtype, k.array.shape)
            np.testing.assert_array_equal(k.tensor.numpy(), k.array)
            assert k.tensor.version[0] == k.writes[0] or not k.array.size

    @invariant()
    def memory_is_shared_where_numpy_shares_it(self) -> None:
        for i, x in enumerate(self.kept):
            for y in self.kept[:i]:
                shared = np.shares_memory(x.tensor.numpy(), y.tensor.numpy())
                assert shared == np.shares_memory(x.array, y.array)


def test_any_sequence_of_operations_is_numpys() -> None:
    run_state_machine_as_test(Tensors, settings=settings(max_examples=150, stateful_step_count=40))
