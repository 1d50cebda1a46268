"""Every example runs, in a process of its own, and ends in a line of results."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import ROOT, run

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {
    "exact_gradients": (),
    "spectral_mlp_digits": ("--epochs", "4"),
    "spectral_conv_digits": ("--epochs", "2"),
    "wgan_gp_sn": ("--steps", "60"),
    "hessian_spectrum": ("--steps", "100", "--iterations", "20"),
    "sngan_digits": ("--steps", "100", "--width", "8"),
    "certified_mlp": ("--steps", "300", "--radii", "6"),
}
PICTURES = ("wgan_gp_sn", "hessian_spectrum", "sngan_digits", "certified_mlp")


def test_every_example_is_listed():
    elsewhere = {"sngan_cifar10"}  # test_examples_cifar10.py makes the data for it
    assert {path.stem for path in EXAMPLES.glob("[!_]*.py")} == set(ARGUMENTS) | elsewhere


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example(name, tmp_path):
    if name != "exact_gradients":
        pytest.importorskip("sklearn")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--seed", "1", *ARGUMENTS[name]]
    picture = tmp_path / f"{name}.png"
    if name in PICTURES:
        command += ["--out", str(picture)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert found.returncode == 0, found.stderr
    last = found.stdout.splitlines()[-1]
    if name == "exact_gradients":
        assert float(re.match(r"result: relative error (\S+) on cpu", last)[1]) < 1e-8
    elif name == "wgan_gp_sn":
        found = re.match(r"result: D\(real\) − D\(generated\) \S+, ‖∇ₓD‖ (\S+) on real digits, on cpu", last)
        assert float(found[1]) == pytest.approx(1, abs=0.3)
    elif name == "hessian_spectrum":
        found = re.match(r"result: largest eigenvalue (\S+), with u and v fixed (\S+), on cpu", last)
        assert float(found[1]) > 1.1 * float(found[2]) > 0
    elif name == "sngan_digits":
        found = re.match(r"result: .*: Fréchet distance (\S+) \(digits (\S+)\).* of 2.303, .* on cpu", last)
        assert float(found[1]) > float(found[2]) > 0
    elif name == "certified_mlp":
        found = re.match(r"result: accuracy (\S+); at .* certified (\S+), under attack (\S+); .*, on cpu", last)
        assert 1 > float(found[1]) > float(found[3]) > float(found[2]) > 0.2
    else:
        assert float(re.match(r"result: test accuracy (\d\.\d+).* on cpu", last)[1]) > 0.7
    if name in PICTURES:
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "text"),
    [("nowhere/x.png", "there is no folder .*nowhere"), ("x.doc", r"ends in one of .*png.*; got '.*x\.doc'")],
)
def test_a_picture_that_cannot_be_written_is_noticed_before_the_work(name, text, tmp_path):
    pytest.importorskip("sklearn")
    command = [sys.executable, str(EXAMPLES / "wgan_gp_sn.py"), "--out", str(tmp_path / name)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2 and re.search(text, found.stderr)


WRONG = {
    ("hessian_spectrum", "--iterations"): "0",
    ("certified_mlp", "--radii"): "1",
    ("sngan_digits", "--steps"): "-2",
    ("wgan_gp_sn", "--seed"): "-1",
    ("wgan_gp_sn", "--device"): "tpu",
    ("sngan_cifar10", "--data"): "nowhere",
}
ONE_AFTER_ANOTHER = """
import contextlib, io, json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as left:
            print(json.dumps([left.code, said.getvalue().splitlines()]))
"""


def test_what_cannot_be_is_one_line_before_the_work():
    pytest.importorskip("sklearn")
    given = [[str(EXAMPLES / f"{name}.py"), argument, value] for (name, argument), value in WRONG.items()]
    lines = run("-c", ONE_AFTER_ANOTHER, json.dumps(given), PYTHONPATH=f"{ROOT}{os.pathsep}{EXAMPLES}").splitlines()
    for (_, argument), line in zip(WRONG, lines, strict=True):
        code, said = json.loads(line)
        assert code == 2 and argument in said[-1] and "Traceback" not in said


def test_a_name_without_an_ending(tmp_path):
    pytest.importorskip("sklearn")
    command = [sys.executable, str(EXAMPLES / "wgan_gp_sn.py"), "--out", str(tmp_path / "x"), "--steps", "2"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"wrote {tmp_path / 'x.png'}\n" in found.stdout and (tmp_path / "x.png").exists()
