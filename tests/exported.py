"""Export a model, run the file in onnxruntime, and compare."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn

onnx = pytest.importorskip("onnx", reason="the export needs onnx")
runtime = pytest.importorskip("onnxruntime", reason="what is exported is run by onnxruntime")


def run(path, *arrays, reference=False):
    """The outputs of the file: by onnxruntime, or by onnx's own evaluator in NumPy, which knows every dtype."""
    if reference:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
        names = session.input_names
    else:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [x.name for x in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def drawn(x, n, seed):
    """Input like the example, in a batch of n."""
    rng = np.random.default_rng(seed)
    shape = n, *x.shape[1:]
    if x.dtype.kind == "f":
        return rng.standard_normal(shape).astype(x.dtype)
    return rng.integers(0, 2 if x.dtype.kind == "b" else 5, shape).astype(x.dtype)


def check(tmp_path, model, *example, tolerance=1e-5, reference=False):
    """Export, validate, compare in the example's batch and in two others; returns the file's graph."""
    path = tmp_path / "model.onnx"
    mg.export.onnx(model, example if len(example) > 1 else example[0], path)
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    model.eval()
    for n in (example[0].shape[0], 5, 2):
        arrays = [drawn(x, n, seed) for seed, x in enumerate(example)]
        with mg.no_grad():
            expected = model(*map(mg.tensor, arrays))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(expected, run(path, *arrays, reference=reference), strict=True):
            assert theirs.shape == ours.shape
            assert theirs.dtype == ours.dtype
            scale = max(np.abs(ours.numpy().astype(float)).max(), 1e-30)
            assert np.abs(ours.numpy().astype(float) - theirs.astype(float)).max() <= tolerance * scale
    return made.graph


def weights(graph):
    return {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}


def moved(norm, **options):
    """Batch normalization whose statistics and affine map are not those of the start."""
    made = norm(**options)
    for i, x in enumerate((*made.parameters(), *(b for b in made.buffers() if b.ndim))):
        with mg.no_grad():
            x.copy_(mg.rand(*x.shape, generator=mg.Generator(i)) + 0.5)
    return made


class Ops(nn.Module):
    """A forward given as a function."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *xs):
        return self.fn(*xs)
