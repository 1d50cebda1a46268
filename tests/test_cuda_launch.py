"""What a launch hands to the driver, compared with the parameters of the compiled kernel; in a process of its own."""

from __future__ import annotations

from pathlib import Path

from cuda_process import compiled


def test_arguments_lie_where_the_kernel_looks_for_them() -> None:
    made = compiled(Path(__file__).with_name("cuda_launch.py"), "--check")
    assert made.returncode == 0, made.stderr
    assert made.stdout == "checked\n"
