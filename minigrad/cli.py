"""The `minigrad` command: which part of it runs, and how its troubles end.

Exit codes: 0 success, 1 a check failed, 2 bad usage, 130 interrupted. A part is a module with `add_arguments(parser)`
and `run(arguments) -> int`, imported only when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import minigrad
from minigrad import device
from minigrad._errors import UsageError

PARTS = {
    "study": (
        "minigrad.spectral.study.command",
        "train a spectrally normalized network on real data and hold every gradient against finite differences",
    ),
    "sweep": (
        "minigrad.spectral.sweep.command",
        "run studies or trainings over seeds, conventions, widths and learning rates, on many processes or machines",
    ),
    "gradcheck": (
        "minigrad._checks",
        "check every layer and every gradient convention against finite differences",
    ),
    "libraries": (
        "minigrad._libraries",
        "show what the spectral normalization of each library computes, and what its gradient is the derivative of",
    ),
    "info": (
        "minigrad._info",
        "show versions, processor, threads, kernel cache, and whether CUDA can be used",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's own) and return its exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # LANG=C, or a pipe on Windows: a letter that it lacks ends nothing
        sys.stdout.reconfigure(errors="backslashreplace")  # as it is on stderr
    try:
        return _run(given)
    except UsageError as error:
        print(f"minigrad: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminigrad: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def exit_on_interrupt() -> None:
    """Let Ctrl-C end a script with one line and exit code 130 instead of a traceback; `finally` blocks still run.

    Where it is ignored, as by a job in the background, it still is.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(130)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def _run(given: list[str]) -> int:
    chosen = next((word for word in given if word in PARTS), None)
    parser = argparse.ArgumentParser("minigrad", description="Exact gradients of spectral normalization.")
    parser.add_argument("--version", action="version", version=f"minigrad {minigrad.__version__}")
    parts = parser.add_subparsers(dest="part", metavar=" | ".join(PARTS), required=True)
    for name, (module, help_text) in PARTS.items():
        own = parts.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if name == chosen:
            importlib.import_module(module).add_arguments(own)
    arguments = parser.parse_args(given)
    try:
        device.check(arguments.device, f"{arguments.part} --device")
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from None
    if not 0 <= arguments.seed < 1 << 64:
        raise UsageError(f"{arguments.part} --seed: expected a number in [0, 2**64); got {arguments.seed}")
    code: int = importlib.import_module(PARTS[arguments.part][0]).run(arguments)
    return code
