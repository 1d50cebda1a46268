"""`Checkpoint`: training goes on from a file to the bit; a folder of files."""

import math
import os

import numpy as np
import pytest
from trainings import ALGORITHMS, SCHEDULES, forged, parts, seen, small, train

import minigrad as mg
from minigrad import _random
from minigrad.checkpoint import Checkpoint
from minigrad.nn.utils import spectral_norm
from minigrad.optim import lr_scheduler

# Going on ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_goes_on_to_the_bit(algorithm, schedule, tmp_path):
    whole = parts(0, algorithm, schedule)
    losses = train(whole, 3)
    file = whole.save(tmp_path)
    losses += train(whole, 4)
    last, end = whole.save(tmp_path / "whole.safetensors").read_bytes(), seen(whole)
    other = parts(1, algorithm, schedule)  # everything in it is another
    assert train(other, 2) != losses[:2]
    other.load(file)
    assert train(other, 4) == losses[3:]
    assert seen(other) == end
    assert other.save(tmp_path / "other.safetensors").read_bytes() == last  # the same state is the same file


@pytest.mark.parametrize("gradient", ["exact", "unrolled", "projected", "detached"])
def test_conventions_that_keep_more_than_u_and_v(gradient, tmp_path):
    whole = parts(0, gradient=gradient)
    train(whole, 2)
    whole.save(tmp_path)
    losses = train(whole, 3)
    other = parts(1, gradient=gradient)
    other.load(tmp_path)
    assert train(other, 3) == losses and seen(other) == seen(whole)


def gan(seed):
    mg.manual_seed(seed)
    models = {"G": mg.nn.Linear(2, 3), "D": spectral_norm(mg.nn.Linear(3, 1)), "averaged": mg.nn.Linear(2, 3)}
    optimizers = {
        "G": mg.optim.Adam(models["G"].parameters(), betas=(0, 0.9)),
        "D": mg.optim.SGD(models["D"].parameters(), momentum=0.5),
    }
    schedulers = {"D": lr_scheduler.ExponentialLR(optimizers["D"], 0.5)}
    return Checkpoint(models, optimizers, schedulers, mg.Generator(seed))


def play(checkpoint, steps):
    m, o = checkpoint.model, checkpoint.optimizer
    for _ in range(steps):
        z = mg.randn(4, 2, generator=checkpoint.generator)
        for name, sign in (("D", -1), ("G", 1)):
            o[name].zero_grad()
            (sign * m["D"](m["G"](z)).mean()).backward()
            o[name].step()
        checkpoint.scheduler["D"].step()
        with mg.no_grad():
            for mean, p in zip(m["averaged"].parameters(), m["G"].parameters(), strict=True):
                mean.copy_(0.9 * mean + 0.1 * p)


def test_two_of_each(tmp_path):
    whole = gan(0)
    play(whole, 3)
    file = whole.save(tmp_path / "gan.safetensors")
    play(whole, 3)
    other = gan(1)
    other.load(file)
    play(other, 3)
    whole.generator, other.generator = {"": whole.generator}, {"": other.generator}
    assert seen(other) == seen(whole)
    assert {"model.G.weight", "optimizer.D.state.0.momentum_buffer"} <= set(mg.load(file))


def test_a_model_alone_and_nothing_to_learn(tmp_path):
    model = mg.nn.Sequential(mg.nn.ReLU())
    mg.manual_seed(5)
    mg.rand(3)
    state = _random.default.get_state()
    file = Checkpoint(model, step=7).save(tmp_path / "x.safetensors")
    mg.rand(3)
    checkpoint = Checkpoint(model)
    checkpoint.load(file)
    assert checkpoint.step == 7 and _random.default.get_state() == state


def test_tensors_of_every_kind(tmp_path, device):
    class Odd(mg.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.p = mg.nn.Parameter(mg.full((3, 2), value, device=device).T)
            for dtype in ("float16", "float64", "int64", "bool"):
                self.register_buffer(dtype, mg.tensor(np.full((2, 3), value).astype(dtype), device=device))
            self.register_buffer("empty", mg.zeros(0, 3, device=device))
            self.register_buffer("scalar", mg.tensor(value, device=device))

    one, zero = Checkpoint(Odd(1.0)), Checkpoint(Odd(0.0))
    one.save(tmp_path)
    zero.load(tmp_path)
    for (name, x), y in zip(zero.model.state_dict().items(), one.model.state_dict().values(), strict=True):
        assert x.tolist() == y.tolist() and x.device == device, name


# A folder ------------------------------------------------------------------------------------------------------------


def test_a_folder_keeps_the_last(tmp_path):
    folder = tmp_path / "new" / "run"
    assert Checkpoint.steps(folder) == {} and not small().resume(folder)
    for step in (8, 9, 10, 100):
        file = small(step, step).save(folder, keep=3)
        assert file.parent == folder and file.exists()
    assert list(Checkpoint.steps(folder)) == [9, 10, 100]  # in order, and not in that of the names
    other = small()
    assert other.resume(folder) and other.step == 100 and other.model.weight.tolist() == [[100, 100]]
    other.load(Checkpoint.steps(folder)[9])
    assert other.model.weight.tolist() == [[9, 9]]
    small(1, 100).save(folder)  # again, and all are kept
    assert list(Checkpoint.steps(folder)) == [9, 10, 100]
    small(1, 101).save(folder, keep=1)
    assert list(Checkpoint.steps(folder)) == [101]


def test_what_lies_there_beside_it(tmp_path):
    for name in ("step-5.safetensors", "step-000000007.safetensors.part", "xstep-000000008.safetensors", ".hidden.tmp"):
        (tmp_path / name).touch()
    assert Checkpoint.steps(tmp_path) == {}
    small(1, 3).save(tmp_path, keep=1)
    assert len(list(tmp_path.iterdir())) == 5 and list(Checkpoint.steps(tmp_path)) == [3]


def test_leftovers_go_with_the_next_write_unless_somebody_is_writing(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    leftover = tmp_path / f".minigrad-{'0' * 16}.tmp"
    for write in (lambda: small(0, 1).save(tmp_path), lambda: mg.save({}, tmp_path / "other.safetensors")):
        leftover.write_bytes(b"half")
        assert len(Checkpoint.steps(tmp_path)) <= 1
        write()
        assert not leftover.exists()
    leftover.write_bytes(b"half, so far")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    write()
    assert leftover.exists()
    os.close(descriptor)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda at: small(step=3).save(at), ValueError, r"has step 4, which is later than 3\. Go on from there"),
        (lambda at: small(step=5).save(at, keep=0), ValueError, "keep ≥ 1, and a folder; got keep=0"),
        (lambda at: small(step=5).save(at, keep=1.5), ValueError, "int keep ≥ 1, and a folder; got keep=1.5"),
        (lambda at: small().resume(at / "step-000000004.safetensors"), NotADirectoryError, "a folder; got .* load"),
        (lambda at: small().save(at / "x.safetensors", keep=2), ValueError, r"got keep=2, .*x\.safetensors"),
        (lambda at: small(step=-1).save(at), ValueError, "step to be an integer ≥ 0; got -1"),
        (lambda at: small(step=np.int64(9)).save(at), ValueError, "step to be an integer"),
        (lambda at: small().load(at / "nowhere"), FileNotFoundError, "nowhere"),
        (lambda at: small().load(at / ".."), FileNotFoundError, r"holds no file step-….safetensors"),
        (lambda at: small().load(os.devnull), OSError, "expected a regular file"),
        (lambda at: Checkpoint(mg.nn.Linear), TypeError, "expected model to be a Module, or several by name; got type"),
        (lambda at: Checkpoint({"a": small().model, "b": 3}), TypeError, "model .* got int"),
        (lambda at: Checkpoint(small().model, small().model), TypeError, "expected optimizer to be a Optimizer"),
        (lambda at: Checkpoint({"a.b": small().model}), ValueError, "names of models without dots; got 'a.b'"),
        (lambda at: Checkpoint({1: small().model}), ValueError, "got 1"),
        (lambda at: Checkpoint(mg.nn.LazyLinear(2)).save(at), RuntimeError, "has no shape yet. Call the layer once"),
        (
            lambda at: Checkpoint(small().model, generator=np.random.Generator(np.random.SFC64())).save(at),
            TypeError,
            "generator.state.state: expected a number of Python's.*; got ndarray",
        ),
    ],
)
def test_errors(make, error, text, tmp_path):
    at = tmp_path / "run"
    before = small(step=4).save(at).read_bytes()
    with pytest.raises(error, match=text):
        make(at)
    assert [x.read_bytes() for x in at.iterdir()] == [before]


@pytest.mark.parametrize(
    ("lr", "error", "text"), [(math.inf, ValueError, "finite number; got inf"), (np.float64(1), TypeError, "float64")]
)
def test_numbers_that_would_come_back_as_others_are_refused(lr, error, text, tmp_path):
    model = small().model
    with pytest.raises(error, match=rf"Checkpoint.save: optimizer.param_groups.0.lr: .*{text}"):
        Checkpoint(model, mg.optim.SGD(model.parameters(), lr=lr)).save(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_schedule_of_ones_own(tmp_path):
    class Plateau(lr_scheduler.StepLR):
        best, seen = None, ()

    def made():
        model = small().model
        scheduler = Plateau(mg.optim.SGD(model.parameters()), 2)
        scheduler.best, scheduler.seen = None, (1, {"a": True})
        return Checkpoint(model, scheduler.optimizer, scheduler)

    saved, other = made(), made()
    saved.scheduler.best, saved.scheduler.seen = 0.25, (7, {"a": False})
    file = saved.save(tmp_path)
    other.load(file)
    assert (other.scheduler.best, other.scheduler.seen) == (0.25, (7, {"a": False}))  # a tuple again
    for best in ("min", True, None):
        saved.scheduler.best = best
        saved.save(file)
        other = made()
        other.load(file)
        assert other.scheduler.best == best
    other.scheduler.best = 0.25
    with pytest.raises(ValueError, match=r"scheduler\.best: expected a finite number; got None"):
        other.load(file)
    forged(file, {"scheduler.best": 1, "scheduler.seen.1.a": 1})
    with pytest.raises(ValueError, match=r"scheduler\.seen\.1\.a: expected a bool; got 1"):
        other.load(file)
    vars(saved.scheduler).update({"a.b": 1, "a": {"b": 2}})
    with pytest.raises(ValueError, match=r"two things are called 'scheduler\.a\.b'"):
        saved.save(file)
