"""Processes that end in the middle of something, by SIGKILL or Ctrl-C: what they leave, and what goes on from it."""

import inspect
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from fresh import complaints, python

import minigrad as mg
from minigrad._interrupt import deferred
from minigrad._mode import mode
from minigrad.checkpoint import Checkpoint
from minigrad.spectral.study import output

if os.name != "posix":
    pytest.skip("signals and fork as POSIX has them", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("ctrl_c")

# A process that forks: a child saves as fast as it can, and tells of each step that is on the disk, until it is killed.
KILLED = """
import os, random, signal, sys, time
import minigrad as mg
from minigrad.checkpoint import Checkpoint

folder, rounds, chance = sys.argv[1], int(sys.argv[2]), random.Random(0)

def made():
    return Checkpoint(mg.nn.ModuleList([mg.nn.Linear(100, 100), mg.nn.Linear(100, 100)]), generator=mg.Generator())

def save_on(told):
    checkpoint = made()
    checkpoint.resume(folder)
    while True:
        checkpoint.step += 1
        with mg.no_grad():
            for p in checkpoint.model.parameters():
                p.copy_(mg.full(p.shape, float(checkpoint.step)))
        checkpoint.generator.manual_seed(checkpoint.step)
        checkpoint.save(folder, keep=2)
        os.write(told, checkpoint.step.to_bytes(8, "little"))

checkpoint, torn = made(), 0
for _ in range(rounds):
    ours, told = os.pipe()
    child = os.fork()
    if child == 0:
        save_on(told)
    os.close(told)
    first = os.read(ours, 8)
    time.sleep(chance.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = first
    while more := os.read(ours, 1 << 16):
        done = more
    os.close(ours)
    torn += any(name.endswith(".tmp") for name in os.listdir(folder))
    assert len(os.listdir(folder)) <= 4, os.listdir(folder)  # two, one that should have gone, and a torn one
    checkpoint.load(folder)
    step = checkpoint.step
    assert int.from_bytes(done[-8:], "little") <= step <= int.from_bytes(done[-8:], "little") + 1
    assert {x for p in checkpoint.model.parameters() for x in p.reshape(-1).tolist()} == {float(step)}
    assert checkpoint.generator.seed == step
checkpoint.step += 1
checkpoint.save(folder, keep=2)
print(torn, len(os.listdir(folder)))
"""


def test_killed_200_times_the_newest_checkpoint_loads(tmp_path):
    memory = "/dev/shm"  # where a disk need not be waited for, if there is such a thing
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        command = [sys.executable, "-c", KILLED, folder, "200"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    torn, left = map(int, done.stdout.split())
    assert torn >= 5  # it was in the middle of writing
    assert left == 2


# Ctrl-C --------------------------------------------------------------------------------------------------------------

def training():
    mg.manual_seed(0)
    model = mg.nn.Sequential(
        mg.nn.utils.spectral_norm(mg.nn.Linear(64, 128)), mg.nn.BatchNorm1d(128), mg.nn.ReLU(), mg.nn.Dropout(0.2),
        mg.nn.utils.spectral_norm(mg.nn.Linear(128, 1)),
    )  # fmt: skip
    optimizer = mg.optim.Adam(model.parameters())
    scheduler = mg.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    return Checkpoint(model, optimizer, scheduler, mg.Generator(1))


def train(checkpoint, folder, steps):
    for step in range(checkpoint.step, steps):
        checkpoint.optimizer.zero_grad()
        checkpoint.model(mg.randn(128, 64, generator=checkpoint.generator)).square().mean().backward()
        checkpoint.optimizer.step()
        checkpoint.scheduler.step()
        checkpoint.step = step + 1
        checkpoint.save(folder, keep=2)


TRAINING = f"""
import sys
from minigrad.cli import exit_on_interrupt
exit_on_interrupt()
import minigrad as mg
from minigrad.checkpoint import Checkpoint

{inspect.getsource(training)}
{inspect.getsource(train)}

mg.set_num_threads(1)
checkpoint = training()
checkpoint.resume(sys.argv[1])
train(checkpoint, sys.argv[1], 100)
"""


def started(*command):
    return subprocess.Popen([sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_training_that_is_interrupted_and_killed_ends_as_if_it_had_not_been(tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    undisturbed = started("-c", TRAINING, str(whole))
    for number, after in ((signal.SIGINT, 5), (signal.SIGKILL, 10), (signal.SIGINT, 15)):
        process = started("-c", TRAINING, str(often))
        while process.poll() is None and max(Checkpoint.steps(often), default=0) < after:
            time.sleep(0.001)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert (process.returncode, out, complaints(errors)) == (130, "", "\ninterrupted\n")
            assert all(name.startswith("step-") for name in os.listdir(often))
        else:
            assert process.returncode == -signal.SIGKILL
        assert after <= max(Checkpoint.steps(often)) < 100
    for process in (undisturbed, started("-c", TRAINING, str(often))):
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out, complaints(errors)) == (0, "", "")
    last = "step-000000100.safetensors"
    assert (often / last).read_bytes() == (whole / last).read_bytes()


def test_an_example_ends_in_a_word():
    pytest.importorskip("sklearn")
    examples = Path(__file__).parents[1] / "examples"
    with started(str(examples / "spectral_mlp_digits.py"), "--epochs", "100000") as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert first.startswith("epoch  1"), errors
    assert (process.returncode, complaints(errors)) == (130, "\ninterrupted\n")
    for path in examples.glob("[!_]*.py"):
        assert re.search(r"^ *exit_on_interrupt\(\)$", path.read_text(), re.M), path


def test_what_ctrl_c_tears_a_load_mends(tmp_path, monkeypatch):
    """In a process that goes on: it comes in the middle of layers, of optimizers, and of saves."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # it would wait for the disk most of the time
    chance, often, heard = random.Random(0), training(), 0
    train(often, tmp_path, 2)  # Numba does not survive a Ctrl-C in its first compilation
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for _ in range(40):
            try:
                with mg.enable_grad():
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.001, 0.02))
                    train(often, tmp_path, often.step + 1000)  # longer than that; but Python may drop an exception
            except KeyboardInterrupt:
                heard += 1
                often.load(tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard >= 30
    train(often, tmp_path, often.step + 2)
    whole = training()
    train(whole, tmp_path / "whole", often.step)
    there, wanted = (Checkpoint.steps(folder)[often.step] for folder in (tmp_path, tmp_path / "whole"))
    assert there.read_bytes() == wanted.read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python drops one in a generator's end
def test_ctrl_c_leaves_the_mode_as_it_was():
    """At every point of a step at which Python hears it: at the beginning of a function, and after a call."""
    checkpoint, x = training(), mg.randn(2, 64)
    points, interrupted = -1, True
    while interrupted:
        left, interrupted = points if points >= 0 else math.inf, points < 0  # once undisturbed, to compile

        def listen(frame, event, argument):
            nonlocal left, interrupted
            if event in ("call", "c_return"):
                left -= 1
                if left < 0:
                    sys.setprofile(None)
                    interrupted = True
                    raise KeyboardInterrupt

        sys.setprofile(listen)
        try:
            for p in checkpoint.model.parameters():
                p.grad = None
            checkpoint.model(x).square().mean().backward()
            checkpoint.optimizer.step()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert mg.is_grad_enabled() and not mode.anomaly, points
        points += 1
    assert points > 500


COMPILING = """
import signal
from numba.core.typing.templates import BaseRegistryLoader
import minigrad as mg

registered = BaseRegistryLoader.new_registrations

def interrupted(*arguments):
    global left
    for thing in registered(*arguments):
        left -= 1
        if not left:
            signal.raise_signal(signal.SIGINT)
        yield thing

left = 400  # a registration that the kernels cannot do without
BaseRegistryLoader.new_registrations = interrupted
x = mg.ones(2)
try:
    mg.leaky_relu(x)
except KeyboardInterrupt:
    print("heard")
print(mg.leaky_relu(-100 * x).tolist(), mg.sigmoid(0 * x).tolist())
"""


def test_a_compilation_is_finished_first(tmp_path):
    """The first one of a process too, in which Numba builds what all later ones use."""
    said = python(COMPILING, MINIGRAD_CACHE_DIR=str(tmp_path))
    assert said.splitlines() == ["heard", "[-1.0, -1.0] [0.5, 0.5]"]


def small(value):
    models = {name: mg.nn.Linear(2, 2) for name in "ab"}
    for p in (p for m in models.values() for p in m.parameters()):
        with mg.no_grad():
            p.copy_(mg.full(p.shape, value))
    return Checkpoint(models, step=int(value))


def interrupting(monkeypatch, owner, name):
    """Let a real SIGINT come in the middle of each of these calls."""
    inner = getattr(owner, name)

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_save_is_finished_first(at, tmp_path, monkeypatch):
    interrupting(monkeypatch, os, at)
    with pytest.raises(KeyboardInterrupt):
        small(3.0).save(tmp_path)
    assert list(Checkpoint.steps(tmp_path)) == [3] and len(os.listdir(tmp_path)) == 1
    small(0.0).load(tmp_path)


def test_a_load_is_finished_first(tmp_path, monkeypatch):
    small(3.0).save(tmp_path)
    checkpoint = small(0.0)
    interrupting(monkeypatch, mg.nn.Module, "load_state_dict")
    with pytest.raises(KeyboardInterrupt):
        checkpoint.load(tmp_path)
    assert checkpoint.step == 3
    assert {x for m in checkpoint.model.values() for p in m.parameters() for x in p.reshape(-1).tolist()} == {3.0}


def test_the_files_of_a_study_are_all_in_place_first(tmp_path, monkeypatch):
    interrupting(monkeypatch, os, "replace")
    with pytest.raises(KeyboardInterrupt):
        output.write(tmp_path, "<p>", {}, {"losses": [{"step": 1}]})
    assert set(os.listdir(tmp_path)) == {"losses.csv", "results.json", output.REPORT}


def test_what_else_happens_in_a_deferred_block():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught, deferred(), deferred():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of its own")
    assert isinstance(caught.value.__context__, ValueError) and signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="of its own"), deferred():
        raise ValueError("of its own")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    done = []
    thread = threading.Thread(target=lambda: [done.append(1) for _ in [0] if deferred().__enter__() is None])
    thread.start(), thread.join()
    assert done == [1]
