"""Code in a process of its own: what a test would not survive, or would leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments: str, timeout: float = 120, **environment: str) -> str:
    """Standard output of a fresh interpreter; a failure, a signal, or more than `timeout` seconds fails the test."""
    command = [sys.executable, "-W", "error", "-X", "faulthandler", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"
    return done.stdout.strip()


def python(code: str, timeout: float = 120, **environment: str) -> str:
    """The same for a piece of code."""
    return run("-c", textwrap.dedent(code), timeout=timeout, **environment)


def complaints(errors: str) -> str:
    """What was said on stderr but for the news that kernels are being compiled: somebody comes first."""
    return "".join(line for line in errors.splitlines(keepends=True) if "kernels are being compiled" not in line)
