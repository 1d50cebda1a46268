"""exp, expm1, log1p and erfc of the CPU's kernels over the whole range of a dtype, and the softmax family on top."""

from __future__ import annotations

import importlib
import inspect
import math
import platform
import re
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import binding

import minigrad as mg
from minigrad.kernels import scalar
from minigrad.kernels.cpu import _math, elementwise
from minigrad.kernels.cpu.elementwise import _lift

INF, NAN = math.inf, math.nan
f32 = np.float32


def exp(x: Any) -> Any:
    return math.exp(x)


def expm1(x: Any) -> Any:
    return math.expm1(x)


def log1p(x: Any) -> Any:
    return math.log1p(x)


def erfc(x: Any) -> Any:
    return math.erfc(x)


FUNCTIONS: dict[str, tuple[Callable[..., Any], float]] = {  # what a formula says, and the error allowed in ulp
    "exp": (exp, 1.0),
    "expm1": (expm1, 2.0),
    "log1p": (log1p, 2.0),
    "erfc": (erfc, 4.5),
}


DTYPES = [f32, np.float64]


def reference(name: str, x: Any) -> Any:
    """In a wider dtype. The C library has erfc in float64 only, and it is what float64 takes."""
    f = np.vectorize(math.erfc, otypes=[float]) if name == "erfc" else getattr(np, name)
    with np.errstate(all="ignore"):
        return f(x.astype(np.float64 if x.dtype == f32 or name == "erfc" else np.longdouble))


SPECIAL = [0.0, -0.0, INF, -INF, NAN, -NAN, -1, -2, 2.0**64, 2.0**65, 2.0**127, 1e30, 1e-45, -1e-45, 1e-39, -1e-39]
SPECIAL += [88.722, 88.723, 89, -87.5, -103.9, -104, -200, 709.78, 709.79, 710, -708.4, -745.1, -745.2, -746]


def everywhere(dtype: Any) -> Any:
    """A million numbers or four of every exponent and either sign, and more of those where something happens."""
    rng, limits = np.random.default_rng(0), np.finfo(dtype)
    if dtype is f32:
        bits = np.arange(0, 2**32, 1021, dtype=np.uint64).astype(np.uint32).view(f32)
    else:
        bits = rng.integers(0, 2**64, 1 << 20, dtype=np.uint64).view(np.float64)
    powers = rng.uniform(limits.minexp - limits.nmant - 2, limits.maxexp + 2, 1 << 18) * math.log(2)
    special = [*SPECIAL, limits.max, limits.smallest_subnormal]
    with np.errstate(over="ignore"):
        return np.concatenate([x.astype(dtype) for x in (bits, powers, rng.uniform(-2, 2, 1 << 18), np.array(special))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy_over_the_whole_range(name: str, dtype: Any) -> None:
    formula, allowed = FUNCTIONS[name]
    x = everywhere(dtype)
    found, exact = _lift(formula, 1)(x), reference(name, x)
    with np.errstate(all="ignore"):
        rounded = exact.astype(dtype)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    ulp = np.spacing(np.abs(rounded[finite]))
    assert (np.abs(found[finite] - exact[finite]) / ulp).max() <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_signs_of_zero(name: str, dtype: Any) -> None:
    zeros = np.array([0.0, -0.0], dtype)
    assert np.signbit(_lift(FUNCTIONS[name][0], 1)(zeros)).tolist() == np.signbit(reference(name, zeros)).tolist()


FORMULAS = [f for name, f in inspect.getmembers(scalar, inspect.isfunction) if hasattr(elementwise, name)]


@pytest.mark.skipif(platform.machine() == "x86_64" and not binding.get_host_cpu_features().get("fma"), reason="no FMA")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("formula", [f for f in FORMULAS if f is not scalar.rsqrt], ids=lambda f: f.__name__)
def test_loops_over_a_formula_vectorize(formula: Callable[..., Any], dtype: Any) -> None:
    """A call, of a function that was not inlined or of the C library's, would stand in the way."""
    if dtype is np.float64 and formula in (scalar.gelu, scalar.gelu_vjp):
        pytest.skip("erfc of float64 is the C library's")
    f, names = _math.lifted(formula), list(inspect.signature(formula).parameters)

    @numba.njit(error_model="numpy")
    def one(out: Any, x: Any, y: Any, parameters: Any) -> None:
        for i in range(out.size):
            out[i] = f(x[i], *parameters)

    @numba.njit(error_model="numpy")
    def two(out: Any, x: Any, y: Any, parameters: Any) -> None:
        for i in range(out.size):
            out[i] = f(x[i], y[i], *parameters)

    x, parameters = np.ones(100, dtype), (0.5,) * (names[-1] in ("slope", "alpha"))
    loop = two if len(names) - len(parameters) == 2 else one
    loop(x, x, x, parameters)
    (code,) = loop.inspect_llvm().values()
    assert re.search(r"store <\d+ x " + {f32: "float", np.float64: "double"}[dtype], code)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_result_does_not_depend_on_its_place(name: str, dtype: Any) -> None:
    """In a register with others, or in the rest of the array, one at a time."""
    f, x = _lift(FUNCTIONS[name][0], 1), np.linspace(-3, 40, 1000, dtype=dtype)
    whole = f(x)
    for shift in (1, 7, 991, 999):
        assert f(x[shift:]).tobytes() == whole[shift:].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_negative_over_all_that_a_softmax_takes(dtype: Any) -> None:
    def formula(x: Any) -> Any:
        return math.exp_negative(x)  # type: ignore[attr-defined]  # lifted, `math` is that of the kernels

    x = everywhere(dtype)
    x = x[~(x > 0)]
    exact, found, least = reference("exp", x), _lift(formula, 1)(x), {f32: -104, np.float64: -746}[dtype]
    assert np.isnan(found[np.isnan(x)]).all() and (found[x == 0] == 1).all() and (found[x < least] == 0).all()
    assert np.nanmax(np.abs(found - exact) / np.spacing(exact.astype(dtype))) <= 1


@pytest.mark.parametrize("exponent", [*range(-7, 8), 0.5, -0.5])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_powers_of_every_size_and_sign(dtype: Any, exponent: float) -> None:
    """Rounded once, but for 1 / √. An exponent as an array is C's `pow`: NumPy has a shortcut for the number ½."""
    rng, most = np.random.default_rng(0), np.finfo(dtype).maxexp
    x = np.ldexp(rng.uniform(-1, 1, 1 << 18), rng.integers(-most - 20, most, 1 << 18)).astype(dtype)
    x = np.concatenate([x, rng.standard_normal(1 << 16), [0, -0.0, INF, -INF, NAN, 1, -1]]).astype(dtype)
    found = mg.tensor(x) ** exponent
    assert found.dtype == dtype
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.longdouble), np.longdouble(exponent))
        rounded, theirs = exact.astype(dtype), np.power(x, np.full_like(x, exponent))
        ulp = np.abs(found.numpy() - exact) / np.spacing(np.abs(rounded))
    finite, number = np.isfinite(rounded), ~np.isnan(theirs)
    np.testing.assert_array_equal(found.numpy()[~finite], rounded[~finite])
    np.testing.assert_array_equal(np.signbit(found.numpy()[number]), np.signbit(theirs[number]))
    ulp, large = ulp[finite], np.abs(rounded[finite]) >= np.finfo(dtype).tiny / np.finfo(dtype).eps
    assert ulp.max() <= 1.5 and ulp[large].max() <= (0.501 if exponent != -0.5 else 1.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [8, 9, -8, -9.0, 101, 2.0**53, -1e300, INF, 2.5])
def test_high_powers_of_negative_numbers(dtype: Any, exponent: float) -> None:
    """They are made of those of positive ones, which NumPy takes many at a time."""
    x = np.random.default_rng(0).uniform(-2, 2, 10_000)
    x = np.concatenate([x, [0, -0.0, INF, -INF, NAN, 1, -1]]).astype(dtype)
    found = (mg.tensor(x) ** exponent).numpy()
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.longdouble), np.longdouble(exponent)).astype(dtype)
    np.testing.assert_allclose(found, exact, rtol=2 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)
    number = ~np.isnan(exact)
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(exact[number]))


BOUNDS = (-0.5, 0.7), (None, 0.25), (0.1, None), (0.7, -0.5), (0, 1e300), (NAN, 1), (-1, NAN)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_clip_is_numpys(dtype: Any, bounds: Any) -> None:
    x = np.random.default_rng(0).standard_normal(5000).astype(dtype)
    x[:4] = NAN, INF, -INF, -0.0
    with np.errstate(all="ignore"):
        for some in (x, x[:10]):
            found = mg.clip(mg.tensor(some), *bounds).numpy()
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, np.clip(some, *bounds))


@pytest.mark.parametrize("number", [0.3, -1, 1e300, INF, -INF, NAN])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_extrema_with_a_number_and_signs_are_numpys(dtype: Any, number: float) -> None:
    x = np.random.default_rng(0).normal(0, 3, 5000).astype(dtype)
    if x.dtype.kind == "f":
        x[:5] = NAN, INF, -INF, -0.0, 0.3
    wide = x.astype(f32) if dtype is np.int64 and isinstance(number, float) else x  # as torch has it
    with np.errstate(all="ignore"):
        for some, theirs in ((x, wide), (x[:10], wide[:10])):
            given = mg.tensor(some)
            for f, expected in ((mg.maximum, np.maximum(theirs, number)), (mg.minimum, np.minimum(theirs, number))):
                for found in (f(given, number), f(number, given)):
                    np.testing.assert_array_equal(found.numpy(), expected)
            np.testing.assert_array_equal(mg.sign(given).numpy(), np.sign(some))
            assert mg.sign(given).dtype == given.dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_quotient_is_that_of_a_division(dtype: Any) -> None:
    """To the bit, but for 1 ulp where it is subnormal."""

    @numba.njit
    def divided(x: Any, y: Any) -> Any:
        out = np.empty_like(x)
        for i in range(x.size):
            out[i] = _math.quotient(x[i], y[i], y.dtype.type(1) / y[i])
        return out

    rng, tiny = np.random.default_rng(0), np.finfo(dtype).tiny
    x, y = rng.uniform(0.5, 1, (2, 1 << 20)).astype(dtype)
    x, y = np.ldexp(x, rng.integers(-100, 1, x.size)), np.ldexp(y, rng.integers(1, 24, y.size))
    assert divided(x, y).tobytes() == (x / y).tobytes()
    x *= dtype(tiny)
    np.testing.assert_allclose(divided(x, y), x / y, rtol=0, atol=np.spacing(tiny))
    special = np.array([0, np.nan], dtype), np.array([3, 3], dtype)
    assert divided(*special).tobytes() == (special[0] / special[1]).tobytes()
    assert np.isnan(divided(np.ones(1, dtype), np.full(1, np.nan, dtype))).all()


@pytest.mark.parametrize("n", [1, 2, 31, 32, 127, 128, 129, 255, 256, 1000, 1025])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_against_float64(n: int, dtype: str) -> None:
    """Of multiples of 1/64, whose differences are exact: all that is left is the error of the kernel."""
    x = np.random.default_rng(n).integers(-640, 640, (5, n)) / 64
    exact = x.astype(np.longdouble)
    total = np.log(np.exp(exact - 10).sum(1, keepdims=True)) + 10
    given = mg.tensor(x, dtype=getattr(mg, dtype))
    for name, expected in (("softmax", np.exp(exact - total)), ("log_softmax", exact - total)):
        error = np.abs(getattr(mg, name)(given, 1).numpy() - expected)
        scale = np.maximum(np.abs(expected), 1 if name == "log_softmax" else 0)
        allowed = 3 if (name, dtype) == ("softmax", "float32") else 32  # halves of eps; float64 sums are not exact
        assert (error <= allowed * np.finfo(dtype).eps / 2 * scale).all()
    error = np.abs(mg.logsumexp(given, 1).numpy() - total[:, 0])
    assert (error <= 2 * np.finfo(dtype).eps * np.maximum(1, np.abs(total[:, 0]))).all()
    np.testing.assert_array_equal(mg.softmax(given.T, 0).T.numpy(), mg.softmax(given, 1).numpy())


@pytest.mark.parametrize("place", [0, 1, 127, 128, 200, 256, 299])
def test_one_nan_spoils_its_row_alone(place: int) -> None:
    for value in (0.0, INF):
        x = np.random.default_rng(0).standard_normal((3, 300)).astype(f32)
        x[1, 5], x[1, place] = value, NAN
        for f in (mg.softmax, mg.log_softmax, mg.logsumexp):
            spoilt = np.isnan(f(mg.tensor(x), 1).numpy()).reshape(3, -1)
            assert spoilt.all(1).tolist() == spoilt.any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("n", [3, 128, 300])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_gradients_are_those_of_the_formulas(name: str, n: int) -> None:
    x, g = np.random.default_rng(n).standard_normal((2, 4, n))
    shares = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    total = (g * shares if name == "softmax" else g).sum(1, keepdims=True)
    expected = shares * (g - total) if name == "softmax" else g - shares * total
    for dtype, allowed in (("float64", 1e-14), ("float32", 2e-6)):
        given, up = (mg.tensor(a, dtype=getattr(mg, dtype)) for a in (x, g))
        given.requires_grad_()
        (found,) = mg.grad(getattr(mg, name)(given, 1), given, up)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=allowed * np.abs(expected).max())


def test_second_derivatives_of_the_softmax_family() -> None:
    x = mg.tensor(np.random.default_rng(0).standard_normal((2, 5)), requires_grad=True)
    weight = mg.tensor(np.random.default_rng(1).standard_normal((2, 5)))
    for f in (mg.softmax, mg.log_softmax):
        assert mg.gradgradcheck(lambda x, f=f: (f(x, 1) * weight).square().sum(), [x])


def test_formulas_take_this_math_and_no_other() -> None:
    """The names that a lifted formula may say, with the meaning they have in Python."""
    ours = importlib.import_module("minigrad.kernels.cpu._math")
    x = np.linspace(0.1, 2, 9)
    for name in ("sqrt", *FUNCTIONS):
        assert hasattr(ours, name)
    np.testing.assert_allclose(mg.gelu(mg.tensor(x)).numpy(), [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x])
