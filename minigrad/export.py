"""Export of a trained model to ONNX: `mg.export.onnx`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigrad import _random
from minigrad._onnx import FORMS, IR_VERSION, OPSET, Graph
from minigrad._tensor import Tensor
from minigrad._trace import Program, Value, trace
from minigrad.nn.module import Module

WHO = "export.onnx"


def onnx(model: Module, example_input: Tensor | Sequence[Tensor], path: str | os.PathLike[str]) -> None:
    """Write what `model(example_input)` computes in evaluation mode to `path`, as an ONNX model of opset 20.

    `example_input`: a tensor with the batch as axis 0, or a tuple of them for a forward of several; dtype and all other
    extents are fixed by it, the batch size (at least 1) is not. float16, float32, float64 and int64 inputs; the file
    computes in the dtypes of the model, but the slopes of LeakyReLU and ELU are float32 attributes. Inputs are named
    `input` (or `input_0`, …), outputs `output` (or `output_0`, …), weights as in the state dict.

    Whatever does not depend on the input becomes a constant: spectral normalization of any convention, with γ and
    factor, is baked into the weight W̄ = W/σ, and the file knows no u, v or σ. The forward may be any code that computes
    with tensors; it runs three times, in batches of three sizes and on other values, to tell what is constant. (An `if`
    on values that went the same way three times is not noticed, and neither is an int that came out the same.)
    The model is left as it was: its mode, its buffers, its gradients, and the default random generator.
    The file is written whole or not at all; a single ONNX file holds up to 2 GB.

    ImportError: the package onnx is missing. NotImplementedError: an op without an ONNX form (for its dtype).
    ValueError: a forward that is no function of its input made of ops (values taken out by `item()`, random numbers,
    changes in place, a fixed batch size); an example without a batch axis. TypeError: no module, no tensors.
    RuntimeError: a lazy layer without a shape. Errors of the forward itself, such as those of an example of another
    dtype than the weights, pass through.

    Source: https://onnx.ai/onnx/intro/concepts.html.

    >>> import minigrad as mg, tempfile, os
    >>> net = mg.nn.Sequential(mg.nn.utils.spectral_norm(mg.nn.Linear(4, 8)), mg.nn.ReLU(), mg.nn.Linear(8, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mg.export.onnx(net, mg.zeros(1, 4), os.path.join(folder, "net.onnx"))
    ...     sorted(os.listdir(folder))
    ['net.onnx']
    """
    package = _package()
    if not isinstance(model, Module):
        raise TypeError(f"{WHO}: expected a Module; got {type(model).__name__}")
    example = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    for x in example:
        if not isinstance(x, Tensor):
            raise TypeError(f"{WHO}: expected a tensor or a tuple of tensors as example; got {type(x).__name__} in it")
    sizes = {x.shape[:1] for x in example}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"{WHO}: expected tensors with one batch size of at least 1 as axis 0; got {[x.shape for x in example]}"
        )
    made = _model(package, _program(model, example))
    try:
        package.checker.check_model(made, full_check=True)
    except (package.checker.ValidationError, package.shape_inference.InferenceError) as error:
        raise NotImplementedError(
            f"{WHO}: ONNX does not know an op for these dtypes: {error}. Cast its input first, bool with to(mg.int64)."
        ) from error
    _write(Path(path), made.SerializeToString())


def _package() -> Any:
    try:
        importlib.import_module("onnx.checker")
        return importlib.import_module("onnx")
    except ImportError:
        raise ImportError(
            f'{WHO}: needs the package onnx, which is not installed here. pip install "minigrad[export]"'
        ) from None


def _program(model: Module, example: tuple[Tensor, ...]) -> Program:
    """The trace of the model in evaluation mode; model and generator are left as they were."""
    modes = [(module, module.training) for module in model.modules()]
    state = _random.default.get_state()
    try:
        return trace(model.eval(), example, FORMS, WHO)
    finally:
        _random.default.set_state(state)
        for module, training in modes:
            module.training = training


def _model(package: Any, program: Program) -> Any:
    """The program as a ModelProto."""
    helper = package.helper
    n = len(program.outputs)
    names = ["output"] if n == 1 else [f"output_{i}" for i in range(n)]
    graph = Graph(package, program, names, WHO)
    outputs = [value._replace(name=name) for name, value in zip(names, program.outputs, strict=True)]

    def declared(value: Value) -> Any:
        shape = [n if isinstance(n, int) else str(n) for n in value.shape]
        return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)

    weights = [package.numpy_helper.from_array(array, name) for name, array in graph.initializers.items()]
    made = helper.make_graph(
        graph.nodes, "minigrad", [*map(declared, program.inputs)], [*map(declared, outputs)], weights
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION, producer_name="minigrad")


def _write(path: Path, data: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
