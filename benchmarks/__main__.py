"""`python -m benchmarks`: times minigrad against its peers on the CPU."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
#: Libraries read these before they start their threads.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def parser(prog: str, what: str) -> argparse.ArgumentParser:
    """The options that the commands share."""
    made = argparse.ArgumentParser(prog=f"python -m {prog}", description=what)
    add = made.add_argument
    add("--only", metavar="NAME", help="cases whose group or name contains this; 'start': the starts alone")
    add("--json", type=Path, metavar="FILE", help="where the numbers go; the plots beside it (default: results/)")
    add("--quick", action="store_true", help="small sizes and few rounds: shows that it works, and no more")
    return made


def limit(threads: int) -> None:
    """Let every library have so many cores and threads; to be called before one is imported."""
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it has cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def destination(arguments: argparse.Namespace, stem: str) -> Path:
    """The JSON file. What is not a whole run of real sizes does not overwrite one."""
    if arguments.json:
        return Path(arguments.json)
    whole = not (arguments.quick or arguments.only)
    return RESULTS / f"{stem}.json" if whole else RESULTS / "partial" / f"{stem}.json"


def chosen(table: Sequence[Any], only: str | None) -> list[Any]:
    """The cases whose group or name contains `only`."""
    return [case for case in table if only is None or only.lower() in f"{case.group}: {case.name}".lower()]


def main(argv: Sequence[str] | None = None) -> int:
    """0: all sides agreed everywhere; 1: a case was refused; 2: nothing to do."""
    options = parser("benchmarks", "Times minigrad against torch, torch.compile, JAX and NumPy on the CPU.")
    add = options.add_argument
    add("--threads", type=int, metavar="N", help="of every library (default: as many as there are cores)")
    add("--peers", metavar="A,B", help="torch, torch.compile, JAX jit, NumPy (default: all that are installed)")
    arguments = options.parse_args(argv)
    if arguments.threads is not None:
        if not 1 <= arguments.threads <= (os.cpu_count() or 1):
            options.error(f"--threads: expected a number in [1, {os.cpu_count()}]; got {arguments.threads}")
        limit(arguments.threads)

    from benchmarks import apart, suite
    from benchmarks.timer import QUICK, Pace

    names = arguments.peers.split(",") if arguments.peers is not None else list(suite.SIDES)
    if unknown := set(names) - {"", *suite.SIDES}:
        options.error(f"--peers: there is {', '.join(suite.SIDES)}; got {', '.join(sorted(unknown))}")
    sides, missing = apart.installed(names, arguments.quick)
    pace = QUICK if arguments.quick else Pace()
    return conduct(arguments, destination(arguments, "cpu"), sides, missing, pace, apart.their_clocks)


def conduct(
    arguments: argparse.Namespace,
    path: Path,
    sides: list[Any],
    missing: dict[str, str],
    pace: Any,
    stopwatch: Any,
    gpu: dict[str, str] | None = None,
) -> int:
    """Run the chosen cases, and on a CPU (`gpu` is None) the processes; print, write and draw. The exit code."""
    from rich.console import Console
    from rich.progress import track

    from benchmarks import cases, plots, processes, report, suite

    everything = cases.table(arguments.quick, gpu is not None)
    table = chosen(everything, arguments.only)
    starting = gpu is None and arguments.only in (None, "start")
    if not table and not starting:
        print(f"benchmarks: no case has {arguments.only!r} in its name", file=sys.stderr)
        return 2
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    results: list[suite.Result] = []
    rows: list[dict[str, Any]] = []
    more = {} if gpu is None else {"gpu": gpu}
    for case in track(table, "cases", console=console, transient=True):
        results.append(suite.one(case, sides, pace, stopwatch))
        if gpu is None and case.size:
            weighed = [name for name in results[-1].seconds if name in processes.STARTS]
            found = {name: processes.peak(name, case.group, case.name, arguments.quick) for name in weighed}
            results[-1].memory = found
        if arguments.json:  # a file of one's own has all that is known when the run is cut short
            report.write(path, report.document(results, rows, missing, quick=arguments.quick, **more))
    if starting:
        first = next(case.name for case in everything if case.group == cases.TRAINING)
        begun = [side.name for side in sides if side.name in processes.STARTS]
        following = track(begun, "starts", console=console, transient=True)
        rows = [processes.starts(name, first, arguments.quick) for name in following]
    report.show(console, results, sides)
    if rows:
        report.show_starts(console, rows)
    for name, why in missing.items():
        console.print(f"[dim]{name}: {why}[/]")
    report.write(path, report.document(results, rows, missing, quick=arguments.quick, **more))
    for made in [path, *plots.draw(path.parent, path.stem, results, rows)]:
        console.print(f"wrote {made}", soft_wrap=True)
    return int(any(result.failure for result in results))


if __name__ == "__main__":
    sys.exit(main())
