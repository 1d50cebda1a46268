"""The interpreter of PTX against Python's integers and fractions, and the faults that it is to find."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from ptx import Fault, Memory, Program


def run(code: str, out: Any, *inputs: Any, threads: int, declared: str = "", functions: str = "") -> Any:
    """Threads that find their numbers in %i0, %i1, … and leave theirs in %o; `out`: its dtype."""
    memory = Memory(1 << 20)
    lines, types = [], {"i": "s", "u": "u", "f": "f"}
    addresses = [memory.allocate(threads * np.dtype(out).itemsize)]
    for x in inputs:
        addresses.append(memory.allocate(x.nbytes))
        memory.bytes[addresses[-1] - memory.start :][: x.nbytes] = np.frombuffer(x.tobytes(), np.uint8)
    kinds = [types[np.dtype(x).kind] + str(8 * np.dtype(x).itemsize) for x in (out, *(x.dtype for x in inputs))]
    for i, kind in enumerate(kinds):
        name = f"%i{i - 1}" if i else "%o"
        lines += [f".reg .b{max(16, int(kind[1:]))} {name};", f".reg .b64 %at{i};", f"ld.param.u64 %at{i}, [k_{i}];"]
        lines += [f"mad.wide.u32 %at{i}, %tid, {int(kind[1:]) // 8}, %at{i};"]
        lines += [f"ld.global.{kind} {name}, [%at{i}];"] if i else []
    given = ", ".join(f".param .u64 k_{i}" for i in range(len(kinds)))
    body = [".reg .b32 %tid;", "mov.u32 %tid, %tid.x;", *lines, declared, code, f"st.global.{kinds[0]} [%at0], %o;"]
    text = f"{functions}\n.visible .entry k({given})\n{{\n" + "\n".join(body) + "\nret;\n}\n"
    program = Program(text, memory)
    program.launch((1, 1, 1), (threads, 1, 1), [np.uint64(address) for address in addresses])
    return memory.bytes[addresses[0] - memory.start :][: threads * np.dtype(out).itemsize].view(out).copy()


def edges(dtype: str, n: int = 200) -> Any:
    rng, info = np.random.default_rng(0), np.iinfo(dtype)
    of_all_sizes = rng.integers(0, 8 * info.dtype.itemsize - 1, n).astype(dtype)
    some = rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True) >> of_all_sizes
    return np.concatenate([np.array([0, 1, 2, 7, info.max, info.min, info.max - 1], dtype), some])


def wrapped(x: int, dtype: Any) -> int:
    size = 1 << 8 * np.dtype(dtype).itemsize
    x %= size
    return x - size if np.dtype(dtype).kind == "i" and x >= size // 2 else x


def cut(x: int, y: int) -> int:
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


INTEGERS: dict[str, tuple[str, str, Callable[..., int]]] = {  # the instruction: dtypes of its operands and its result
    "add.s32 %o, %i0, %i1;": ("i4", "i4", lambda x, y: x + y),
    "sub.s64 %o, %i0, %i1;": ("i8", "i8", lambda x, y: x - y),
    "mul.lo.s64 %o, %i0, %i1;": ("i8", "i8", lambda x, y: x * y),
    "mul.wide.u32 %o, %i0, %i1;": ("u4", "u8", lambda x, y: x * y),
    "mul.wide.s32 %o, %i0, %i1;": ("i4", "i8", lambda x, y: x * y),
    "mul.hi.u32 %o, %i0, %i1;": ("u4", "u4", lambda x, y: x * y >> 32),
    "mad.lo.s32 %o, %i0, %i1, 5;": ("i4", "i4", lambda x, y: x * y + 5),
    "div.s64 %o, %i0, %i1;": ("i8", "i8", cut),
    "div.u32 %o, %i0, %i1;": ("u4", "u4", lambda x, y: x // y),
    "rem.u32 %o, %i0, %i1;": ("u4", "u4", lambda x, y: x % y),
    "min.s32 %o, %i0, %i1;": ("i4", "i4", min),
    "max.u32 %o, %i0, %i1;": ("u4", "u4", max),
    "and.b32 %o, %i0, %i1; not.b32 %o, %o;": ("u4", "u4", lambda x, y: ~(x & y)),
    "xor.b32 %o, %i0, %i1; or.b32 %o, %o, 3;": ("u4", "u4", lambda x, y: (x ^ y) | 3),
    "and.b32 %i1, %i1, 63; shl.b32 %o, %i0, %i1;": ("u4", "u4", lambda x, y: x << (y & 63)),
    "and.b32 %i1, %i1, 63; shr.u32 %o, %i0, %i1;": ("u4", "u4", lambda x, y: x >> (y & 63)),
    "and.b32 %i1, %i1, 63; shr.s32 %o, %i0, %i1;": ("i4", "i4", lambda x, y: x >> (y & 63)),
    "cvt.u32.u64 %low, %i1; and.b32 %low, %low, 127; shl.b64 %o, %i0, %low;": ("u8", "u8", lambda x, y: x << (y & 127)),
    "mad.lo.cc.u32 %low, %i0, %i1, -1; madc.hi.u32 %o, %i1, %i1, 0;": (
        "u4", "u4", lambda x, y: (y * y >> 32) + ((x * y & 0xFFFFFFFF) + 0xFFFFFFFF >> 32),
    ),
    "neg.s32 %o, %i0; abs.s32 %o, %o;": ("i4", "i4", lambda x, y: abs(wrapped(-x, "i4"))),
    "bfi.b64 %o, %i0, %i1, 12, 20;": ("u8", "u8", lambda x, y: (y & ~(0xFFFFF << 12)) | ((x & 0xFFFFF) << 12)),
    "clz.b64 %o, %i0;": ("u8", "u4", lambda x, y: 64 - x.bit_length()),
    "cvt.s64.s32 %o, %i0;": ("i4", "i8", lambda x, y: x),
    "cvt.u64.u32 %o, %i0;": ("u4", "u8", lambda x, y: x),
    "cvt.u32.u64 %o, %i0;": ("u8", "u4", lambda x, y: x),
    "mov.b64 {%low, %high}, %i0; mov.b64 %o, {%high, %low};": ("u8", "u8", lambda x, y: x >> 32 | x << 32),
    "add.cc.u32 %low, %i0, %i1; addc.u32 %o, 0, 0;": ("u4", "u4", lambda x, y: x + y >> 32),
    "sub.cc.u32 %low, %i0, %i1; subc.u32 %o, 7, 0;": ("u4", "u4", lambda x, y: 7 - (x < y)),
    "setp.lt.s32 %p, %i0, %i1; selp.u32 %o, 1, 0, %p;": ("i4", "u4", lambda x, y: x < y),
    "setp.lt.u32 %p, %i0, %i1; selp.u32 %o, 1, 0, %p;": ("u4", "u4", lambda x, y: x < y),
}  # fmt: skip


@pytest.mark.parametrize("code", INTEGERS)
def test_integers(code: str) -> None:
    given, made, formula = INTEGERS[code]
    x, y = edges(given), np.random.default_rng(1).permutation(edges(given))
    y[y == 0] = 3
    declared = ".reg .b32 %low; .reg .b32 %high; .reg .pred %p;"
    found = run(code, made, x, y, threads=x.size, declared=declared)
    for a, b, got in zip(x.tolist(), y.tolist(), found.tolist(), strict=True):
        assert got == wrapped(int(formula(a, b)), made), (a, b)


FLOATS = np.array([0, -0.0, 1, -1, 1.5, 2.5, -2.5, 1e-30, 1e20, 3e9, -3e9, np.inf, -np.inf, np.nan, 0.1, 7e18])


def pairs(dtype: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(2)
    more = rng.standard_normal(300) * 10.0 ** rng.integers(-6, 6, 300)
    x = np.concatenate([np.repeat(FLOATS, FLOATS.size), more]).astype(dtype)
    return x, np.concatenate([np.tile(FLOATS, FLOATS.size), rng.permutation(more)]).astype(dtype)


@pytest.mark.parametrize(("how", "formula"), [
    ("eq", lambda x, y: x == y), ("ne", lambda x, y: x < y or x > y), ("lt", lambda x, y: x < y),
    ("ge", lambda x, y: x >= y), ("leu", lambda x, y: not x > y), ("gtu", lambda x, y: not x <= y),
    ("equ", lambda x, y: not (x < y or x > y)), ("neu", lambda x, y: x != y), ("num", lambda x, y: x == x and y == y),
    ("nan", lambda x, y: x != x or y != y),
])  # fmt: skip
@pytest.mark.parametrize("size", [32, 64])
def test_comparisons_know_nan(how: str, formula: Any, size: int) -> None:
    x, y = pairs(f"f{size // 8}")
    code = f"setp.{how}.f{size} %p, %i0, %i1; selp.u32 %o, 1, 0, %p;"
    found = run(code, "u4", x, y, threads=x.size, declared=".reg .pred %p;")
    assert found.tolist() == [int(formula(a, b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]


@pytest.mark.parametrize("size", [32, 64])
def test_a_product_and_a_sum_are_rounded_once(size: int) -> None:
    """As a fraction is; what is left of a product after its own rounding shows the difference."""
    dtype = np.dtype(f"f{size // 8}")
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal(400).astype(dtype) for _ in range(3))
    c[:200] = -(a * b)[:200]
    found = run(f"fma.rn.f{size} %o, %i0, %i1, %i2;", dtype, a, b, c, threads=400)
    for x, y, z, got in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        unit = Fraction(float(np.spacing(np.abs(got) or dtype.type(1e-30))))
        assert abs(Fraction(float(got)) - exact) <= unit * Fraction(501, 1000)


@pytest.mark.parametrize(("code", "formula"), [
    ("fma.rm.f32 %o, %i0, %i1, %i2;", lambda x, y, z: x * y + z), ("add.rz.f32 %o, %i0, %i2;", lambda x, y, z: x + z),
])  # fmt: skip
def test_rounding_in_a_direction(code: str, formula: Any) -> None:
    rng = np.random.default_rng(4)
    given = [rng.standard_normal(400).astype("f4") for _ in range(3)]
    for *numbers, got in zip(*given, run(code, "f4", *given, threads=400), strict=True):
        exact = formula(*(Fraction(float(x)) for x in numbers))
        down = "rm" in code or exact > 0
        beyond = Fraction(float(np.nextafter(got, np.float32(np.inf if down else -np.inf))))
        assert Fraction(float(got)) <= exact < beyond if down else Fraction(float(got)) >= exact > beyond


def test_an_approximate_inverse_has_half_of_the_bits() -> None:
    x = pairs("f8")[0]
    found = run("rcp.approx.ftz.f64 %o, %i0;", "f8", x, threads=x.size)
    numbers = np.isfinite(x) & (x != 0)
    np.testing.assert_allclose(found[numbers] * x[numbers], 1, rtol=2e-6)
    assert not (found[numbers].view("u8") & 0xFFFFFFFF).any()


def whole(kind: str) -> Callable[[float], int]:
    """A float as an integer: of those there are, the nearest to what the rounding says; 0 for NaN."""
    round_, dtype = {"rni": lambda x: round(x), "rzi": math.trunc}[kind[:3]], kind[4:]
    info = np.iinfo(dtype)

    def formula(x: float) -> int:
        if math.isnan(x):
            return 0
        return max(info.min, min(info.max, info.max if x == math.inf else info.min if x == -math.inf else round_(x)))

    return formula


@pytest.mark.parametrize(("code", "given", "made", "formula"), [
    ("cvt.rni.s32.f32", "f4", "i4", whole("rni i4")), ("cvt.rni.s32.f64", "f8", "i4", whole("rni i4")),
    ("cvt.rzi.s64.f32", "f4", "i8", whole("rzi i8")), ("cvt.rzi.s64.f64", "f8", "i8", whole("rzi i8")),
    ("cvt.sat.f32.f32", "f4", "f4", lambda x: 0.0 if x != x else min(max(x, 0.0), 1.0)),
    ("cvt.rmi.f32.f32", "f4", "f4", lambda x: np.floor(x)), ("cvt.rn.f32.f64", "f8", "f4", np.float32),
    ("cvt.f64.f32", "f4", "f8", float), ("ex2.approx.ftz.f32", "f4", "f4", lambda x: np.float32(np.exp2(x))),
    ("rcp.rn.f64", "f8", "f8", lambda x: np.float64(1) / x),
    ("sqrt.rn.f32", "f4", "f4", lambda x: np.sqrt(np.float32(x))),
])  # fmt: skip
def test_conversions(code: str, given: str, made: str, formula: Any) -> None:
    x = pairs(given)[0]
    with np.errstate(all="ignore"):
        expected = np.array([formula(a) for a in x.tolist()], made)
    np.testing.assert_array_equal(run(f"{code} %o, %i0;", made, x, threads=x.size), expected)


def test_threads_part_and_meet_again() -> None:
    """A loop of as many turns as the number of the thread; then each asks its neighbour, who must be there."""
    code = """
    mov.u32 %n, 0; setp.eq.s32 %p, %tid, 0; @%p bra $done;
    $loop: add.s32 %n, %n, 1; setp.lt.u32 %p, %n, %tid; @%p bra $loop;
    $done: mov.u32 %one, 1; shfl.sync.bfly.b32 %o|%p, %n, %one, 31, -1;
    """
    found = run(code, "u4", threads=64, declared=".reg .b32 %n; .reg .b32 %one; .reg .pred %p;")
    assert found.tolist() == [i ^ 1 for i in range(64)]


SHARED = ".shared .align 4 .b8 table[256];\n"
BACKWARDS = """
    mov.u64 %base, table; mad.wide.u32 %place, %tid, 4, %base; st.shared.u32 [%place], %tid; {}
    sub.s32 %n, 63, %tid; mad.wide.u32 %place, %n, 4, %base; ld.shared.u32 %o, [%place];
"""
REGISTERS = ".reg .b64 %base; .reg .b64 %place; .reg .b32 %n; .reg .pred %p;"


def test_shared_memory() -> None:
    found = run(BACKWARDS.format("bar.sync 0;"), "u4", threads=64, declared=REGISTERS, functions=SHARED)
    assert found.tolist() == list(range(63, -1, -1))


AGAIN = BACKWARDS.format("bar.sync 0;") + "st.shared.u32 [%place], %o;"
HALF = "setp.lt.u32 %p, %tid, 32; @%p bra $over; bar.sync 0; $over: mov.u32 %o, %tid;"
ONLY_EVEN = "and.b32 %n, %tid, 1; setp.eq.s32 %p, %n, 1; @%p bra $over; shfl.sync.bfly.b32 %o|%p, %n, 1, 31, -1; $over:"
FAULTS = {
    "no barrier between a write and a read": (BACKWARDS.format(""), "without a barrier in between"),
    "nor between a read and a write": (AGAIN.replace("[%place], %o", "[%base], %o"), "two threads write to one place"),
    "one reads what another writes": (
        f"{BACKWARDS.format('bar.sync 0;')} mad.wide.u32 %place, %tid, 4, %base; st.shared.u32 [%place], %o;",
        "without a barrier in between",
    ),
    "some threads pass a barrier by": (HALF, "a barrier that not all threads of a block come to"),
    "beyond shared memory": (BACKWARDS.format("bar.sync 0;").replace("63", "64"), "beyond shared"),
    "global memory that is nobody's": ("add.s64 %at0, %at0, 4096; ld.global.u32 %o, [%at0];", "not allocated"),
    "just behind some": ("ld.global.u32 %o, [%at0+512];", "not allocated"),
    "an address before it": ("ld.global.u32 %o, [%at0+-600];", "not allocated"),
    "an odd address": ("ld.global.u32 %o, [%at0+2];", "4 bytes at an address that is not a multiple"),
    "four at once, misaligned": ("ld.global.v4.u32 {%n, %n, %n, %o}, [%at0+4];", "16 bytes at an address"),
    "constant to one thread, written by another": (
        "xor.b32 %n, %tid, 1; ld.global.nc.u32 %o, [%at0]; "
        "mad.wide.u32 %place, %n, 4, %at0; st.global.u32 [%place], %n;",
        "read as if nobody wrote to it",
    ),
    "constant, and written before": ("st.global.u32 [%at0], %tid; ld.global.nc.u32 %o, [%at0];", "as if nobody wrote"),
    "a lane that is not there": (ONLY_EVEN, "is asked for a number, and is not there"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    code, words = FAULTS[name]
    with pytest.raises(Fault, match=f"kernel k: .*{re.escape(words)}"):
        run(code, "u4", np.zeros(64, "u4"), threads=64, declared=REGISTERS, functions=SHARED)


def test_copies_stay_in_what_is_allocated() -> None:
    memory = Memory(1 << 16)
    address = memory.allocate(1000)
    memory.holds(address, 1000)
    memory.holds(address, 0)
    for first, size in ((address, 1025), (address - 1, 1), (address + 4096, 1), (memory.start + (1 << 16), 1)):
        with pytest.raises(Fault, match="not allocated"):
            memory.holds(first, size)


def test_memory_that_nobody_has_written_is_nan() -> None:
    code = "mov.u64 %base, table; ld.shared.f32 %o, [%base+8];"
    assert np.isnan(run(code, "f4", threads=2, declared=REGISTERS, functions=SHARED)).all()
    assert np.isnan(run("ld.global.f64 %o, [%at0];", "f8", threads=2)).all()


def test_a_function_and_its_table() -> None:
    functions = """
.global .align 8 .b8 numbers[16] = {0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 0, 64};
.func (.param .b64 func_retval0) add_from_table(
.param .b64 add_from_table_param_0
)
{
.reg .b64 %rd<3>;
ld.param.f64 %rd0, [add_from_table_param_0];
mov.u64 %rd1, numbers;
ld.global.f64 %rd2, [%rd1+8];
add.f64 %rd2, %rd2, %rd0;
st.param.f64 [func_retval0+0], %rd2;
ret;
}
"""
    code = "st.param.f64 [param0+0], %i0; call.uni (retval0), add_from_table, (param0); ld.param.f64 %o, [retval0+0];"
    x = np.array([0.5, -2.0, 7.0])
    assert run(code, "f8", x, threads=3, functions=functions).tolist() == [2.5, 0.0, 9.0]


def test_blocks_of_threads_and_their_places() -> None:
    """A grid of 3×2 blocks of 4×2×2 threads: each writes its own number."""
    memory = Memory(1 << 16)
    address = memory.allocate(96 * 4)
    lines = [f".reg .b32 %{name};" for name in ("x", "y", "z", "bx", "by", "n", "m")] + [".reg .b64 %at;"]
    places = {"x": "tid.x", "y": "tid.y", "z": "tid.z", "bx": "ctaid.x", "by": "ctaid.y"}
    lines += [f"mov.u32 %{name}, %{place};" for name, place in places.items()]
    lines += ["mov.u32 %n, %ntid.y;", "mad.lo.s32 %z, %z, %n, %y;"]
    lines += ["mov.u32 %n, %ntid.x;", "mad.lo.s32 %x, %z, %n, %x;"]
    lines += ["mov.u32 %m, %nctaid.x;", "mad.lo.s32 %bx, %by, %m, %bx;", "mad.lo.s32 %n, %bx, 16, %x;"]
    lines += ["ld.param.u64 %at, [k_0];", "mad.wide.u32 %at, %n, 4, %at;", "st.global.u32 [%at], %n;", "ret;"]
    program = Program(".visible .entry k(.param .u64 k_0)\n{\n" + "\n".join(lines) + "\n}\n", memory)
    program.launch((3, 2, 1), (4, 2, 2), [np.uint64(address)])
    assert memory.bytes[address - memory.start :][: 96 * 4].view("u4").tolist() == list(range(96))


@pytest.mark.parametrize("code", ["atom.add.u32 %o, [%at0], 1;", "@%p add.s32 %o, %o, 1;", "cvt.rp.f32.f64 %o, %at0;"])
def test_what_is_not_known_is_said(code: str) -> None:
    with pytest.raises(NotImplementedError, match="k: "):
        run(code, "u4", threads=1, declared=REGISTERS)
