"""`Checkpoint`: a file of other parts, or a hostile one, is an error that names the keys, and changes nothing."""

import math
import re

import numpy as np
import pytest
from trainings import SCHEDULES, forged, parts, seen, train

import minigrad as mg


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


@pytest.fixture
def saved(tmp_path):
    checkpoint = parts(0)
    train(checkpoint, 1)
    return checkpoint.save(tmp_path)


def test_read_only_memory_is_found_before_anything_is_written(tmp_path):
    saved = parts(0)
    file = saved.save(tmp_path)
    checkpoint = parts(1)
    checkpoint.model[1].running_var = mg.ones(1).expand(8)
    before = seen(checkpoint)
    with pytest.raises(ValueError, match=r"nothing was loaded:\s+model\.1\.running_var: is read-only here"):
        checkpoint.load(file)
    assert seen(checkpoint) == before


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
