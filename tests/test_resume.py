"""`Checkpoint`: training goes on from a file to the bit; a file of something else changes nothing."""

import copy
import hashlib
import json
import math
import os
import re

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import minigrad as mg
from minigrad import _random
from minigrad.checkpoint import Checkpoint
from minigrad.nn.utils import spectral_norm
from minigrad.optim import lr_scheduler

ALGORITHMS = {
    "SGD": {"lr": 0.1},
    "SGD, momentum": {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 1e-3},
    "Adam": {"lr": 0.01, "betas": (0.5, 0.9)},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
}
SCHEDULES = {
    None: lambda o: None,
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 4, 4]),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9, eta_min=0.01),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=7),
}


def parts(seed, algorithm="Adam", schedule="StepLR", hidden=8, gradient="fixed_uv"):
    """A small training with all that remembers something: everything random in it from the seed."""
    mg.manual_seed(seed)
    model = mg.nn.Sequential(
        spectral_norm(mg.nn.Linear(6, hidden), n_init_iterations=1, gradient=gradient),
        mg.nn.BatchNorm1d(hidden),
        mg.nn.LeakyReLU(0.1),
        mg.nn.Dropout(0.3),
        spectral_norm(mg.nn.Linear(hidden, 3), n_init_iterations=1, learnable_scale=True),
    )
    rest = [*model[1].parameters(), *model[4].parameters()]
    groups = [{"params": model[0].parameters()}, {"params": rest, "lr": 0.03}]
    optimizer = getattr(mg.optim, algorithm.split(",")[0])(groups, **ALGORITHMS[algorithm])
    generators = {"inputs": mg.Generator(seed), "targets": np.random.default_rng(seed)}
    return Checkpoint(model, optimizer, SCHEDULES[schedule](optimizer), generators)


def train(checkpoint, steps):
    """Returns the losses, as bits."""
    losses = []
    for _ in range(steps):
        x = mg.randn(5, 6, generator=checkpoint.generator["inputs"])
        y = mg.tensor(checkpoint.generator["targets"].integers(3, size=5))
        loss = mg.nn.functional.cross_entropy(checkpoint.model(x), y)
        checkpoint.optimizer.zero_grad()
        loss.backward()
        checkpoint.optimizer.step()
        if checkpoint.scheduler is not None:
            checkpoint.scheduler.step()
        checkpoint.step += 1
        losses.append(loss.item().hex())
    return losses


def seen(checkpoint):
    """All of it that a training depends on, without the code under test."""
    models, optimizers, schedulers = (
        x if isinstance(x, dict) else {} if x is None else {"": x}
        for x in (checkpoint.model, checkpoint.optimizer, checkpoint.scheduler)
    )
    tensors = [x for m in models.values() for x in (*m.parameters(), *m.buffers())]
    generators = (checkpoint.generator or {}).values()
    return (
        [x.detach().numpy().tobytes() for x in tensors],
        [
            {name: x.numpy().tobytes() if isinstance(x, mg.Tensor) else x for name, x in o.state.get(p, {}).items()}
            for o in optimizers.values() for g in o.param_groups for p in g["params"]
        ],
        [{k: v for k, v in g.items() if k != "params"} for o in optimizers.values() for g in o.param_groups],
        [copy.deepcopy(s.state_dict()) for s in schedulers.values()],
        [g.get_state() if isinstance(g, mg.Generator) else g.bit_generator.state for g in generators],
        _random.default.get_state(),
        checkpoint.step,
    )  # fmt: skip


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


def small(value=0.0, step=0):
    model = mg.nn.Linear(2, 1)
    with mg.no_grad():
        model.weight.copy_(mg.full((1, 2), float(value)))
    return Checkpoint(model, step=step)


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


# A file of something else --------------------------------------------------------------------------------------------


def named(name):
    checkpoint = parts(1)
    checkpoint.model = {name: checkpoint.model}
    return checkpoint


def without(kind):
    checkpoint = parts(1)
    setattr(checkpoint, kind, None)
    return checkpoint


def regrouped():
    checkpoint = parts(1)
    checkpoint.optimizer = mg.optim.Adam(checkpoint.model.parameters())
    checkpoint.scheduler = SCHEDULES["StepLR"](checkpoint.optimizer)
    return checkpoint


def double():
    checkpoint = parts(1)
    checkpoint.model.to(mg.float64)
    return checkpoint


MISMATCHED = {
    "shape": (lambda: parts(1, hidden=9), r"model\.0\.bias: expected \(9,\), float32; got \(8,\), float32"),
    "dtype": (double, r"model\.0\.bias: expected \(8,\), float64; got \(8,\), float32"),
    "state's dtype": (double, r"and \d+ more"),
    "name": (lambda: named("G"), r"model\.G\.0\.bias: expected \(8,\), float32; it is missing"),
    "algorithm": (lambda: parts(1, "AdamW"), r"optimizer\.class: expected 'AdamW'; got 'Adam'$"),
    "options": (lambda: parts(1, "SGD"), r"optimizer\.param_groups\.0\.momentum: expected a .*; it is missing"),
    "groups": (regrouped, r"optimizer\.param_groups\.0\.params\.2: expected '\(8,\), float32'; it is missing"),
    "schedule": (lambda: parts(1, schedule="LinearLR"), r"scheduler\.class: expected 'LinearLR'; got 'StepLR'"),
    "no schedule": (lambda: without("scheduler"), r"scheduler\.step_size: unexpected; got 2"),
    "no optimizer": (lambda: without("optimizer"), r"optimizer\.\S+: unexpected; got"),
    "no generator": (lambda: without("generator"), r"generator\.inputs\.seed: unexpected; got 0"),
}


@pytest.mark.parametrize("kind", MISMATCHED)
def test_a_file_of_other_parts_changes_nothing(kind, tmp_path):
    saved = parts(0)
    train(saved, 2)
    file = saved.save(tmp_path)
    make, text = MISMATCHED[kind]
    checkpoint = make()
    before = seen(checkpoint)
    with pytest.raises(ValueError, match=text) as caught:
        checkpoint.load(tmp_path)
    assert str(caught.value).startswith(f"Checkpoint.load: {file}: nothing was loaded:\n  ")
    assert seen(checkpoint) == before


def forged(file, numbers=(), remove=(), arrays=(), text=None, **head):
    """The file with other contents under a right checksum: whoever means harm can compute it."""
    with safetensors.safe_open(file, "np") as opened:
        there = {key: opened.get_tensor(key) for key in opened.keys()} | dict(arrays)  # noqa: SIM118
        (key,), (stated,) = zip(*opened.metadata().items(), strict=True)
    stated = json.loads(stated)
    stated["state"] |= dict(numbers)
    for name in remove:
        del (there if name in there else stated["state"])[name]
    digest = hashlib.sha256(json.dumps(stated["state"], sort_keys=True).encode())
    for name, x in sorted(there.items()):
        digest.update(f"\n{json.dumps(name)} {x.dtype} {x.shape}\n".encode() + x.tobytes())
    stated["sha256"] = digest.hexdigest()
    safetensors.numpy.save_file(there, file, {key: json.dumps(stated | head) if text is None else text})


@pytest.fixture
def saved(tmp_path):
    checkpoint = parts(0)
    train(checkpoint, 1)
    return checkpoint.save(tmp_path)


def test_the_checksum_is_that_of_the_docstring(saved):
    forged(saved, {"step": 5, "scheduler.gamma": 0.25, "optimizer.param_groups.1.lr": 1})
    checkpoint = parts(1)
    checkpoint.load(saved)
    assert (checkpoint.step, checkpoint.scheduler.gamma, checkpoint.optimizer.param_groups[1]["lr"]) == (5, 0.25, 1)
    forged(saved, {"step": 6}, sha256="0" * 64)
    with pytest.raises(ValueError, match="is corrupt: its contents have not the SHA-256"):
        checkpoint.load(saved)


LR, COUNT, OFFSET = "optimizer.param_groups.0.lr", "optimizer.state.0.step", "generator.inputs.offset"
HOSTILE = {
    "NaN": ({LR: math.nan}, rf"{LR}: expected a finite number; got nan"),
    "infinity": ({LR: math.inf}, rf"{LR}: expected a finite number; got inf"),
    "larger than any float": ({LR: 10**400}, rf"{LR}: expected a finite number"),
    "negative": ({LR: -1.0}, r"optimizer\.param_groups\.0: Adam: expected lr ≥ 0; got -1.0"),
    "a range": ({"optimizer.param_groups.1.betas.1": 1.5}, r"param_groups\.1: Adam: expected two betas in \[0, 1\)"),
    "text": ({LR: "x" * 10**6}, rf"{LR}: expected a finite number; got 'x{{10,99}}\.\.\.x+'$"),
    "truth": ({LR: True}, rf"{LR}: expected a finite number; got True"),
    "nothing": ({LR: None}, rf"{LR}: expected a finite number; got None"),
    "a list": ({LR: [1.0]}, rf"{LR}: expected a finite number; got \[1.0\]"),
    "a dict": ({"scheduler.last_epoch": {"a": {}}}, r"last_epoch: expected a finite number; got {'a': {}}"),
    "step": ({"step": -1}, r"\n  step: expected an integer in \[0, 2\*\*63\); got -1"),
    "step's kind": ({"step": 1.0}, r"\n  step: expected an integer"),
    "count": ({COUNT: -1}, rf"{COUNT}: expected an integer in \[0, 2\*\*63\); got -1"),
    "count's kind": ({COUNT: 0.5}, rf"{COUNT}: expected an integer"),
    "seed": ({"random.seed": 1 << 64}, r"random\.seed: expected an integer in \[0, 2\*\*64\); got \d{20}$"),
    "offset": ({OFFSET: -4}, rf"{OFFSET}: expected an integer in \[0, 2\*\*64\); got -4"),
    "NumPy's": ({"generator.targets.state.state": -1}, r"generator\.targets: "),
    "NumPy's kind": ({"generator.targets.bit_generator": "MT19937"}, r"bit_generator: expected 'PCG64'; got 'MT19937'"),
    "a parameter too many": ({"optimizer.state.99.step": 1}, r"optimizer\.state\.99\.step: unexpected; got 1"),
    "a parameter's other name": ({"optimizer.state.00.step": 1}, r"state\.00\.step: unexpected"),
    "a method": ({"scheduler.rate": 1}, r"scheduler\.rate: unexpected; got 1"),
    "attributes": ({"model.__class__": "os.system"}, r"model\.__class__: unexpected; got 'os\.system'"),
    "a long name": ({"x" * 10**6: 1}, r"\n  x+\.\.\.x+: unexpected; got 1$"),
}  # fmt: skip


def refused(file, text):
    checkpoint = parts(1)
    before = seen(checkpoint)
    with pytest.raises(ValueError, match=text) as caught:
        checkpoint.load(file)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 4000
    assert seen(checkpoint) == before


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_numbers(kind, saved):
    numbers, text = HOSTILE[kind]
    forged(saved, numbers)
    refused(saved, text)


@pytest.mark.parametrize("key", ["model.0.bias", "optimizer.state.3.exp_avg", "step", LR, "scheduler.base_lrs.1"])
def test_a_key_that_is_missing(key, saved):
    forged(saved, remove=[key])
    if "state" in key:  # a parameter that has had no gradient has none
        parts(1).load(saved)
    else:
        refused(saved, rf"\n  {re.escape(key)}: expected .*; it is missing$")


def test_hostile_tensors(saved):
    state = np.zeros((8, 7), np.float32)
    forged(saved, arrays={"optimizer.state.1.exp_avg": state})
    refused(saved, r"optimizer\.state\.1\.exp_avg: expected \(8, 6\), float32; got \(8, 7\), float32")
    forged(saved, arrays={"optimizer.state.1.exp_avg": state[:, :6].astype(np.float16), LR: np.zeros(())})
    refused(saved, r"state\.1\.exp_avg: expected \(8, 6\), float32; got \(8, 6\), float16")
    refused(saved, rf"{LR}: expected a finite number; got \(\), float64")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights, honestly", "expected JSON as its metadata 'minigrad.checkpoint'; Expecting value"),
        ("[" * 10**6, "expected JSON as its metadata"),
        ('{"state": {"step": 1' + "0" * 10**5 + "}}", "expected JSON as its metadata"),
        ("[]", "expected 'state', a dict, in its metadata"),
        ('{"state": [1]}', "expected 'state', a dict"),
        ('{"state": {}}', "expected format 1; got None"),
        ('{"state": {}, "format": 2}', "expected format 1; got 2"),
        ('{"state": {}, "format": 1}', r"step: expected an integer in \[0, 2\*\*63\); it is missing"),
    ],
)  # fmt: skip
def test_hostile_metadata(text, message, saved):
    forged(saved, text=text)
    refused(saved, message)


def test_a_state_dict_is_no_checkpoint(tmp_path):
    file = tmp_path / "model.safetensors"
    mg.save(parts(0).model.state_dict(), file)
    refused(file, r"is no checkpoint: it lacks the metadata 'minigrad.checkpoint'. mg.load\(\) reads state dicts")


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
