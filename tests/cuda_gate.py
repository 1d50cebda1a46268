"""Compile every declared CUDA kernel, for every dtype it may be launched with, without a GPU.

    python tests/cuda_gate.py [PART OF A NAME]     a row per kernel, dtypes and architecture; exit code 1 if one is bad
    python tests/cuda_gate.py --write              all of them, and the table of them anew: tests/cuda_registers.tsv

To PTX by numba-cuda, and where `ptxas` is installed through the assembler, which knows registers and spills. The PTX is
the same for all architectures but for the one that it names: it is made once, and --write, which makes it for each,
sees to it that this is so. A row is bad, too, if it is not in the table, or needs more than the table says, or if its
name promises quads and its PTX has none. In a process of its own: compiling is told of a device that is not there.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

ARCHITECTURES = ((8, 0), (9, 0))
MOST_REGISTERS = 128  # two blocks of 256 threads on a multiprocessor
TABLE = Path(__file__).with_name("cuda_registers.tsv")
SLACK = 4  # registers that another version of the assembler may need in addition
# The library's sinf and cosf fold huge arguments in float64; they are the only ones that may.
FOLDING = ("elementwise._unary.one.sin", "elementwise._unary.one.cos", "random._fill32")


class Row(NamedTuple):
    kernel: str
    dtypes: str
    sm: str
    registers: str = "?"  # unknown without ptxas
    spills: str = "?"  # bytes
    shared: str = "?"  # bytes
    complaint: str = ""


def declared() -> dict[str, Any]:
    """Every kernel of every file of the package, whether or not the package imports it."""
    import minigrad.kernels.cuda as package
    from minigrad.kernels.cuda.launch import KERNELS

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return KERNELS


def library_of(kernel: Any, types: Any) -> Any:
    """A variant of a kernel, compiled as far as no architecture is asked for."""
    from numba.cuda import compiler, dispatcher

    class Device:
        compute_capability = ARCHITECTURES[0]

    dispatcher.get_current_device = Device
    options = {"cc": ARCHITECTURES[0], "device": False, "abi": "numba", "launch_bounds": kernel.threads}
    return compiler._compile_pyfunc_with_fixup(kernel.fn, types, **options)[0]


def ptx_of(kernel: Any, types: Any) -> str:
    """Its PTX, which is kept on disk under all that it depends on."""
    from minigrad.kernels import cuda as package
    from minigrad.kernels.disk_cache import _sources, cache_directory

    versions = version("numba-cuda"), version("nvidia-nvvm")
    told = kernel.name, types, versions, _sources(Path(package.__file__).parent)
    kept = cache_directory() / f"{hashlib.sha256(repr(told).encode()).hexdigest()[:32]}.ptx"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        mine = kept.with_suffix(f".{os.getpid()}")
        mine.write_text(library_of(kernel, types).get_asm_str(ARCHITECTURES[0]))
        mine.replace(kept)
    return kept.read_text()


def compiled(kernel: Any, dtypes: str, types: Any, each: bool) -> list[Row]:
    """A row per architecture; `each`: is its PTX what it is said to be, that of the first but for a name?"""
    rows = [Row(kernel.name, dtypes, f"sm_{major}{minor}") for major, minor in ARCHITECTURES]
    try:
        ptx = ptx_of(kernel, types)
        made = [as_if_for(ptx, row.sm) for row in rows]
        if each:
            library = library_of(kernel, types)  # one: each that is made has names of its own
            if len({as_if_for(library.get_asm_str(cc), rows[0].sm) for cc in ARCHITECTURES}) > 1:
                raise ValueError("the PTX of the architectures differs in more than their names: make it for each")
    except Exception as error:  # whatever the compiler raises is a complaint about this kernel, not about the gate
        return [row._replace(complaint=f"does not compile: {' '.join(str(error).split())[-400:]}") for row in rows]
    wide = "float64" in str(types) or kernel.name in FOLDING
    return [looked_at(row, ptx, wide) for row, ptx in zip(rows, made, strict=True)]


def as_if_for(ptx: str, sm: str) -> str:
    """The PTX, with the name of another architecture in it."""
    return re.sub(r"^\.target sm_\d+", f".target {sm}", ptx, flags=re.M)


def looked_at(row: Row, ptx: str, wide: bool) -> Row:
    """The row, with what its PTX, and the assembler, say; `wide`: it may use float64."""
    if ".f64" in ptx and not wide:
        row = row._replace(complaint="float64 instructions in a kernel without float64")
    if re.search(r"cvt\.rni\.[su]\d+\.f16", ptx):
        row = row._replace(complaint="a float16 becomes an integer by rounding, not by cutting off")
    row = row._replace(complaint=row.complaint or moved_singly(row, ptx))
    return assembled(row, ptx) if shutil.which("ptxas") else row


def moved_singly(row: Row, ptx: str) -> str:
    """What a kernel of quads should move 128 bits at a time, and does not: in its first step, and in those after."""
    if ".quads" not in row.kernel:
        return ""
    kind, times = ("v2.f64", 4) if "float64" in row.dtypes else ("v4.f32", 2)
    x_y = re.findall(r"\.[xy]\b", row.kernel)  # of matmul's operands, those whose neighbours part in shared memory
    loaded, along = (2, len(x_y)) if ".matmul." in row.kernel else (1, 1)
    for instruction, operands in ((f"ld.global.{kind}", loaded), (f"st.shared.{kind}", loaded - along)):
        if (found := ptx.count(instruction)) < operands * times:
            return f"{found} times {instruction}; expected {operands * times}"
    return ""


def assembled(row: Row, ptx: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = ["ptxas", "-v", f"-arch={row.sm}", str(source), "-o", str(source.with_suffix(".cubin"))]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    said = made.stdout + made.stderr
    if made.returncode:
        return row._replace(complaint=f"ptxas: {said[-400:]}")
    used = re.search(r"Used (\d+) registers", said)
    shared = re.search(r"(\d+) bytes smem", said)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert used and spills, said
    bytes_spilled = str(sum(map(int, spills.groups())))
    row = row._replace(registers=used[1], spills=bytes_spilled, shared=shared[1] if shared else "0")
    if bytes_spilled != "0":
        row = row._replace(complaint=f"registers spill: {spills[0]}")
    elif int(used[1]) > MOST_REGISTERS:
        row = row._replace(complaint=f"more than {MOST_REGISTERS} registers")
    return row


def rows_of(name: str, each: bool) -> list[Row]:
    kernel = declared()[name]
    return [row for signature in kernel.signatures() for row in compiled(kernel, *signature, each)]


def recorded() -> dict[tuple[str, ...], Row]:
    """The table, by kernel, dtypes and architecture."""
    lines = TABLE.read_text().splitlines()[1:] if TABLE.exists() else []
    rows = [Row(*line.split("\t")) for line in lines]
    return {row[:3]: row for row in rows}


def compared(row: Row, table: dict[tuple[str, ...], Row]) -> Row:
    """The row, with a complaint if it is worse than the table says, or not in it."""
    before = table.get(row[:3])
    if row.complaint:
        return row
    if before is None:
        return row._replace(complaint=f"not in {TABLE.name}: run tests/cuda_gate.py --write")
    if row.registers != "?" and int(row.registers) > int(before.registers) + SLACK:
        return row._replace(complaint=f"{row.registers} registers, where {TABLE.name} has {before.registers}")
    if row.shared != "?" and int(row.shared) > int(before.shared):
        return row._replace(complaint=f"{row.shared} bytes of shared memory, where {TABLE.name} has {before.shared}")
    return row


def gone(rows: list[Row], table: dict[tuple[str, ...], Row]) -> list[tuple[str, ...]]:
    """What the table has and nobody declares any more."""
    return sorted(table.keys() - {row[:3] for row in rows})


def _seldom_collect_garbage() -> None:
    """Compiling makes much of it and little that is in cycles: to look for those took a fifth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def main() -> int:
    parts = [part for part in sys.argv[1:] if part != "--write"]
    writing = len(parts) < len(sys.argv) - 1
    if writing and (parts or not shutil.which("ptxas")):
        sys.exit("--write is for all kernels, and needs ptxas")
    names = [name for name in declared() if all(part in name for part in parts)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _seldom_collect_garbage) as pool:
        rows = [row for made in pool.map(rows_of, names, [writing] * len(names)) for row in made]
    if writing:
        lines = ["\t".join(row[:-1]) for row in sorted(rows)]
        TABLE.write_text("\n".join(["\t".join(Row._fields[:-1]), *lines, ""]))
    table = recorded()
    rows = [compared(row, table) for row in rows]
    for row in rows:
        print("\t".join(row))
    if not parts and (old := gone(rows, table)):
        print(f"{TABLE.name} has {len(old)} rows of kernels that are gone: run --write", *old, file=sys.stderr)
        return 1
    if not shutil.which("ptxas"):
        print("ptxas is not installed: PTX was made and looked at; registers and spills are unknown", file=sys.stderr)
    return any(row.complaint for row in rows)


if __name__ == "__main__":
    sys.exit(main())
