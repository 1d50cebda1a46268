"""mg.export.onnx leaves the model as it was and the file whole, and refuses what is no graph."""

import sys
from pathlib import Path

import numpy as np
import pytest
from exported import Ops, onnx

import minigrad as mg
from minigrad import nn
from minigrad.nn import functional as F
from minigrad.nn.utils import spectral_norm


def test_nothing_of_the_model_changes(tmp_path):
    model = nn.Sequential(spectral_norm(nn.Linear(4, 6)), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    model(mg.randn(3, 4)).sum().backward()
    model.train()
    model[1].eval()
    before = {key: x.numpy().copy() for key, x in model.state_dict().items()}
    grads = [x.grad for x in model.parameters()]
    values = [x.grad.numpy().copy() for x in model.parameters()]
    source = mg._random.default.get_state()
    recording = []
    model.append(Ops(lambda x: recording.append(mg.is_grad_enabled()) or x))
    mg.export.onnx(model, mg.randn(3, 4, generator=mg.Generator(1)), tmp_path / "a.onnx")
    assert recording == [False] * 3
    assert [m.training for m in model.modules()].count(False) == 1
    assert not model[1].training
    assert all(np.array_equal(before[key], x.numpy()) for key, x in model.state_dict().items())
    assert all(x.grad is g for x, g in zip(model.parameters(), grads, strict=True))
    assert all(np.array_equal(g.numpy(), a) for g, a in zip(grads, values, strict=True))
    assert mg._random.default.get_state() == source
    assert mg._mode.mode.witness is None


def test_a_failed_export_leaves_model_and_file(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"before")
    model = nn.Sequential(nn.Linear(4, 2), Ops(lambda x: x * mg.randn(2)))
    source = mg._random.default.get_state()
    with pytest.raises(ValueError, match="random numbers"):
        mg.export.onnx(model, mg.zeros(3, 4), path)
    assert (model.training, path.read_bytes(), mg._random.default.get_state()) == (True, b"before", source)
    assert mg._mode.mode.witness is None
    mg.export.onnx(nn.ReLU(), mg.zeros(3, 4), str(path))
    made = onnx.load(path)
    assert (made.producer_name, made.opset_import[0].version, made.ir_version) == ("minigrad", 20, 9)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_put_in_place_leaves_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(mg.export.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        mg.export.onnx(nn.ReLU(), mg.zeros(3, 4), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


# Refusals -------------------------------------------------------------------------------------------------------------


def in_place(x):
    y = x + 1
    y[:, 0] = 0.0
    return y * 2


def into_a_buffer(x):
    y = mg.zeros(2)
    y[:] = x.sum()
    return x.sum(1) + y.sum()


def branch(x):
    return x.exp() if x.sum() > 0 else x * 2


REFUSED = {
    "a value": (lambda x: x * x.sum().item(), ValueError, r"op 'mul'.*neither constant nor affine.*item\(\)"),
    "an array": (lambda x: x + mg.tensor(x.numpy().sum(0)), ValueError, r"op 'add'.*numpy\(\)"),
    "a mask": (lambda x: x[x > 0], ValueError, "op 'take'.*a mask or a list as index"),
    "a branch": (branch, ValueError, r"ran other ops.*where\(\)"),
    "randomness": (lambda x: x * mg.rand(4), ValueError, "op 'mul'.*random numbers"),
    "dropout in a forward": (lambda x: F.dropout(x, 0.5), ValueError, "op 'mul'.*random numbers"),
    "a change in place": (in_place, ValueError, r"changed a tensor of shape \(2, 4\) in place"),
    "a way around the ops": (into_a_buffer, ValueError, "op 'add'.*values that left the tensors"),
    "a fixed batch": (lambda x: x.reshape(2, 2, 2), ValueError, r"in a batch of 3.*x\.shape\[0\].*It raised: reshape"),
    "a size that is not affine": (lambda x: x * x.shape[0] ** 2, ValueError, r"op 'mul'.*affine.*was 4, 9, 16"),
    "a root of the batch size": (lambda x: x.std(0), ValueError, "op 'div'.*neither constant nor affine"),
    "padding by the batch size": (lambda x: F.pad(x, (x.shape[0], 0)), ValueError, "op pad.*depends on the batch size"),
    "a by-product": (lambda x: mg.ops.batch_norm.standardize(x)[1], NotImplementedError, "by-product of batch_norm"),
    "arithmetic of bools": (lambda x: (x > 0) + (x < 1), NotImplementedError, r"Add.*tensor\(bool\).*Cast its input"),
    "a constant": (lambda x: mg.ones(2), ValueError, "output 0 is not made from the input"),
    "no tensor": (lambda x: x.sum().item(), TypeError, "to return a tensor.*float"),
    "an op without a form": (
        lambda x: mg.nn.functional.spectral_normalize(x, mg.ones(2), mg.ones(4))[0],
        NotImplementedError,
        r"op 'sigma', on shapes \[\(2, 4\), \(2,\), \(4,\)\], has no ONNX form.*Compose it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_graph_is_refused(name, tmp_path):
    fn, error, message = REFUSED[name]
    with pytest.raises(error, match=f"export.onnx: .*{message}"):
        mg.export.onnx(Ops(fn), mg.full((2, 4), 0.5), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(TypeError, match="linear: expected one dtype; got float64, float32"):
        mg.export.onnx(nn.Linear(4, 2), mg.zeros(3, 4, dtype=mg.float64), path)
    with pytest.raises(TypeError, match="expected a tensor or a tuple of tensors as example; got float"):
        mg.export.onnx(nn.Linear(4, 2), [1.0], path)
    with pytest.raises(TypeError, match="expected a Module; got function"):
        mg.export.onnx(F.relu, mg.zeros(3), path)
    for example in (mg.tensor(1.0), mg.zeros(0, 4), (mg.zeros(2, 4), mg.zeros(3, 4)), ()):
        with pytest.raises(ValueError, match="one batch size of at least 1 as axis 0"):
            mg.export.onnx(nn.ReLU(), example, path)
    with pytest.raises(RuntimeError, match="lazy layer has no shape yet"):
        mg.export.onnx(nn.LazyLinear(2), mg.zeros(3, 4), path)


def test_without_onnx_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx.checker", None)
    with pytest.raises(ImportError, match=r'needs the package onnx.*pip install "minigrad\[export\]"'):
        mg.export.onnx(nn.ReLU(), mg.zeros(3), tmp_path / "a.onnx")


def test_importing_minigrad_does_not_import_onnx():
    import subprocess

    code = "import minigrad, sys; print('onnx' in sys.modules)"
    root = Path(mg.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "False"
