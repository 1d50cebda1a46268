"""Random programs of ops in minigrad and in torch, in float64: values, first and second derivatives.

    python -m tests.fuzz --minutes 60 [--seed 7]

A program that differs is made as small as it goes and printed, to be pasted and run; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg

# What programs are made of: {x} is a tensor, {p} a positive one, {q} one without zeros, {y} one that broadcasts with x;
# {d} a dim of x, {leaf:…} a new leaf of a shape, which is written in extents of x: x0 is x.shape[0].

ANYWHERE = "neg abs exp sin cos tanh sigmoid softplus relu gelu silu elu leaky_relu expm1 square clone sum mean sign"
POSITIVE = "log log1p sqrt rsqrt reciprocal"
TEMPLATES = [
    *(f"lib.{name}({{x}})" for name in ANYWHERE.split()),
    *(f"lib.{name}({{p}})" for name in POSITIVE.split()),
    *(f"{{x}} {op} {{y}}" for op in "+-*"),
    *(f"lib.{name}({{x}}, {{y}})" for name in ("maximum", "minimum")),
    "{y} / {q}", "{p} ** {y}", "lib.where({x} > {y}, {x} * {y}, {y})", "lib.where({x} > 0.25, {x}, 0.5)",
    "{x} + 0.5", "1.5 - {x}", "{x} * -1.25", "{x} / 0.75", "0.75 / {q}", "{x} ** 2", "{x} ** 3", "{p} ** 2.5",
    "{q} ** -1", "1.5 ** {x}", "lib.clip({x}, -0.6, 0.9)", "lib.clip({x}, max=0.3)", "lib.softplus({x}, 2.0)",
    *(f"lib.{name}({{x}}, {{d}})" for name in ("sum", "mean", "softmax", "log_softmax", "logsumexp", "cumsum")),
    *(f"lib.{name}({{x}}, {{d}}, {{keep}})" for name in ("sum", "mean", "amax", "amin", "logsumexp", "prod")),
    *(f"lib.{name}({{x}}, {{d}})[0]" for name in ("max", "min")),
    *(f"lib.{name}({{x}}, {{d}}, correction=0, keepdim=True)" for name in ("var", "std")),
    "lib.var({x})", "lib.prod({x})", "lib.norm({x})", "lib.norm({x}, 2, {d})", "lib.norm({x}, 1, {d}, True)",
    "lib.norm({x}, 3, {d})", "lib.sum({x}, {dims})", "lib.amax({x}, {dims})", "lib.mean({x}, {dims}, True)",
    "{x}.T", "{x}[None, None].mT", "{x}.reshape(-1)", "lib.flatten({x}, 1)", "lib.transpose({x}, {d}, {d2})",
    "{x}.contiguous()", "lib.permute({x}, {order})", "lib.unsqueeze({x}, {d})", "lib.squeeze({x})",
    "lib.flip({x}, ({d},))",
    "{x}.reshape({x0}, -1)", "{x}.expand(2, *{x}.shape)", "lib.pad({x}, (1, 2), value=0.5)", "lib.pad({x}, (-1, 1))",
    "lib.cat([{x}, {x}], {d})", "lib.cat([{x}, {leaf:{shape}}], {d})",
    "lib.stack([{x}, {x}, {leaf:{shape}}], {d})",
    "lib.split({x}, 2, {d})[0]", "lib.chunk({x}, 2, {d})[-1]", "{x}[1:]", "{x}[..., ::2]", "{x}[0]",
    "{x}[-1, ..., None]",
    "{x}[[0, -1, 0]]", "{x}[..., [0, 0]]", "{x}[{x} > 0.1]", "{x}[None]", "{x}[:, 1:]", "lib.sum({x} * {x})",
    "lib.index_select({x}, {d}, lib.tensor([0, 0]))", "{x}.sum_to_size({x0}, 1)", "{x} - {x}.mean({d}, keepdim=True)",
    "lib.gather({x}, 1, lib.tensor([[0, 0], [1, 0]]))", "lib.embedding(lib.tensor([[1, 0], [1, 1]]), {x})",
    "{x} @ {leaf:(x-1, 3)}", "{leaf:(3, x-2)} @ {x}", "{x} @ {x}.mT", "{x} @ {leaf:(x-1,)}",
    "{leaf:(2, 1, 3, x-2)} @ {x}",
    "lib.linear({x}, {leaf:(2, x-1)}, {leaf:(2,)})", "lib.linear({x}, {leaf:(3, x-1)})",
    "lib.einsum('ij,kj->ik', {x}, {leaf:(2, x1)})", "lib.einsum('ij,jk,ki->i', {x}, {leaf:(x1, 2)}, {leaf:(2, x0)})",
    "lib.outer({x}, {leaf:(3,)})", "lib.dot({x}, {leaf:(x0,)})",
    "lib.conv1d({x}, {leaf:(2, x1, 2)}, {leaf:(2,)}, padding=1)",
    "lib.conv1d({x}, {leaf:(x1, 1, 2)}, stride=2, groups={x1})",
    "lib.conv2d({x}, {leaf:(2, x1, 2, 2)}, padding=1)",
    "lib.conv2d({x}, {leaf:(3, x1, 3, 2)}, {leaf:(3,)}, stride=2, padding=2)",
    "lib.conv2d({x}, {leaf:(2, x1, 2, 2)}, dilation=2, padding=2)",
    "lib.conv3d({x}[None], {leaf:(2, x0, 2, 1, 2)}, padding=1)",
    "lib.conv_transpose1d({x}, {leaf:(x1, 2, 3)}, stride=2, output_padding=1)",
    "lib.conv_transpose2d({x}, {leaf:(x1, 2, 2, 2)}, {leaf:(2,)}, stride=2, padding=1)",
    "lib.avg_pool1d({x}, 2)", "lib.avg_pool2d({x}, 2, 1)", "lib.max_pool1d({x}, 2)", "lib.max_pool2d({x}, 2, 1, 1)",
    "lib.batch_norm({x}, None, None, {leaf:(x1,)}, {leaf:(x1,)}, True)", "lib.mse_loss({x}, {leaf:{shape}})",
    "lib.cross_entropy({x}, lib.tensor([0] * {x0}), label_smoothing=0.1)",
    "lib.binary_cross_entropy_with_logits({x}, lib.sigmoid({leaf:{shape}}))",
    "lib.spectral_normalize({x}.reshape({x0}, -1)[:, :2], lib.ones({x0}).double(), lib.ones(2).double())[0]",
]  # fmt: skip
MOST_TRIES, MOST_ELEMENTS, MOST = 25, 300, 20.0


class Library:
    """One roof over several modules."""

    def __init__(self, *modules: Any):
        self._modules = modules

    def __getattr__(self, name: str) -> Any:
        return getattr(next(module for module in self._modules if hasattr(module, name)), name)


class Inexact:
    """A library whose results are off by a relative `size`."""

    def __init__(self, library: Library, size: float, rng: np.random.Generator):
        self._library, self._size, self._rng = library, size, rng

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def call(*arguments: Any, **options: Any) -> Any:
            made = function(*arguments, **options)
            if not getattr(made, "is_floating_point", bool)():  # a tuple, integers
                return made
            error = self._size * self._rng.standard_normal(tuple(made.shape))
            return made * (1 + self._library.as_tensor(error))

        return function if name == "tensor" else call


def torch_library() -> Library:
    import torch

    torch.set_num_threads(1)
    library = Library(torch.nn.functional, torch, torch.Tensor)
    library.elu = lambda x: torch.where(x > 0, x, torch.expm1(x))  # its own has another second derivative at 0
    library.softplus = lambda x, beta=1.0: torch.nn.functional.softplus(x, beta, threshold=100)  # exact, below
    library.spectral_normalize = lambda W, u, v: (W / (u @ W @ v), u @ W @ v)
    return library


def minigrad_library() -> Library:
    return Library(mg, mg.nn.functional, mg.Tensor)


# A program and its outcome -------------------------------------------------------------------------------------------


class Program(NamedTuple):
    leaves: dict[str, Any]
    lines: dict[str, str]  # name -> expression

    def needed(self) -> Program:
        """Without what its last line does not need."""
        wanted, lines = {list(self.lines)[-1]}, {}
        for name, expression in reversed(self.lines.items()):
            if name in wanted:
                lines[name] = expression
                wanted |= set(names(expression))
        return Program({n: a for n, a in self.leaves.items() if n in wanted}, dict(reversed(lines.items())))

    def source(self) -> str:
        lines = [f"def program(lib, {', '.join(self.leaves)}):", *(f"    {n} = {e}" for n, e in self.lines.items())]
        return "\n".join([*lines, f"    return {list(self.lines)[-1]}"])

    def function(self) -> Callable[..., Any]:
        space: dict[str, Any] = {}
        exec(self.source(), space)
        return space["program"]

    def to_paste(self) -> str:
        arrays = ", ".join(str(array.tolist()) for array in self.leaves.values())
        return f"from tests.fuzz import compare\n\n{self.source()}\n\ncompare(program, {arrays})"


def names(expression: str) -> list[str]:
    return re.findall(r"\bv\d+\b", expression)


def outcome(lib: Any, grad: Callable[..., Any], program: Callable[..., Any], arrays: list[Any]) -> dict[str, Any]:
    """Values and derivatives: of ⟨u, program⟩, and of ⟨that gradient, w⟩, for numbers u and w without a pattern."""

    def tensor(a: Any) -> Any:
        return lib.tensor(np.asarray(a, np.float64), requires_grad=True)

    def pattern(x: Any, k: int) -> Any:
        n = int(np.prod(x.shape))
        return tensor(np.sin(1.7 * np.arange(n) + k).reshape(tuple(x.shape)))

    def derivatives(y: Any, order: str, ins: dict[str, Any], *seed: Any, **options: Any) -> dict[str, Any]:
        gs = grad(y, list(ins.values()), *seed, allow_unused=True, **options) if y.requires_grad else [None] * len(ins)
        return {f"{order} {name}": g for (name, _), g in zip(ins.items(), gs, strict=True) if g is not None}

    leaves = {f"argument {i}": tensor(a) for i, a in enumerate(arrays)}
    y = program(lib, *leaves.values())
    u = pattern(y, 0)
    first = derivatives(y, "∂/∂", leaves, u, create_graph=True)
    second = {}
    if first:
        total = sum((g * pattern(g, 1)).sum() for g in first.values())
        second = derivatives(total, "∂²/∂", {**leaves, "the upstream gradient": u})
    return {name: x.detach().numpy() for name, x in {"value": y, **first, **second}.items()}


def difference(program: Callable[..., Any], *arrays: Any) -> str | None:
    """What differs between minigrad and torch, by more than rounding could explain; None if nothing does.

    How far rounding carries is seen from torch alone, with arguments and results off by a few units in the last place.
    """
    import torch

    lib = torch_library()
    arrays = [np.asarray(a, np.float64) for a in arrays]  # type: ignore[assignment]
    theirs = outcome(lib, torch.autograd.grad, program, list(arrays))
    try:
        ours = outcome(minigrad_library(), mg.grad, program, list(arrays))
    except Exception as error:
        return f"minigrad: {type(error).__name__}: {error}"
    noise: list[dict[str, Any]] = []
    for name in sorted({*ours, *theirs}):
        x, y = (np.asarray(found.get(name, 0.0)) for found in (ours, theirs))  # None is a gradient of zero
        if name in ours and name in theirs and x.shape != y.shape:
            return f"{name}: shape {x.shape}, torch {y.shape}"
        error = np.max(np.abs(x - y), initial=0)
        if error <= 1e-11 * (1 + np.max(np.abs(y), initial=0)) or not np.isfinite(y).all():  # torch's own NaN
            continue
        if not noise:
            rng = np.random.default_rng(0)
            for size in (1e-15, 1e-14, 1e-13, 1e-12) * 3:
                moved = [a * (1 + size * rng.standard_normal(a.shape)) for a in arrays]
                noise.append(outcome(Inexact(lib, size, rng), torch.autograd.grad, program, moved))
        allowed = 100 * max(np.max(np.abs(n.get(name, 0.0) - y), initial=0) for n in noise)
        if np.isfinite(allowed) and not error <= allowed:  # NaN next to the point: it is a singular one
            return f"{name}: off by {error:.3g}, where rounding may make {allowed:.3g}\nminigrad {x}\ntorch {y}"
    return None


def compare(program: Callable[..., Any], *arrays: Any) -> None:
    """AssertionError if minigrad and torch differ."""
    found = difference(program, *arrays)
    assert found is None, found


# Making programs, and making them smaller ----------------------------------------------------------------------------


class Choices(dict[str, Any]):
    """The places of a template, filled by what a program has at that point; KeyError where it has nothing that fits."""

    def __init__(self, rng: random.Random, values: dict[str, Any], new_leaf: Callable[[tuple[int, ...]], str]):
        self._rng, self._values, self._new_leaf = rng, values, new_leaf

    def fill(self, template: str) -> str:
        for key in "xpq":  # before what is to fit them
            if "{" + key + "}" in template:
                self[key]
        while fields := re.findall(r"\{([^{}]*)\}", template):  # the innermost first
            template = template.replace("{" + fields[0] + "}", str(self[fields[0]]), 1)
        return template

    def __missing__(self, key: str) -> Any:
        x = None if key in ("x", "p", "q") else self._values[next(self[k] for k in "xpq" if k in self)]
        if key.startswith("leaf:"):
            shape = re.sub(r"x(-?\d)", r"shape[\1]", key[5:])
            return self._new_leaf(eval(shape, {"shape": tuple(x.shape)}))
        if key in ("x", "p", "q"):
            least = {"x": -np.inf, "p": 0.1, "q": 0.1}[key]
            fit = [n for n, v in self._values.items() if v.numel() and (abs(v) if key == "q" else v).min() > least]
            self[key] = self._rng.choice([*fit, *fit[-1:] * 2 * len(fit)])  # mostly the newest: programs grow deep
        elif key == "y":
            fit = [n for n, v in self._values.items() if broadcast(v.shape, x.shape)]
            self[key] = self._rng.choice(fit)
        elif key in ("d", "d2"):
            self[key] = self._rng.randrange(-x.ndim, x.ndim)
        elif key == "dims":
            self[key] = tuple(self._rng.sample(range(x.ndim), self._rng.randint(1, x.ndim)))
        elif key == "order":
            self[key] = tuple(self._rng.sample(range(x.ndim), x.ndim))
        elif key == "keep":
            self[key] = self._rng.choice([True, False])
        elif key == "shape":
            self[key] = tuple(x.shape)
        else:
            self[key] = x.shape[int(key[1:])]
        return self[key]


def broadcast(*shapes: Any) -> bool:
    try:
        return bool(np.broadcast_shapes(*map(tuple, shapes)) or True)
    except ValueError:
        return False


def generate(rng: random.Random) -> Program:
    """A program that runs in torch, with values of moderate size."""
    import torch

    lib = torch_library()
    leaves: dict[str, Any] = {}
    values: dict[str, Any] = {}
    lines: dict[str, str] = {}

    def new_leaf(shape: tuple[int, ...]) -> str:
        name = f"v{len(leaves) + len(lines)}"
        array = np.array([round(rng.uniform(-1.5, 2.0), 3) for _ in range(int(np.prod(shape)))]).reshape(shape)
        leaves[name] = array
        values[name] = torch.tensor(array)
        return name

    for _ in range(rng.randint(1, 2)):
        new_leaf(tuple(rng.randint(1, 4) for _ in range(rng.choice([0, 1, 2, 2, 3, 4]))))
    for _ in range(rng.randint(1, MOST_TRIES)):
        kept = dict(leaves), dict(values)
        try:
            expression = Choices(rng, values, new_leaf).fill(rng.choice(TEMPLATES))
            value = eval(expression, {"lib": lib, **values})
            sound = value.dtype == torch.float64 and value.ndim <= 5 and value.numel() <= MOST_ELEMENTS
            if not (sound and bool(torch.isfinite(value).all()) and (not value.numel() or value.abs().max() < MOST)):
                raise ValueError("not here")
        except Exception:  # it does not fit what there is
            for there, before in zip((leaves, values), kept, strict=True):
                there.clear()
                there.update(before)
            continue
        name = f"v{len(leaves) + len(lines)}"
        lines[name], values[name] = expression, value
    return Program(leaves, lines).needed() if lines else generate(rng)


def fails(program: Program) -> bool:
    try:
        return difference(program.function(), *program.leaves.values()) is not None
    except Exception:  # torch refuses it
        return False


def smaller(program: Program) -> Program:
    """The smallest program that still fails: ended earlier, lines made leaves, leaves made smaller and rounder."""
    while True:
        for candidate in candidates(program):
            if fails(candidate):
                program = candidate
                break
        else:
            return program


def candidates(program: Program) -> list[Program]:
    found = []
    values = {name: np.array(a) for name, a in program.leaves.items()}
    lib = torch_library()
    held = {name: lib.tensor(a) for name, a in values.items()}
    for name, expression in program.lines.items():
        held[name] = eval(expression, {"lib": lib, **held})
    for i, name in enumerate(program.lines):
        lines = list(program.lines.items())
        if i + 1 < len(lines):
            found.append(Program(program.leaves, dict(lines[: i + 1])).needed())
            leaf = {name: held[name].numpy().copy()}
            found.append(Program({**program.leaves, **leaf}, dict(lines[:i] + lines[i + 1 :])).needed())
    for name, array in program.leaves.items():
        halves = [np.array_split(array, 2, d)[k] for d in range(array.ndim) if array.shape[d] > 1 for k in (0, 1)]
        simpler = [a for a in (*halves, np.round(array, 1)) if not np.array_equal(a, array)]
        found += [Program({**program.leaves, name: a}, program.lines) for a in simpler]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--programs", type=int, default=sys.maxsize, help="stop after so many, whatever the time")
    parser.add_argument("--seed", type=int, default=None, help="for the same programs again")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # torch's, of .T
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    start = shown = time.monotonic()
    number = lines = 0
    while number < given.programs and time.monotonic() - start < 60 * given.minutes:
        program = generate(random.Random(f"{seed} {number}"))
        if fails(program):
            program = smaller(program)
            print(f"\nseed {seed}, program {number}: {difference(program.function(), *program.leaves.values())}")
            print(f"\n{program.to_paste()}")
            return 1
        number, lines = number + 1, lines + len(program.lines)
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{(shown - start) / 60:.1f} min: {number} programs, {lines} ops, seed {seed}", flush=True)
    print(f"no difference in {number} programs of {lines} ops, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
