"""Tensors: making them, looking at them, views and versions, exchange with other libraries, and refusals."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad as mg

# Making them ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (1.5, mg.float32, ()),
        (2, mg.int64, ()),
        (True, mg.bool, ()),
        ([], mg.float32, (0,)),
        ([[1, 2], [3, 4]], mg.int64, (2, 2)),
        ([1, 2.5], mg.float32, (2,)),
        (range(3), mg.int64, (3,)),
        ((True, False), mg.bool, (2,)),
        (np.ones(3), mg.float64, (3,)),
        (np.float16(1), mg.float16, ()),
        (mg.ones(2, dtype=mg.float16), mg.float16, (2,)),
        ([1e300], mg.float32, (1,)),
    ],
)
def test_tensors_from_data(data: Any, dtype: Any, shape: tuple[int, ...], device: str) -> None:
    x = mg.tensor(data, device=device)
    assert (x.dtype, x.shape, x.device, x.is_leaf, x.requires_grad) == (dtype, shape, device, True, False)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("numbers", [(1000.0, 1001.0, 0.001), (3.0, -3.0, -0.01), (0, 1000, 1), (-0.7, 2.0, 0.3)])
def test_arange_is_rounded_once(numbers: Any, dtype: str, device: str) -> None:
    """NumPy takes its step from two numbers of the dtype: the last of 1000, 1000.001, … would be 1000.976."""
    start, stop, step = numbers
    expected = np.array([start + i * step for i in range(math.ceil((stop - start) / step))]).astype(dtype)
    assert mg.arange(*numbers, dtype=dtype, device=device).tolist() == expected.tolist()


def test_tensor_copies_and_from_numpy_shares() -> None:
    a = np.zeros(3)
    copied, shared, again = mg.tensor(a), mg.from_numpy(a), mg.tensor(mg.from_numpy(a))
    a[:] = 1
    assert (copied.tolist(), shared.tolist(), again.tolist()) == ([0] * 3, [1] * 3, [0] * 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "bool"])
def test_creation(dtype: str, device: str) -> None:
    options = {"dtype": dtype, "device": device}
    for make, value in ((mg.zeros, 0), (mg.ones, 1)):
        for shape in ((), (2,), (0, 3)):
            x = make(shape, **options)
            assert (x.shape, x.dtype, x.device) == (shape, np.dtype(dtype), device)
            assert (x == value).all()
    x = mg.full((2, 1), 1, **options)
    assert x.tolist() == [[1], [1]]
    assert mg.empty(2, 3, **options).shape == (2, 3)
    assert mg.eye(2, 3, **options).tolist() == np.eye(2, 3).tolist()
    for like in (mg.zeros_like, mg.ones_like, mg.empty_like):
        assert (like(x).shape, like(x).dtype, like(x).device) == (x.shape, x.dtype, x.device)
        assert like(x, dtype=mg.float64).dtype == mg.float64
    assert mg.full_like(x, 0).tolist() == [[0], [0]]


def test_creation_defaults_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    for f in (
        lambda m: m.zeros(2), lambda m: m.full((2,), 3), lambda m: m.full((2,), True), lambda m: m.full((1,), 2.0),
        lambda m: m.arange(5), lambda m: m.arange(1, 2, 0.25), lambda m: m.arange(5, 0, -2), lambda m: m.eye(2),
        lambda m: m.arange(3, dtype=m.float64), lambda m: m.ones(2, 3, requires_grad=True),
    ):  # fmt: skip
        ours, theirs = f(mg), f(torch)
        assert (str(ours.dtype), ours.tolist()) == (str(theirs.dtype).removeprefix("torch."), theirs.tolist())
        assert ours.requires_grad == theirs.requires_grad


def test_moves_and_conversions_return_the_tensor_itself_where_nothing_changes() -> None:
    x = mg.ones(2, requires_grad=True)
    assert x.to(mg.float32) is x and x.to("cpu") is x and x.to(dtype="float32", device="cpu") is x
    assert (x.double().dtype, x.half().dtype, x.long().dtype) == (mg.float64, mg.float16, mg.int64)
    assert x.double().float().requires_grad and not x.long().requires_grad
    assert mg.tensor([1e300], dtype=mg.float64).float().tolist() == [math.inf]


# Looking at them -----------------------------------------------------------------------------------------------------


def test_what_it_prints() -> None:
    x = mg.tensor([[1.0, 2.5], [-3.0, 4.0]], requires_grad=True)
    assert repr(x) == "tensor([[ 1. ,  2.5],\n        [-3. ,  4. ]], requires_grad=True)"
    assert repr(x * 2).endswith("op=mul)")
    assert repr(mg.tensor([1.0], dtype=mg.float64)) == "tensor([1.], dtype=float64)"
    assert repr(mg.tensor(3)) == "tensor(3)" and str(mg.zeros(0)) == "tensor([])"
    assert "..." in repr(mg.zeros(10_000))
    assert f"{mg.tensor(1.23456):.2f}" == "1.23" and f"{mg.tensor(2)}" == "tensor(2)"


def test_pythons_protocols() -> None:
    x = mg.tensor([[1, 2, 3], [4, 5, 6]])
    assert (len(x), x.size(), x.size(1), x.numel(), x.ndim) == (2, (2, 3), 3, 6, 2)
    assert [row.tolist() for row in x] == [[1, 2, 3], [4, 5, 6]]
    assert 5 in x[1] and 7 not in x[1]
    assert [10, 20, 30][mg.tensor(1)] == 20 and list(range(5))[mg.tensor(3) :] == [3, 4]
    assert (int(mg.tensor(2.7)), float(mg.tensor([3])), bool(mg.tensor([[1]]))) == (2, 3.0, True)
    assert math.sqrt(mg.tensor(4.0)) == 2.0
    assert {x: "by identity"}[x] == "by identity"
    assert type(mg.tensor(2).item()) is int and type(mg.tensor(True).tolist()) is bool


@pytest.mark.parametrize(
    ("f", "error", "match"),
    [
        (lambda x: x.item(), ValueError, r"item\(\): expected a tensor of one element; got shape \(2,\)"),
        (bool, ValueError, r"shape \(2,\) is neither true nor false"),
        (lambda x: len(x.sum()), TypeError, "a 0-d tensor has no length"),
        (lambda x: list(x.sum()), TypeError, "0-d"),
        (lambda x: [1][x[0]], TypeError, "expected an integer tensor; got float32"),
        (lambda x: x.requires_grad_().numpy(), RuntimeError, r"the tensor requires grad.*x\.detach\(\)\.numpy\(\)"),
        (lambda x: np.asarray(x.requires_grad_()), RuntimeError, "the tensor requires grad"),
    ],
)
def test_questions_without_an_answer(f: Callable[[mg.Tensor], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        f(mg.tensor([1.0, 2.0]))


# Views and versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("reduce", [mg.sum, mg.mean, mg.amax, mg.amin, mg.max, mg.min, mg.prod, mg.norm])
def test_a_reduction_of_one_element_is_no_view(
    reduce: Callable[[mg.Tensor], mg.Tensor], shape: tuple[int, ...], device: str
) -> None:
    x = mg.full(shape, 3.0, device=device)
    y = reduce(x)
    x.zero_()
    assert y.item() == 3.0 and y.version == [0]


@pytest.mark.parametrize(
    "view",
    [lambda x: x.reshape(6), lambda x: x.view(3, 2), lambda x: x.T, lambda x: x.permute(1, 0), lambda x: x[1],
     lambda x: x[0, 2], lambda x: x[:, ::-1], lambda x: x.flip(0), lambda x: x.unsqueeze(0), lambda x: x.detach(),
     lambda x: x.flatten(), lambda x: x.split(1)[1], lambda x: x.squeeze(), lambda x: x.contiguous()],
)  # fmt: skip
def test_views_share_memory_and_version(view: Callable[[mg.Tensor], mg.Tensor]) -> None:
    x = mg.ones(2, 3)
    y = view(x)
    assert np.shares_memory(x.numpy(), y.numpy())
    y.zero_()
    assert x.version is y.version and x.version == [1] and not x[1, 2].item() * x[0, 2].item()


@pytest.mark.parametrize(
    "copy_of",
    [lambda x: x.clone(), lambda x: x.T.reshape(6), lambda x: x.T.contiguous(), lambda x: x + 0, lambda x: x[[0, 1]],
     lambda x: x.to(mg.float64), lambda x: mg.cat([x]), lambda x: mg.pad(x, (0, 0))],
)  # fmt: skip
def test_copies_do_not(copy_of: Callable[[mg.Tensor], mg.Tensor]) -> None:
    x = mg.ones(2, 3)
    y = copy_of(x)
    assert not np.shares_memory(x.numpy(), y.numpy())
    y.zero_()
    assert x.version == [0] and x.all()


def test_in_place_changes() -> None:
    x = mg.zeros(2, 3)
    assert x.copy_(mg.arange(3, dtype=mg.float32)) is x and x.tolist() == [[0, 1, 2]] * 2
    x[:, 1:] = x[:, :-1]  # overlapping
    assert x.tolist() == [[0, 0, 1]] * 2
    x.copy_(2.5)
    assert x.zero_() is x and x.version == [4]
    leaf = mg.ones(2, requires_grad=True)
    for change in (lambda: leaf.zero_(), lambda: leaf.copy_(leaf.detach()), lambda: (leaf * 2).zero_()):
        with pytest.raises(RuntimeError, match=r"in-place changes are not differentiable.*no_grad"):
            change()
    for source, error in ((mg.ones(3), ValueError), (mg.ones(2, dtype=mg.int64), TypeError), ("a", TypeError)):
        with pytest.raises(error, match="copy_: "):
            mg.zeros(2).copy_(source)


# Exchange ------------------------------------------------------------------------------------------------------------


def test_with_numpy() -> None:
    x = mg.ones(2, 3)
    assert x.numpy() is x.data and np.shares_memory(np.asarray(x), x.numpy())
    assert np.asarray(x, np.float64).dtype == np.float64 and not np.shares_memory(np.array(x), x.numpy())
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(x, np.float64, copy=False)
    assert np.from_dlpack(x).sum() == 6
    assert mg.tensor([mg.tensor(1.0), mg.tensor(2.0)]).tolist() == [1.0, 2.0]


def test_with_torch_by_dlpack() -> None:
    torch = pytest.importorskip("torch")
    t = torch.arange(6.0).reshape(2, 3)
    x = mg.from_dlpack(t.T)
    t[0, 0] = 9
    assert x.tolist() == [[9, 3], [1, 4], [2, 5]]
    back = torch.from_dlpack(mg.ones(2, dtype=mg.int64))
    assert back.dtype == torch.int64 and back.tolist() == [1, 1]


@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_are_independent(clone: Callable[[Any], Any]) -> None:
    x = mg.tensor([1.0, 2.0], dtype=mg.float16, requires_grad=True)
    x.sum().backward()
    y = clone(x)
    assert (y.tolist(), y.dtype, y.requires_grad, y.grad.tolist()) == ([1, 2], mg.float16, True, [1, 1])
    y.detach().zero_()
    assert x.tolist() == [1.0, 2.0] and x.version == [0]
    both = clone([x, x])
    assert both[0] is both[1]
    with pytest.raises(RuntimeError, match=r"copying the output of mul would cut its graph"):
        clone(x * 2)


def test_a_step_by_hand_is_seen_by_the_model(device: str) -> None:
    """p −= lr · ∇ in a loop over parameters: on a name alone it would train nothing, and say nothing."""
    layer = mg.nn.Linear(2, 1, bias=False, device=device)
    w, before, version = layer.weight, layer.weight.tolist()[0], layer.weight.version[0]
    layer(mg.ones(1, 2, device=device)).sum().backward()
    with mg.no_grad():
        for p in layer.parameters():
            p -= 0.5 * p.grad
        layer.weight *= 2
        w += 1
        w /= 4
    assert layer.weight is w and w.requires_grad and w.is_leaf and w.version == [version + 4]
    np.testing.assert_allclose(w.tolist()[0], [(2 * (b - 0.5) + 1) / 4 for b in before], rtol=1e-6)
    with pytest.raises(RuntimeError, match=r"x -= y: in-place changes are not differentiable, .*no_grad"):
        w -= 1
    with mg.no_grad(), pytest.raises(TypeError, match=r"x \*= y: expected a value of dtype float32; got float64"):
        w *= mg.ones(1, 2, dtype=mg.float64, device=device)
    y = x = 3 * w
    y += 1  # a step of a graph: no leaf
    assert y is not x and y.requires_grad


# Refusals ------------------------------------------------------------------------------------------------------------

X, I64 = mg.ones(2, 3), mg.tensor([0, 1])


@pytest.mark.parametrize(
    ("f", "error", "match"),
    [
        (lambda: X + mg.ones(2), ValueError, r"add: shapes \(2, 3\) and \(2,\) do not broadcast.*reshape or unsqueeze"),
        (lambda: mg.where(X > 0, X, mg.ones(4)), ValueError, r"where: shapes \(2, 3\) and \(4,\) do not broadcast"),
        (lambda: mg.tensor([1], requires_grad=True), TypeError, r"floating dtype; got int64.*to\(mg.float32\)"),
        (lambda: I64.requires_grad_(), TypeError, "expected a floating dtype; got int64"),
        (lambda: X * np.ones(3), TypeError, r"mul: expected tensors and numbers; got ndarray.*mg\.tensor\(\)"),
        (lambda: np.ones(3) - X, TypeError, "sub: expected tensors and numbers; got ndarray"),
        (lambda: np.ones((3, 2)) @ X, TypeError, "matmul: expected a tensor; got ndarray"),
        (lambda: np.float64(1) + X + [1], TypeError, "add: expected tensors and numbers; got list"),
        (lambda: X == None, TypeError, "eq: .* got NoneType"),  # noqa: E711
        (lambda: X * 1j, TypeError, "mul: .* got complex"),
        (lambda: mg.sum([1.0]), TypeError, "sum: expected a tensor; got list"),
        (lambda: mg.exp("a"), TypeError, "exp: .* got str"),
        (lambda: mg.stack([1, 2]), TypeError, "stack: expected a tensor; got int"),
        (lambda: X.sum(dim=2), IndexError, r"sum: expected dim in \[-2, 1\] for a tensor of shape \(2, 3\); got 2"),
        (lambda: X.sum(dim=(0, -2)), IndexError, "sum: expected distinct dims"),
        (lambda: X.sum(dim=1.0), TypeError, "len|dim"),
        (lambda: mg.softmax(X, -3), IndexError, r"softmax: expected dim in \[-2, 1\]"),
        (lambda: X.sum().sum(0), IndexError, "sum: a 0-d tensor has no dim 0"),
        (lambda: mg.amax(mg.zeros(0, 2)), ValueError, r"amax: expected at least one element; got shape \(0, 2\)"),
        (lambda: mg.max(mg.tensor(1.0), 0), IndexError, "max: a 0-d tensor has no dim 0"),
        (lambda: mg.argmax(mg.zeros(0)), ValueError, "argmax: expected at least one element"),
        (lambda: mg.tensor([[1, 2], [3]]), ValueError, "tensor: expected numbers or nested sequences of equal length"),
        (lambda: mg.tensor(1j), TypeError, "tensor: expected real numbers; got complex"),
        (lambda: mg.tensor([None]), TypeError, "tensor: expected real numbers; got list"),
        (lambda: mg.tensor("abc"), TypeError, "tensor: expected real numbers; got str"),
        (lambda: mg.tensor(np.ones(2, np.int32)), TypeError, "tensor: expected a dtype out of .* got int32.*mg.int64"),
        (lambda: mg.zeros(2, dtype="complex64"), TypeError, "full: expected a dtype out of .* got complex64"),
        (lambda: X.to("float8"), TypeError, "to: expected a dtype out of .* got float8"),
        (lambda: mg.from_numpy([1.0]), TypeError, "from_numpy: expected a NumPy array; got list"),
        (lambda: mg.zeros(2, device="tpu"), ValueError, "expected a device out of 'cpu', 'cuda'; got 'tpu'"),
        (lambda: mg.zeros(2, -1), ValueError, r"zeros: expected extents of at least 0; got \(2, -1\)"),
        (lambda: mg.zeros(2.5), TypeError, "zeros: expected a shape of ints; got 2.5"),
        (lambda: mg.zeros((2, "a")), TypeError, "zeros: expected a shape of ints"),
        (lambda: mg.eye(-1), ValueError, "eye: expected extents of at least 0"),
        (lambda: mg.arange(0, 1, 0), ValueError, "arange: expected a step other than 0"),
        (lambda: mg.arange(0, math.inf), ValueError, "arange: expected finite numbers; got start 0, stop inf, step 1"),
        (lambda: X.reshape(4), ValueError, r"reshape: expected a shape of 6 elements, as \(2, 3\) has; got \(4,\)"),
        (lambda: X.reshape(-1, -1), ValueError, "reshape: expected a shape of 6 elements"),
        (lambda: X.reshape(-2, -3), ValueError, "reshape: expected extents of at least -1"),
        (lambda: X.expand(2, 4), ValueError, r"expand: shape \(2, 3\) does not stretch to \(2, 4\)"),
        (lambda: X.expand(3), ValueError, "expand: "),
        (lambda: X.sum_to_size(2), ValueError, "sum_to_size: "),
        (lambda: X.permute(0, 0), IndexError, "permute: expected each of the 2 dims"),
        (lambda: X.flatten(1, 0), IndexError, "flatten: expected start_dim ≤ end_dim"),
        (lambda: X[0].mT, ValueError, "mT: expected at least 2 dimensions"),
        (lambda: mg.pad(X, (1, 1), "reflect"), TypeError, "pad: expected a number as value; got 'reflect'"),
        (lambda: mg.einsum("ij,jk", [X, X.T]), TypeError, "einsum: expected a tensor; got list"),
        (lambda: mg.pad(X, (1,)), ValueError, "pad: expected pairs of widths for at most 2 dims"),
        (lambda: mg.pad(X, (-4, 4)), ValueError, r"pad: widths \(-4, 4\) crop more than shape \(2, 3\) has"),
        (lambda: mg.cat([]), ValueError, "cat: expected at least one tensor"),
        (lambda: mg.cat([X, mg.ones(2, 2)]), ValueError, "cat: expected shapes equal but along dim 0"),
        (lambda: mg.cat([X, X.double()]), TypeError, "cat: expected one dtype; got float32, float64"),
        (lambda: mg.stack([X, X.T]), ValueError, "stack: expected tensors of one shape"),
        (lambda: X.split(0), ValueError, "split: expected a size of at least 1"),
        (lambda: X.split([1, 3], 1), ValueError, "split: expected sizes that add up to 3"),
        (lambda: X.chunk(0), ValueError, "chunk: expected at least 1 chunk"),
        (lambda: X @ X, ValueError, r"matmul: inner extents differ: shapes \(2, 3\) and \(2, 3\)"),
        (lambda: X @ mg.tensor(1.0), ValueError, "matmul: expected at least 1 dimension"),
        (lambda: X @ X.T.double(), TypeError, "matmul: expected one dtype; got float32, float64"),
        (lambda: mg.ones(2, 2, 3) @ mg.ones(3, 3, 2), ValueError, "matmul: the batches of shapes .* do not broadcast"),
        (lambda: mg.linear(X, mg.ones(4, 2)), ValueError, r"linear: expected x \(…, in\)"),
        (lambda: mg.linear(X.numpy(), X), TypeError, "linear: expected a tensor; got ndarray"),
        (lambda: mg.dot(X, X), ValueError, "dot: expected two vectors"),
        (lambda: mg.outer(X, X), ValueError, "outer: expected two vectors"),
        (lambda: X.gather(1, mg.tensor([[3]])), IndexError, r"gather: expected indices in \[0, 2\]; got 3"),
        (lambda: X.gather(1, mg.tensor([0])), ValueError, "gather: an index of shape .* does not fit"),
        (lambda: X.gather(1, [[0]]), TypeError, "gather: expected an int64 tensor of indices; got list"),
        (lambda: X.index_select(0, mg.tensor([-1])), IndexError, r"index_select: expected indices in \[0, 1\]; got -1"),
        (lambda: X.index_select(0, X[0]), TypeError, "index_select: expected indices of dtype int64; got float32"),
        (lambda: mg.embedding(mg.tensor(2), X), IndexError, "embedding: expected indices"),
        (lambda: mg.where(X, X, X), TypeError, "where: expected a bool tensor as condition; got float32"),
        (lambda: mg.where(X > 0, "a", X), TypeError, "where: .* got str"),
        (lambda: mg.clip(X), ValueError, "clip: expected min, max or both"),
        (lambda: mg.clip(X, X), TypeError, "clip: expected numbers as bounds; got a tensor"),
        (lambda: mg.softplus(X, 0), ValueError, "softplus: expected beta > 0"),
        (lambda: mg.norm(X, 0), ValueError, "norm: expected p > 0"),
        (lambda: mg.logsumexp(mg.zeros(2, 0), 1), ValueError, "logsumexp: expected at least one element along dim 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(f: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        f()


@pytest.mark.skipif(mg.cuda.is_available(), reason="there is a GPU")
def test_no_silent_move_to_a_device_that_is_not_there() -> None:
    for f in (lambda: mg.zeros(2, device="cuda"), lambda: X.to("cuda"), lambda: mg.tensor(1.0, device="cuda")):
        with pytest.raises(RuntimeError, match="cuda"):
            f()
