"""How minigrad and torch do the work: one text for both, and a class for what each has of its own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.work import (
    FUNCTIONS,
    Adam,
    Array,
    Build,
    Copy,
    Derivative,
    Function,
    LeftOut,
    Matmul,
    Running,
    Several,
    Training,
    normal,
    random,
)  # fmt: skip

Tensor = Any


class Library:
    """minigrad or torch on a device."""

    def __init__(self, name: str, root: str, device: str = "cpu"):
        self.name = name
        self.root = importlib.import_module(root)
        self.device = device
        self.nn, self.version = self.root.nn, str(self.root.__version__)

    # What each has of its own

    def spectral_norm(self, module: Any) -> Any:
        return self.nn.utils.spectral_norm(module)

    def adam(self, parameters: Any, fused: bool = False, **options: Any) -> Any:
        return self.root.optim.Adam(parameters, **options)

    def compiled(self, module: Any) -> Any:
        return module

    def captured(self, step: Any) -> Any:
        return step

    def synchronize(self) -> None:
        if self.device != "cpu":
            self.root.cuda.synchronize()

    # What they have in common

    def tensor(self, array: Array, requires_grad: bool = False) -> Tensor:
        return self.root.tensor(array, device=self.device, requires_grad=requires_grad)

    def array(self, tensor: Tensor) -> Array:
        return np.array(tensor.detach().to("cpu").numpy())

    def module(self, build: Build, dtype: str) -> Any:
        """A module with the parameters and buffers that it has on every other side."""
        module = build(self).to(getattr(self.root, dtype))
        module.load_state_dict({name: self.root.tensor(array) for name, array in state(build, dtype).items()})
        return module.to(self.device)

    def start(self, case: Case) -> Running:
        """Begin a piece of work. LeftOut: not here."""
        kinds: dict[Any, Any] = {
            Derivative: derivative, Training: training, Adam: adam, Matmul: matmul, Function: function,
            Copy: copy, Several: several,
        }  # fmt: skip
        running: Running = kinds[type(case.work)](self, case.work)
        return running


class Minigrad(Library):
    """minigrad."""

    def __init__(self, device: str = "cpu"):
        super().__init__("minigrad", "minigrad", device)


class CapturedMinigrad(Minigrad):
    """minigrad, its whole step captured: on a GPU, as a CUDA graph."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.name = "minigrad, captured"

    def captured(self, step: Any) -> Any:
        return self.root.capture(step, device=self.device)

    def start(self, case: Case) -> Running:
        if self.device == "cpu" and isinstance(case.work, Adam | Matmul | Function | Copy):
            raise LeftOut("one call of a kernel, no Python to leave out")
        return super().start(case)


class Torch(Library):
    """torch, eager."""

    def __init__(self, device: str = "cpu", name: str = "torch"):
        super().__init__(name, "torch", device)
        self.root.backends.cuda.matmul.allow_tf32 = False
        self.root.backends.cudnn.allow_tf32 = False
        self.root.backends.cudnn.benchmark = True

    def spectral_norm(self, module: Any) -> Any:
        return self.nn.utils.parametrizations.spectral_norm(module)

    def adam(self, parameters: Any, fused: bool = False, **options: Any) -> Any:
        return self.root.optim.Adam(parameters, **options, **({"fused": True} if fused else {}))


class CompiledTorch(Torch):
    """torch.compile of the modules."""

    def __init__(self, device: str = "cpu"):
        super().__init__(device, "torch.compile")

    def compiled(self, module: Any) -> Any:
        dynamo = importlib.import_module("torch._dynamo")
        dynamo.reset()  # so that no case meets what was compiled for another,
        dynamo.config.recompile_limit = 64  # or the limit on that
        return self.root.compile(module)

    def start(self, case: Case) -> Running:
        if isinstance(case.work, Adam | Matmul | Function | Copy):
            raise LeftOut("one call of the library, nothing to compile")
        return super().start(case)


class CapturedTorch(Torch):
    """torch, the whole step replayed as a CUDA graph."""

    WARM_UP = 3  # calls on a stream of their own, as torch's manual asks

    def __init__(self, device: str = "cuda"):
        super().__init__(device, "torch, CUDA graphs")

    def adam(self, parameters: Any, fused: bool = False, **options: Any) -> Any:
        return super().adam(parameters, fused, capturable=True, **options)

    def captured(self, step: Any) -> Any:
        cuda = self.root.cuda
        stream, graph = cuda.Stream(), cuda.CUDAGraph()
        calls = 0
        made: Any = None

        def call() -> Any:
            nonlocal calls, made
            calls += 1
            if calls <= self.WARM_UP:
                stream.wait_stream(cuda.current_stream())
                with cuda.stream(stream):
                    made = step()
                cuda.current_stream().wait_stream(stream)
                return made
            if calls == self.WARM_UP + 1:
                with cuda.graph(graph):
                    made = step()
            graph.replay()
            return made

        return call


@functools.lru_cache(maxsize=8)  # as many as one case has
def state(build: Build, dtype: str) -> dict[str, Array]:
    """The parameters and buffers that all sides start from: minigrad's, none of them zero."""
    lib = Minigrad()
    lib.root.manual_seed(0)
    arrays = {name: lib.array(x) for name, x in build(lib).to(getattr(lib.root, dtype)).state_dict().items()}
    rng = random()
    for array in arrays.values():
        if array.dtype.kind == "f" and not array.any():
            array[...] = 0.1 * rng.standard_normal(array.shape)
    return arrays


@functools.lru_cache(maxsize=8)
def upstream(work: Derivative) -> Array:
    """∂L/∂y, of the shape of y."""
    lib = Minigrad()
    with lib.root.no_grad():
        y = lib.module(work.build, work.dtype)(*(lib.tensor(x) for x in work.draw(random())))
    return normal(y.shape, work.dtype)


def _floats(lib: Library, arrays: Iterator[tuple[str, Tensor]]) -> dict[str, Array]:
    return {name: array for name, x in arrays if (array := lib.array(x)).dtype.kind == "f"}


def derivative(lib: Library, work: Derivative) -> Running:
    module = lib.module(work.build, work.dtype)
    run = lib.compiled(module)
    inputs = [lib.tensor(x, requires_grad=x.dtype.kind == "f") for x in work.draw(random())]
    g = lib.tensor(upstream(work))

    def step() -> Tensor:
        module.zero_grad()
        for x in inputs:
            x.grad = None
        y = run(*inputs)
        y.backward(g)
        return y

    def results(y: Tensor) -> dict[str, Array]:
        made = [(f"∂input {i}", x.grad) for i, x in enumerate(inputs) if x.grad is not None]
        made += [(f"∂{name}", p.grad) for name, p in module.named_parameters()]
        return _floats(lib, iter([("output", y), *made, *module.named_buffers()]))

    return Running(lib.captured(step), results)


def training(lib: Library, work: Training) -> Running:
    module = lib.module(work.build, work.dtype)
    run = lib.compiled(module)
    other = None
    if work.other is not None:
        other = lib.compiled(lib.module(work.other, work.dtype).requires_grad_(False))
    batch = [lib.tensor(x) for x in work.draw(random())]
    optimizer = lib.adam(module.parameters(), lr=work.lr, betas=work.betas)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = work.loss(lib.nn.functional, run, other, *batch)
        loss.backward()
        optimizer.step()
        return loss

    def results(loss: Tensor) -> dict[str, Array]:
        gradients = [(f"∂{name}", p.grad) for name, p in module.named_parameters()]
        return _floats(lib, iter([("loss", loss), *gradients, *module.state_dict().items()]))

    return Running(lib.captured(step), results)


def adam(lib: Library, work: Adam) -> Running:
    rng = random()
    parameters = [lib.tensor(rng.standard_normal(s, dtype="float32"), requires_grad=True) for s in work.shapes]
    for p in parameters:
        p.grad = lib.tensor(rng.standard_normal(tuple(p.shape), dtype="float32"))
    optimizer = lib.adam(parameters, fused=work.fused)
    return Running(
        lib.captured(optimizer.step),
        lambda _: {f"parameter {i}": lib.array(p) for i, p in enumerate(parameters)},
    )


def matmul(lib: Library, work: Matmul) -> Running:
    a, b = map(lib.tensor, factors(work))
    return Running(lib.captured(lambda: a @ b), lambda y: {"product": lib.array(y)})


def factors(work: Matmul) -> tuple[Array, Array]:
    rng = random()
    return rng.standard_normal((work.m, work.k), "float32"), rng.standard_normal((work.k, work.n), "float32")


def function(lib: Library, work: Function) -> Running:
    x, call = lib.tensor(random().standard_normal(work.shape, "float32")), FUNCTIONS[work.name]
    return Running(lib.captured(lambda: call(lib.root, x)), lambda y: {"output": lib.array(y)})


def copy(lib: Library, work: Copy) -> Running:
    x, y = lib.tensor(normal((work.size,))), lib.tensor(np.zeros(work.size, np.float32))
    return Running(lib.captured(lambda: y.copy_(x)), lambda _: {"copy": lib.array(y)})


def several(lib: Library, work: Several) -> Running:
    return one_by_one(work, [derivative(lib, part) for part in work.parts])


def one_by_one(work: Several, parts: list[Running]) -> Running:
    """Work whose parts are run in turn."""

    def step() -> list[Any]:
        for _ in range(work.times - 1):
            for part in parts:
                part.step()
        return [part.step() for part in parts]

    def results(made: list[Any]) -> dict[str, Array]:
        return {
            f"{i}: {name}": array
            for i, (part, one) in enumerate(zip(parts, made, strict=True))
            for name, array in part.results(one).items()
        }

    return Running(step, results)
