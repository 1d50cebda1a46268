"""What a run is worth knowing by: ratios first in the terminal, everything in JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.cases import COPY, NODES, STEP, TRAINING
from benchmarks.suite import Result, Side
from benchmarks.timer import Spread, ratio

PACKAGES = ("minigrad", "numpy", "numba", "llvmlite", "torch", "jax", "jaxlib", "threadpoolctl", "numba-cuda")


def ours(results: Iterable[Result]) -> list[str]:
    """minigrad, and minigrad captured, where it ran."""
    names = dict.fromkeys(name for result in results for name in result.seconds)
    return [name for name in names if name.startswith("minigrad")]


def ratios(result: Result, own: str) -> dict[str, Spread]:
    """Peer -> how many times as long as `own` it takes."""
    seconds = result.seconds
    if own not in seconds:
        return {}
    return {name: ratio(seconds[name], seconds[own]) for name in seconds if not name.startswith("minigrad")}


def mean(values: Sequence[float]) -> float:
    """The geometric one.

    >>> mean([2.0, 8.0])
    4.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def share(results: Sequence[Result], side: str) -> float | None:
    """The part that spectral normalization has in SNDCGAN's D step."""
    found = {result.case.name: result.seconds.get(side) for result in results}
    step, nodes = found.get(STEP), found.get(NODES)
    return Spread.of(nodes).median / Spread.of(step).median if step and nodes else None


# The terminal ---------------------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    """
    >>> seconds(1.234e-4), seconds(2.0)
    ('123 µs', '2.00 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if unit != "s" else f"{value:.2f} s"
    return f"{value * 1e9:.0f} ns"


def rate(result: Result, own: str, bandwidth: float) -> str:
    """Operations or bytes per second, the latter also as a part of what a copy reaches."""
    taken = Spread.of(result.seconds[own]).median
    if result.case.flops:
        return f"{result.case.flops / taken / 1e9:.3g} GFLOP/s"
    if result.case.bytes:
        part = f", {result.case.bytes / taken / bandwidth:.0%}" if bandwidth else ""
        return f"{result.case.bytes / taken / 1e9:.3g} GB/s{part}"
    return ""


def bandwidth(results: Iterable[Result]) -> float:
    """Bytes per second of the fastest copy, 0 if none was timed."""
    copies = [r for r in results if r.case.name == COPY and r.seconds]
    return max((r.case.bytes / Spread.of(s).median for r in copies for s in r.seconds.values()), default=0.0)


def ratio_cell(found: Spread | None) -> str:
    """The ratio and its quartiles, green where we are the faster ones."""
    if found is None:
        return "[dim]—[/]"
    shown = [f"{x:.3g}" if x < 1000 else f"{x:.0f}" for x in (found.median, found.low, found.high)]
    return f"[bold {'green' if found.median >= 1 else 'red'}]{shown[0]}[/] [dim]{shown[1]}–{shown[2]}[/]"


def show(console: Console, results: Sequence[Result], sides: Sequence[Side]) -> None:
    """A table for each group, one of left-out sides, and what failed."""
    peers = [side.name for side in sides if not side.name.startswith("minigrad")]
    copied = bandwidth(results)
    for group in dict.fromkeys(result.case.group for result in results):
        members = [result for result in results if result.case.group == group]
        console.print(_group(group, members, peers, ours(results), copied))
    for own in ours(results):
        if part := share(results, own):
            console.print(f"Normalization is {part:.1%} of the {STEP} of {own}.")
    reasons: dict[str, list[str]] = {}
    for result in results:
        for name, why in result.left_out.items():
            reasons.setdefault(f"{name}: {why}", []).append(f"{result.case.group} {result.case.name}")
    for why, where in reasons.items():
        console.print(f"[dim]— {why} ({where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''})[/]")
    for result in results:
        if result.failure:
            console.print(f"[bold red]refused[/] {result.case.group}, {result.failure}")


def _group(group: str, results: Sequence[Result], peers: Sequence[str], own: Sequence[str], copied: float) -> Table:
    timed = [peer for peer in peers if any(peer in result.seconds for result in results)]
    table = Table(title=group, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for peer in timed:
        table.add_column(f"× {peer}", justify="right", no_wrap=True)
    rated = any(result.case.flops or result.case.bytes for result in results)
    weighed = list(dict.fromkeys(name for result in results for name in result.memory))
    for name in ("minigrad", "quartiles", *(["rate"] if rated else []), *(f"MiB {name}" for name in weighed)):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        for mine in own:
            if mine in result.seconds:
                cells = [*_row(result, mine, timed), *([rate(result, mine, copied)] if rated else [])]
                table.add_row(*cells, *(f"{result.memory.get(name, 0) / 2**20:.1f}" for name in weighed))
    for mine in own:
        found = [ratios(result, mine) for result in results if mine in result.seconds]
        if timed and len(found) > 1:
            medians = ([f[peer].median for f in found if peer in f] for peer in timed)
            means = (f"{mean(values):.3g}" if values else "" for values in medians)
            table.add_section()
            table.add_row(f"geometric mean{mine.removeprefix('minigrad')}", *means, style="italic")
    return table


def _row(result: Result, mine: str, timed: Sequence[str]) -> list[str]:
    found, taken = ratios(result, mine), Spread.of(result.seconds[mine])
    return [
        result.case.name + mine.removeprefix("minigrad"), *(ratio_cell(found.get(peer)) for peer in timed),
        seconds(taken.median), f"[dim]{seconds(taken.low)} – {seconds(taken.high)}[/]",
    ]  # fmt: skip


def show_starts(console: Console, starts: Sequence[dict[str, Any]]) -> None:
    """Import and first steps, and what compiling took."""
    title = "import and first training step, in a fresh process"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("")
    columns = ("import", "empty cache", "filled cache", "second step")
    for name in columns:
        table.add_column(name, justify="right")
    for row in starts:
        table.add_row(row["side"], *(seconds(row[name]) if name in row else "[dim]—[/]" for name in columns))
    console.print(table)
    for row in starts:
        if kernels := row["kernels"]:
            slowest = sorted(kernels.items(), key=lambda item: -item[1])[:3]
            named = ", ".join(f"{name} {seconds(taken)}" for name, taken in slowest)
            console.print(f"{len(kernels)} kernels compiled in {seconds(sum(kernels.values()))}: {named}, …")


# Markdown -------------------------------------------------------------------------------------------------------------


def overview(found: dict[str, Any], peers: Sequence[str] = ("torch", "torch.compile", "JAX jit")) -> str:
    """What `document` gives, as a table: each training step; of each other group the geometric mean and the range."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for case in found["cases"]:
        if not case["size"] and case["name"] not in (COPY, NODES):
            several = case["group"] != TRAINING
            rows.setdefault(case["group"] if several else case["name"], []).append(case["ratios"])
    lines = [["", *(f"× {peer}" for peer in peers)], ["---", *("---:" for _ in peers)]]
    for name, cases in rows.items():
        for own in dict.fromkeys(own for case in cases for own in case if case[own]):
            medians = [[case[own][peer]["median"] for case in cases if peer in case.get(own, ())] for peer in peers]
            called = name if len(cases) == 1 else f"{name} ({len(cases)} cases)"
            lines.append([called + own.removeprefix("minigrad"), *map(_mean_and_range, medians)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _mean_and_range(values: Sequence[float]) -> str:
    """
    >>> _mean_and_range([2.0, 20.0]), _mean_and_range([0.941]), _mean_and_range([])
    ('**6.3** (2.0 to 20)', '**0.94**', '—')
    """
    if not values:
        return "—"
    least, middle, most = (f"{x:#.2g}".rstrip(".") for x in (min(values), mean(values), max(values)))
    return f"**{middle}**" + (f" ({least} to {most})" if len(values) > 1 else "")


# JSON -----------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Where this ran."""
    from minigrad._info import gather

    facts = gather(0)
    kept = ("Python", "BLAS", "processor", "vectors", "threads")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"platform": platform.platform(), "cores": os.cpu_count(), "memory": memory} | {k: facts[k] for k in kept}


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import minigrad

    return found | {"minigrad": minigrad.__version__}


def document(
    results: Sequence[Result],
    starts: Sequence[dict[str, Any]] = (),
    missing: dict[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """All that was found, as JSON has it."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "missing": missing or {},
        **more,
        "copy bandwidth": bandwidth(results),
        "share of normalization": {name: share(results, name) for result in results for name in result.seconds},
        "cases": [_case(result, ours(results)) for result in results],
        "starts": list(starts),
    }


def _case(result: Result, own: Sequence[str]) -> dict[str, Any]:
    case = result.case
    return {
        "group": case.group, "name": case.name, "size": case.size, "flops": case.flops, "bytes": case.bytes,
        "tolerance": case.tolerance, "differences": result.differences, "failure": result.failure,
        "ratios": {mine: {peer: vars(found) for peer, found in ratios(result, mine).items()} for mine in own},
        "seconds": {
            name: {**vars(Spread.of(taken)), "rounds": list(taken)} for name, taken in result.seconds.items()
        },
        "memory": result.memory, "left out": result.left_out,
    }  # fmt: skip


def write(path: Path, found: dict[str, Any]) -> None:
    """As a file that ends in a newline; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(overview(json.loads(Path(__file__).with_name("results").joinpath("cpu.json").read_text("utf-8"))), end="")
