"""Runs PTX, which kernels are compiled to, on NumPy: all threads of a launch at once, a lane of arrays for each.

Registers are arrays of bits, an instruction is a line of Python, a basic block a piece of code. Of all blocks that
threads are at, the first goes on, with all threads that are there: who took another way meets the others where the code
does. Global memory is one arena. An access beside what is allocated, or misaligned, is an error, and so is a number in
shared memory that another thread has written, or has yet to read, since the last barrier; so is memory that a launch
both writes and reads as constant. What nobody has written is NaN. Only what the compiler makes of our kernels is known
here: any other instruction is an error, too.

Source: Parallel Thread Execution ISA, https://docs.nvidia.com/cuda/parallel-thread-execution/.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

Array = Any
Lanes = Any  # which of the threads: a slice of all, or their numbers
_AT_ONCE = 1 << 15  # threads, if there are several blocks of them
_DTYPES = {
    "u8": "u1", "b8": "u1", "u16": "u2", "s16": "i2", "b16": "u2", "f16": "f2", "u32": "u4", "s32": "i4", "b32": "u4",
    "f32": "f4", "u64": "u8", "s64": "i8", "b64": "u8", "f64": "f8", "pred": "?",
}  # fmt: skip


class Fault(Exception):
    """What a GPU would not have forgiven, or what `compute-sanitizer` would have found."""


# Memory ---------------------------------------------------------------------------------------------------------------


class Memory:
    """The device's: an arena in which allocations lie apart."""

    GRAIN = 512  # bytes; every allocation begins at a multiple of them

    def __init__(self, size: int = 1 << 30):
        room = np.zeros(size + self.GRAIN, np.uint8)  # the system makes pages of it when they are touched
        self.bytes = room[-room.ctypes.data % self.GRAIN :][:size]
        self.start = self.bytes.ctypes.data
        self._taken = np.zeros(size // self.GRAIN, bool)
        self._next = self._launch = 0
        self._written, self._constant = (np.zeros(size // 4, np.uint32) for _ in range(2))  # in which launch, last

    def allocate(self, size: int) -> int:
        """The address of so many bytes, all of whose bits are set: NaN, where the dtype has it."""
        first, count = self._next, -(-max(size, 1) // self.GRAIN)
        self._next += count + 1
        if self._next > self._taken.size:
            raise MemoryError(f"the emulated device has {self.bytes.size:,} bytes")
        self._taken[first : first + count] = True
        self.bytes[first * self.GRAIN : (first + count) * self.GRAIN] = 255
        return int(self.start + first * self.GRAIN)

    def at(self, address: Array, width: int, count: int, lanes: Lanes, writes: bool) -> tuple[Array, Array]:
        """All memory as numbers of a width, and the places of the first of so many there."""
        place = _aligned(address, width * count) - self.start
        self._look(place // self.GRAIN)
        if writes:
            self._keep_apart(place, width * count, self._written, self._constant)
        return self.bytes.view(f"u{width}"), place // width

    def constant(self, address: Array, width: int, count: int, lanes: Lanes, writes: bool) -> tuple[Array, Array]:
        """The same, of memory that the launch must not write to, before or after."""
        view, place = self.at(address, width, count, lanes, False)
        self._keep_apart(place * width, width * count, self._constant, self._written)
        return view, place

    def _keep_apart(self, place: Array, size: int, noted: Array, other: Array) -> None:
        for word in range(0, size, 4):
            at = (place + word) // 4
            noted[at] = self._launch
            if (other[at] == self._launch).any():
                raise Fault("memory that is read as if nobody wrote to it, and written")

    def launched(self) -> None:
        """A kernel begins: what was written before is now constant."""
        self._launch += 1

    def holds(self, address: int, size: int) -> None:
        """Fault unless so many bytes are allocated there."""
        first, last = address - self.start, address + size - 1 - self.start
        self._look(np.arange(first // self.GRAIN, last // self.GRAIN + 1))

    def _look(self, grain: Array) -> None:
        if not ((grain >= 0) & (grain < self._taken.size)).all() or not self._taken[grain].all():
            raise Fault("global memory that is not allocated")


class _Own:
    """Shared memory, where the owners are blocks of threads; local memory, where each thread is one."""

    def __init__(self, size: int, owner: Array, shared: bool):
        self._size = -(-size // 16) * 16
        self._first, self._shared = owner * self._size, shared
        self._bytes = np.full((int(owner.max()) + 1) * self._size, 255, np.uint8)
        self._written, self._read = (np.full(self._bytes.size * shared, -1) for _ in range(2))

    def barrier(self) -> None:
        self._written[:] = self._read[:] = -1

    def at(self, address: Array, width: int, count: int, lanes: Lanes, writes: bool) -> tuple[Array, Array]:
        place = _aligned(address, width * count)
        if not ((place >= 0) & (place + width * count <= self._size)).all():
            raise Fault("an access beyond shared, or local, memory")
        place = self._first[lanes] + place
        if self._shared:
            thread = np.arange(self._first.size)[lanes]
            for offset in range(0, width * count, width):
                self._race(place + offset, thread, writes)
        return self._bytes.view(f"u{width}"), place // width

    def _race(self, place: Array, thread: Array, writes: bool) -> None:
        """Who was at the first byte of a number since the last barrier; −1: nobody, −2: several."""
        noted = self._written if writes else self._read
        before = noted[place]
        noted[place] = thread
        alone = noted[place] == thread
        if not alone.all() and writes:
            raise Fault("two threads write to one place in shared memory at once")
        for seen in (before, self._read[place]) if writes else (self._written[place],):
            if ((seen != -1) & (seen != thread)).any():
                raise Fault("a thread is at a place in shared memory that another is at without a barrier in between")
        noted[place] = np.where(alone & ((before == -1) | (before == thread)), thread, -2)


def _aligned(address: Array, size: int) -> Array:
    place = np.asarray(address).astype(np.int64)
    if (place % size).any():
        raise Fault(f"{size} bytes at an address that is not a multiple of them")
    return place


# Arithmetic that NumPy has not ----------------------------------------------------------------------------------------


def _fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c, rounded once but for rare ties: in float64, from the product and its rounding error (Dekker, 1971)."""
    if a.dtype == np.float32:
        return (a.astype("f8") * b + c).astype("f4")

    def halves(x: Array) -> tuple[Array, Array]:
        high = x * 134217729.0
        high = high - (high - x)
        return high, x - high

    product = a * b
    total = product + c
    (ah, al), (bh, bl) = halves(a), halves(b)
    lost = ((ah * bh - product) + ah * bl + al * bh) + al * bl
    part = total - product
    exact = total + ((product - (total - part)) + (c - part) + lost)
    return np.where(np.isfinite(exact), exact, total)


def _rounded(x: Array, how: str) -> Array:
    """A float64 as the float32 below it ("rm"), or next to it in the direction of 0 ("rz")."""
    near = x.astype("f4")
    past = np.abs(near) > np.abs(x) if how == "rz" else near > x
    return np.where(past, np.nextafter(near, np.float32(0 if how == "rz" else -np.inf)), near)


def _integer(x: Array, to: str) -> Array:
    """Of a whole float: at most the largest there is, 0 for NaN."""
    least, most = float(np.iinfo(to).min), float(np.iinfo(to).max)
    inside = np.where((x > least) & (x < most), x, 0).astype(to)
    return np.where(x >= most, np.iinfo(to).max, np.where(x <= least, np.iinfo(to).min, inside)).astype(to)


def _quotient(a: Array, b: Array) -> Array:
    """Of integers: cut off, where Python's is the floor."""
    floor = a // b
    return floor + ((floor * b != a) & ((a < 0) != (b < 0)))


def _inserted(a: Array, b: Array, at: Array, count: Array) -> Array:
    at, count = (n.astype(b.dtype) for n in (at, count))
    mask = ((np.ones_like(b) << count) - b.dtype.type(1)) << at
    return (b & ~mask) | (a << at & mask)


def _leading_zeros(x: Array) -> Array:
    return sum((x >> x.dtype.type(bit) == 0).astype("u4") for bit in range(8 * x.dtype.itemsize))


def _approximate_inverse(x: Array) -> Array:
    """The GPU's has half of the bits of a float64."""
    return 1 / x if x.dtype == np.float32 else ((1 / x).view("u8") & np.uint64(0xFFFFFFFF << 32)).view("f8")


_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_WHOLE = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor"}
# By the instruction, and its first letters after it where they matter; {0}, {1}, … are the operands, of its type.
_FORMULAS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "mul.lo": "{0} * {1}", "mad.lo": "{0} * {1} + {2}",
    "add.rn": "{0} + {1}", "mul.rn": "{0} * {1}", "fma.rn": "_fma({0}, {1}, {2})",
    "add.rz": "_rounded({0}.astype('f8') + {1}, 'rz')", "fma.rm": "_rounded({0}.astype('f8') * {1} + {2}, 'rm')",
    "div": "_quotient({0}, {1})", "div.rn": "{0} / {1}", "rem": "np.fmod({0}, {1})", "rcp.rn": "1 / {0}",
    "rcp.approx": "_approximate_inverse({0})", "ex2.approx": "np.exp2({0}.astype('f8')).astype('f4')",
    "sqrt.rn": "np.sqrt({0})", "neg": "-{0}", "abs": "np.abs({0})", "copysign": "np.copysign({1}, {0})",
    "min": "np.fmin({0}, {1})", "max": "np.fmax({0}, {1})", "cvta.to.global": "{0}", "cvta.to.local": "{0}",
    "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}",
}  # fmt: skip


#: Of what a GPU does not do in one instruction.
_COSTS = {"div.u32": 20, "rem.u32": 20, "div.u64": 80, "rem.u64": 80, "div.s64": 80, "rem.s64": 80, "div.rn.f32": 10}


# From PTX to Python ---------------------------------------------------------------------------------------------------


class Function:
    """One of PTX: its basic blocks as code that works on the registers of all threads in `s`."""

    def __init__(self, name: str, parameters: str, body: str, symbols: dict[str, int]):
        self.name, self._symbols = name, dict(symbols)
        self.parameters = re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z]+)(\d+)\s+([\w$]+)", parameters)
        self.registers: dict[str, str] = {}  # the dtype of the bits of each
        self.constants: dict[str, Any] = {}
        self.local = 0  # bytes
        self.blocks: list[Any] = []
        body = re.sub(r"^\s*[{}]\s*$", "", re.sub(r"//.*", "", body), flags=re.M)  # scopes: no name is used twice
        statements = [" ".join(text.split()) for text in re.findall(r"[^;:]+[;:]", body)]
        statements = [statement for statement in statements if not self._declared(statement)]
        labels: dict[str, int] = {}
        lines: list[list[str]] = [[]]  # of each block; one begins at a label, and behind what may end a turn
        self.costs = [0]  # of each block, in instructions of a GPU
        jumps = []
        for statement in statements:
            if statement.endswith(":"):
                if lines[-1]:
                    lines.append([])
                    self.costs.append(0)
                labels[statement[:-1]] = len(lines) - 1
                continue
            found = re.match(r"(?:@(!?)(\S+) )?(\S+) ?(.*);", statement)
            assert found, statement
            inverse, guard, opcode, rest = found.groups()
            self.costs[-1] += _COSTS.get(opcode, 1)
            if opcode in ("bra", "bra.uni", "ret", "bar.sync"):
                condition = f"{'~' if inverse else ''}{self._register(guard)}[s]" if guard else ""
                jumps.append((len(lines) - 1, opcode, rest, condition))
                lines.append([])
                self.costs.append(0)
            elif guard:
                raise NotImplementedError(f"{name}: {statement}")
            else:
                lines[-1].append(self._line(opcode, _operands(rest)))
        for block, opcode, target, condition in jumps:
            if opcode == "bar.sync":
                lines[block].append("waiting[s] = True")
            else:
                to = str(labels[target]) if opcode != "ret" else "END"
                lines[block].append(f"at[s] = np.where({condition}, {to}, at[s])" if condition else f"at[s] = {to}")
        for block in lines:
            self.blocks.append(compile("\n".join(block), f"<{name[:60]}, block {len(self.blocks)}>", "exec"))

    def _declared(self, statement: str) -> bool:
        """Is it a declaration? Then its registers, or its local memory, are known from now on."""
        if found := re.match(r"\.reg \.([a-z0-9]+) (.*);", statement):
            dtype = re.sub("[if]", "u", _DTYPES[found[1]])
            for name in found[2].replace(" ", "").split(","):
                prefix, _, count = name.rstrip(">").partition("<")
                names = [f"{prefix}{i}" for i in range(int(count))] if count else [prefix]
                self.registers |= dict.fromkeys(names, dtype)
        elif found := re.match(r"\.local \.align \d+ \.b8 (\S+)\[(\d+)\];", statement):
            self._symbols[found[1]] = self.local
            self.local += -(-int(found[2]) // 16) * 16
        return statement.startswith(".")

    @staticmethod
    def _register(name: str) -> str:
        return name.replace("%", "r_") if name.startswith("%") else f"free_{name}"

    def _read(self, operand: str, kind: str) -> str:
        """An operand as numbers of a type."""
        dtype = _DTYPES[kind]
        if operand in self.registers:
            bits, value = self.registers[operand], f"{self._register(operand)}[s]"
            if int(bits[1:] or 0) > int(dtype[1:] or 0):
                bits, value = f"u{dtype[1]}", f"{value}.astype('u{dtype[1]}')"
            return value if bits == dtype else f"{value}.view('{dtype}')"
        if operand.startswith("%"):
            return f"{operand[1:].replace('.', '_')}[s]"
        if operand in self._symbols:
            number = self._symbols[operand]
        else:
            number = int(re.sub("^0[fd]", "0x", operand), 0)
        if dtype == "?":
            return f"np.bool_({bool(number)})"
        size = int(dtype[1])
        number &= (1 << 8 * size) - 1
        name = f"k_{number:x}_{dtype}"
        self.constants[name] = np.array(number, f"u{size}").view(dtype)[()]
        return name

    def _write(self, register: str, value: str, kind: str) -> str:
        bits = "" if kind == "pred" else f".view('u{_DTYPES[kind][1]}')"
        return f"{self._register(register)}[s] = ({value}){bits}"

    def _line(self, opcode: str, operands: list[str]) -> str:
        """The Python of one instruction."""
        head, *parts = opcode.split(".")
        kind = parts[-1] if parts else ""
        special = getattr(self, f"_{head}", None)
        if special:
            return str(special(parts, *operands))
        if "cc" in parts or head in ("addc", "subc", "madc"):
            return self._carried(head, parts, *operands)
        if parts[0] in ("wide", "hi"):
            return self._doubled(head, parts, *operands)
        words = [part for part in parts[:-1] if part not in ("ftz",)]
        formula = _FORMULAS.get(".".join([head, *words])) or _FORMULAS.get(".".join([head, *words[:1]]))
        if formula is None:
            raise NotImplementedError(f"{self.name}: {opcode}")
        return self._write(operands[0], formula.format(*(self._read(x, kind) for x in operands[1:])), kind)

    def _mov(self, parts: list[str], to: str, given: str) -> str:
        kind = parts[0]
        if to.startswith("{"):  # the two halves of 64 bits
            whole = self._read(given, "u64")
            halves = f"({whole}).astype('u4')", f"({whole} >> np.uint64(32)).astype('u4')"
            return "; ".join(self._write(x, half, "b32") for x, half in zip(_listed(to), halves, strict=True))
        if given.startswith("{"):
            low, high = (f"{self._read(x, 'u32')}.astype('u8')" for x in _listed(given))
            return self._write(to, f"{low} | ({high} << np.uint64(32))", kind)
        return self._write(to, self._read(given, kind), kind)

    def _shl(self, parts: list[str], to: str, x: str, n: str) -> str:
        kind = parts[0]
        sign, by = "<<" if kind[0] == "b" else ">>", f"{self._read(n, 'u32')}.astype('{_DTYPES[kind]}')"
        return self._write(to, f"{self._read(x, kind)} {sign} {by}", kind)  # by any n: NumPy, too, shifts all bits out

    _shr = _shl  # which has bits shifted to the left, and numbers to the right

    def _bfi(self, parts: list[str], to: str, a: str, b: str, at: str, count: str) -> str:
        kind = parts[0]
        numbers = (self._read(a, kind), self._read(b, kind), self._read(at, "u32"), self._read(count, "u32"))
        return self._write(to, f"_inserted({', '.join(numbers)})", kind)

    def _clz(self, parts: list[str], to: str, x: str) -> str:
        return self._write(to, f"_leading_zeros({self._read(x, parts[0])})", "u32")

    def _doubled(self, head: str, parts: list[str], to: str, a: str, b: str, *c: str) -> str:
        """A product in twice the bits, or the upper half of it."""
        kind = parts[1]
        size = int(kind[1:])
        double = f"{kind[0]}{2 * size}"
        value = f"{self._read(a, kind)}.astype('{_DTYPES[double]}') * {self._read(b, kind)}"
        if parts[0] == "hi":
            value, double = f"(({value}) >> {size}).astype('{_DTYPES[kind]}')", kind
        return self._write(to, " + ".join([value, *(self._read(x, double) for x in c)]), double)

    def _carried(self, head: str, parts: list[str], to: str, *operands: str) -> str:
        """Of 32 bits, whose sum may have one more: the carry."""
        assert parts[-1] == "u32", parts
        *factors, last = (f"{self._read(x, 'u32')}.astype('i8')" for x in operands)
        if head.startswith("mad"):
            product = f"{self._read(operands[0], 'u32')}.astype('u8') * {self._read(operands[1], 'u32')}"
            half = ">> np.uint64(32)" if "hi" in parts else "& np.uint64(0xFFFFFFFF)"
            factors = [f"(({product}) {half}).astype('i8')"]
        sign = "-" if head.startswith("sub") else "+"
        carry = f" {sign} carry[s]" if head.endswith("c") else ""
        line = f"total = {factors[0]} {sign} {last}{carry}; {self._register(to)}[s] = total & 0xFFFFFFFF"
        return f"{line}; carry[s] = (total >> 32) & 1" if "cc" in parts else line

    def _setp(self, parts: list[str], to: str, x: str, y: str) -> str:
        how, kind = parts
        a, b = self._read(x, kind), self._read(y, kind)
        unordered = f"(np.isnan({a}) | np.isnan({b}))"
        if how in ("nan", "num"):
            return self._write(to, unordered if how == "nan" else f"~{unordered}", "pred")
        if how == "ne" and kind[0] == "f":  # false of NaN, unlike Python's
            return self._write(to, f"({a} != {b}) & ~{unordered}", "pred")
        if how not in _COMPARED:  # its name ends in u: true of NaN
            return self._write(to, f"({a} {_COMPARED[how[:-1]]} {b}) | {unordered}", "pred")
        return self._write(to, f"{a} {_COMPARED[how]} {b}", "pred")

    def _selp(self, parts: list[str], to: str, a: str, b: str, p: str) -> str:
        kind = parts[0]
        value = f"np.where({self._read(p, 'pred')}, {self._read(a, kind)}, {self._read(b, kind)})"
        return self._write(to, value, kind)

    def _cvt(self, parts: list[str], to: str, x: str) -> str:
        *how, kind, given = parts
        value, dtype = self._read(x, given), _DTYPES[kind]
        for word in how:
            if word in _WHOLE:
                value = f"{_WHOLE[word]}({value})"
            elif word not in ("rn", "sat"):
                raise NotImplementedError(f"{self.name}: cvt.{'.'.join(parts)}")
        value = f"_integer({value}, '{dtype}')" if given[0] == "f" != kind[0] else f"{value}.astype('{dtype}')"
        if "sat" in how:  # NaN becomes 0
            value = f"np.fmin(np.fmax({value}, {self._read('0', kind)}), {value}.dtype.type(1))"
        return self._write(to, value, kind)

    def _shfl(self, parts: list[str], to: str, x: str, mask: str, *_: str) -> str:
        assert parts == ["sync", "bfly", "b32"], parts
        return self._write(to.partition("|")[0], f"exchange({self._register(x)}, {self._read(mask, 'u32')}, s)", "b32")

    def _call(self, parts: list[str], back: str, name: str, given: str) -> str:
        return f"P.update(call({name!r}, P, {_listed(given)}, {_listed(back)}, s))"

    def _ld(self, parts: list[str], to: str, place: str) -> str:
        base, offset, width = self._place(parts, place)
        if parts[0] == "param":
            return self._write(to, f"P[{base!r}, {offset}]", f"b{8 * width}")
        return "; ".join([
            f"view, place = {self._at(parts, base, offset, width, len(_listed(to)))}, False)",
            *(self._write(x, f"view[place + {i}]", f"b{8 * width}") for i, x in enumerate(_listed(to))),
        ])  # fmt: skip

    def _st(self, parts: list[str], place: str, given: str) -> str:
        base, offset, width = self._place(parts, place)
        values = [self._read(x, f"b{8 * width}") for x in _listed(given)]
        if parts[0] == "param":
            return f"P[{base!r}, {offset}] = {values[0]} + np.zeros_like(thread[s], 'u{width}')"
        return "; ".join([
            f"view, place = {self._at(parts, base, offset, width, len(values))}, True)",
            *(f"view[place + {i}] = {value}" for i, value in enumerate(values)),
        ])  # fmt: skip

    def _place(self, parts: list[str], place: str) -> tuple[str, int, int]:
        found = re.match(r"\[([^+]+)\+?(-?\d+)?\]", place)
        assert found, place
        return found[1], int(found[2] or 0), int(_DTYPES[parts[-1]][1])

    def _at(self, parts: list[str], base: str, offset: int, width: int, count: int) -> str:
        if parts[0] not in ("global", "shared", "local"):
            raise NotImplementedError(f"{self.name}: an access to {'.'.join(parts)}")
        address = f"{self._read(base, 'u64')} + np.uint64({offset % 2**64})"
        how = "constant" if "nc" in parts else "at"
        return f"{parts[0]}_memory.{how}({address}, {width}, {count}, s"


def _operands(text: str) -> list[str]:
    return [x.strip() for x in re.findall(r"\s*(\{[^}]*\}|\[[^]]*\]|\([^)]*\)|[^,\s][^,]*)", text)]


def _listed(operand: str) -> list[str]:
    """{a, b}, (a, b) or a."""
    return re.findall(r"[^{}(), ]+", operand)


# Execution ------------------------------------------------------------------------------------------------------------


class Program:
    """A kernel, with the functions that it calls and the tables that it looks up."""

    def __init__(self, text: str, memory: Memory):
        self._memory, self._shared = memory, 0
        symbols = {}
        for align, name, size in re.findall(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text):
            symbols[name] = -(-self._shared // int(align)) * int(align)
            self._shared = symbols[name] + int(size)
        for name, given in re.findall(r"\.global\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\d+\]\s*=\s*\{([^}]*)\}", text):
            table = np.array([int(x) for x in given.split(",")], np.uint8)
            symbols[name] = memory.allocate(table.size)
            memory.bytes[symbols[name] - memory.start :][: table.size] = table
        found = re.findall(
            r"\.(entry|func)\s*(?:\([^)]*\))?\s*([\w$]+)\s*\(([^)]*)\)[^{;]*?\n\{\n(.*?)\n\}\n", f"{text}\n", re.S
        )
        self._functions = {name: Function(name, parameters, body, symbols) for _, name, parameters, body in found}
        (self._entry,) = (self._functions[name] for kind, name, *_ in found if kind == "entry")
        self.parameters = [int(bits) // 8 for _, bits, _ in self._entry.parameters]  # the bytes of each

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], given: list[Any]) -> int:
        """`given`: the parameters, each as an unsigned number of its size. Returns how many instructions warps did."""
        self._memory.launched()
        self._issued = 0
        threads, blocks = math.prod(block), math.prod(grid)
        parameters = {(name, 0): value for (*_, name), value in zip(self._entry.parameters, given, strict=True)}
        share = max(1, _AT_ONCE // threads)
        for first in range(0, blocks, share):
            count = min(share, blocks - first)
            owner, thread = np.divmod(np.arange(count * threads), threads)
            where = {"thread": thread, "owner": owner, "shared_memory": _Own(self._shared, owner, True)}
            for name, shape, number in (("tid", block, thread), ("ctaid", grid, owner + first)):
                for axis, length in zip("xyz", shape, strict=True):
                    number, where[f"{name}_{axis}"] = np.divmod(number, length)
                    where[f"n{name}_{axis}"] = np.full_like(thread, length)
            where = {name: x.astype("u4") if "tid" in name or "ctaid" in name else x for name, x in where.items()}
            try:
                with np.errstate(all="ignore"):
                    self._run(self._entry, where, parameters)
            except Fault as fault:
                raise Fault(f"kernel {self._entry.name[:80]}: {fault}") from None
        return self._issued

    def _run(self, function: Function, where: dict[str, Any], parameters: dict[Any, Any]) -> dict[Any, Any]:
        """All threads through a function; its parameters afterwards."""
        thread, owner, end = where["thread"], where["owner"], len(function.blocks)
        lanes, at, waiting = np.arange(thread.size), np.zeros(thread.size, int), np.zeros(thread.size, bool)

        def exchange(x: Array, mask: Array, s: Lanes) -> Array:
            """What the lane of the same warp has whose number differs in the bits of the mask."""
            present = np.zeros(thread.size + 32, bool)
            present[lanes[s]] = True
            other = lanes[s] - thread[s] % 32 + (thread[s] % 32 ^ mask)
            if not present[other].all() or (owner[other] != owner[s]).any():
                raise Fault("a thread is asked for a number, and is not there")
            return x[other]

        def call(name: str, values: dict[Any, Any], given: list[str], back: list[str], s: Lanes) -> dict[Any, Any]:
            callee = self._functions[name]
            formal = {actual: name for (*_, name), actual in zip(callee.parameters, given, strict=True)}
            told = {(formal[of], offset): value for (of, offset), value in values.items() if of in formal}
            made = self._run(callee, {"thread": thread[s], "owner": owner[s], "shared_memory": None}, told)
            return {(back[0], offset): value for (of, offset), value in made.items() if of == "func_retval0"}

        names = {
            **globals(), **function.constants, **where, "P": dict(parameters), "at": at, "waiting": waiting, "END": end,
            "exchange": exchange, "call": call, "carry": np.zeros(thread.size, int), "global_memory": self._memory,
            "local_memory": _Own(function.local, lanes, False),
            **{function._register(name): np.zeros(thread.size, dtype) for name, dtype in function.registers.items()},
        }  # fmt: skip
        while True:
            here = np.where(waiting, end, at)
            block = int(here.min())
            if block < end:
                mask = here == block
                names["s"] = s = slice(None) if mask.all() else np.flatnonzero(mask)
                at[s] = block + 1
                warps = np.count_nonzero(np.diff(lanes[s] // 32)) + 1  # a warp does for all what one thread asks for
                self._issued += warps * function.costs[block]
                exec(function.blocks[block], names)
            elif waiting.any():
                of_blocks = at.reshape(-1, int(thread.max()) + 1)
                if (of_blocks != of_blocks[:, :1]).any():
                    raise Fault("a barrier that not all threads of a block come to")
                waiting[:] = False
                where["shared_memory"].barrier()
            else:
                return dict(names["P"])
