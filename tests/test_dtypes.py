"""How dtypes meet: torch's table, pair by pair, for tensors with dimensions, 0-d tensors and numbers."""

from __future__ import annotations

import itertools
from typing import Any

import numba
import numpy as np
import pytest

import minigrad as mg

pytestmark = pytest.mark.usefixtures("on_device")

DTYPES = ["float16", "float32", "float64", "int64", "bool"]
NUMBERS = [True, 3, 2.5]
LARGE = (30, 40) if numba.config.ENABLE_CUDASIM else (300, 400)  # for all threads; the simulator has none
OPERANDS: list[tuple[str, Any]] = [(d, s) for d in DTYPES for s in ((2,), ())] + [("number", n) for n in NUMBERS]
PAIRS = [
    pytest.param(a, b, id=f"{a}-{b}") for a, b in itertools.product(OPERANDS, OPERANDS) if "number" not in (a[0], b[0])
] + [pytest.param(a, b, id=f"{a}-{b}") for a, b in itertools.product(OPERANDS[:10], OPERANDS[10:])]


def make(operand: tuple[str, Any], lib: Any) -> Any:
    kind, what = operand
    return what if kind == "number" else lib.ones(what, dtype=getattr(lib, kind))


def name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_operands_meet_where_torchs_do(a: Any, b: Any) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = (make(a, mg), make(b, mg)), (make(a, torch), make(b, torch))
    assert name(mg.result_type(*ours)) == name(torch.result_type(*theirs))
    for op in ("add", "mul", "div", "eq", "maximum")[: 4 if b[0] == "number" else 5]:  # torch's maximum: tensors only
        assert name(getattr(mg, op)(*ours).dtype) == name(getattr(torch, op)(*theirs).dtype), op
    for op in ("sub", "pow"):
        if mg.result_type(*ours) == mg.bool:
            with pytest.raises(TypeError, match=f"{op}: not defined for bool tensors"):
                getattr(mg, op)(*ours)
        else:  # torch refuses some with a bool among them
            assert getattr(mg, op)(*ours).dtype == mg.result_type(*ours)
    chosen = mg.where(mg.tensor([True, False]), *ours)
    assert name(chosen.dtype) == name(torch.where(torch.tensor([True, False]), *theirs).dtype)
    assert mg.mul(ours[1], ours[0]).dtype == mg.mul(*ours).dtype


@pytest.mark.parametrize("number", [np.float64(2), np.float32(2), np.int64(2), np.bool_(True)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int64"])
def test_numpys_scalars_are_numbers(number: Any, dtype: str) -> None:
    """np.float64 is a Python float, and must not widen float32."""
    x = mg.ones(2, dtype=dtype)
    for f in (lambda n: x * n, lambda n: n - x, lambda n: x / n, lambda n: mg.maximum(x, n), lambda n: mg.clip(x, n)):
        assert f(number).dtype == f(number.item()).dtype


@pytest.mark.parametrize("function", ["exp", "sqrt", "sigmoid", "relu", "reciprocal", "rsqrt", "gelu"])
@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_functions_of_integers_answer_in_float32(function: str, dtype: str) -> None:
    assert getattr(mg, function)(mg.ones(2, dtype=dtype)).dtype == mg.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_reductions_keep_floats_and_widen_the_rest(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = mg.ones((2, 3), dtype=dtype), torch.ones((2, 3), dtype=getattr(torch, dtype))
    for f in (lambda x: x.sum(), lambda x: x.sum(0), lambda x: x.cumsum(0), lambda x: x.prod(), lambda x: x.amax(),
              lambda x: x.max(1)[0], lambda x: x.any(), lambda x: x.all(1)):  # fmt: skip
        assert name(f(ours).dtype) == name(f(theirs).dtype)
        assert f(ours).tolist() == f(theirs).tolist()
    for op in ("mean", "var", "std", "norm"):
        if dtype in ("int64", "bool"):
            with pytest.raises(TypeError, match=f"{op}: expected a floating dtype; got {dtype}"):
                getattr(mg, op)(ours)
        else:
            assert getattr(mg, op)(ours).dtype == np.dtype(dtype)


@pytest.mark.parametrize("op", ["neg", "abs", "sign", "square"])
def test_integers_stay_integers_and_bools_are_refused(op: str) -> None:
    assert getattr(mg, op)(mg.tensor([-2, 3])).dtype == mg.int64
    with pytest.raises(TypeError, match=f"{op}: not defined for bool tensors"):
        getattr(mg, op)(mg.tensor([True]))


def test_clip_and_powers_of_integers() -> None:
    x = mg.tensor([1, 5])
    assert (x.clip(2, 3).tolist(), x.clip(2, 3).dtype) == ([2, 3], mg.int64)
    assert (x.clip(max=2.5).tolist(), x.clip(max=2.5).dtype) == ([1.0, 2.5], mg.float32)
    assert ((x**2).tolist(), (x**2).dtype) == ([1, 25], mg.int64)
    for negative in (-1, mg.tensor([-1, 2])):
        with pytest.raises(ValueError, match="pow: an integer cannot be raised to -1"):
            x**negative
    assert (x**-1.0).tolist() == pytest.approx([1, 0.2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4), LARGE])
def test_choices_are_numpys_in_every_dtype(dtype: str, shape: Any) -> None:
    """Of two tensors, with a number on either side, and of what lies apart in memory; NaN and the sign of 0 stay."""
    x, y = np.random.default_rng(0).standard_normal((2, *shape)).astype(dtype)
    condition = np.random.default_rng(1).random(shape) < 0.5
    if x.dtype.kind == "f":
        x[0], y[:, 0] = [np.nan, -0.0] * (shape[1] // 2), np.inf
    a, b, c = map(mg.tensor, (x, y, condition))
    number = True if dtype == "bool" else 2
    for ours, theirs in [
        (mg.where(c, a, b), np.where(condition, x, y)),
        (mg.where(c, a, number), np.where(condition, x, number)),
        (mg.where(c, number, b), np.where(condition, number, y)),
        (mg.where(c[::2], a[1::2], b[::2]), np.where(condition[::2], x[1::2], y[::2])),
        (mg.where(c.T, a.T, b.T[:1]), np.where(condition.T, x.T, y.T[:1])),
        (mg.where(c[:, :1], a, b[0, 0]), np.where(condition[:, :1], x, y[0, 0])),
        (mg.where(c[0, 0], a, number), np.where(condition[0, 0], x, number)),
    ]:
        assert ours.dtype == x.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.numpy().tobytes() == theirs.tobytes()
    if x.dtype.kind == "f":
        assert np.isinf(mg.where(c, a, 1e300).numpy()).any() == (dtype != "float64")  # numbers are rounded to the dtype


def test_operators_of_logic_want_bools() -> None:
    a, b = mg.tensor([True, True, False]), mg.tensor([True, False, False])
    assert (a & b).tolist() == [True, False, False]
    assert (a | b).tolist() == [True, True, False]
    assert (~a).tolist() == [False, False, True]
    assert (True & b).tolist() == [True, False, False] and (True | b).all()
    for f in (lambda: mg.tensor([1]) & 2, lambda: a | mg.tensor([1, 2, 3]), lambda: ~mg.tensor([1])):
        with pytest.raises(TypeError, match=r"expected bool tensors; got (int64|int)\. Use mg\.logical_"):
            f()
