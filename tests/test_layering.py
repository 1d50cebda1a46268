"""Imports only go down; compilers, devices and kernels are known only where they belong. Read from the sources."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import minigrad as mg
from minigrad.kernels import cpu

ROOT = Path(mg.__file__).parent
OPS = (
    "_arguments creation _operands comparison unary arithmetic activation shape index reduce softmax matmul conv pool "
    "batch_norm inplace spectral singular linear_map conventions"
)
LAYERS = [  # from the bottom up; a module belongs to the entry with the longest name that starts its own
    "_interrupt kernels.scalar kernels",
    "kernels.cpu",
    "kernels.cuda._numba",
    "kernels.cuda._stream",
    "kernels.cuda.launch kernels.cuda.memory",
    "kernels.cuda._places",
    "kernels.cuda.array",
    "kernels.cuda",
    "_errors _dtypes _random _mode",
    "_files",
    "device",
    "_tensor",
    "_tree",
    "_op",
    "autograd",
    *[f"ops.{name}" for name in OPS.split()],
    "ops",
    "_differences",
    "_comparisons",
    "_gradcheck",
    "nn",
    "optim",
    "checkpoint",
    "spectral",
    "_trace",
    "_onnx",
    "export",
    "_watch _guards",
    " _capture _sharing",  # minigrad itself, the public names; what belongs to mg.cuda
    "spectral.study _cases _info",
    "spectral.sweep",
    "_checks _libraries",
    "cli",
    "__main__",
]
RANKS = {f"minigrad.{name}".rstrip("."): rank for rank, names in enumerate(LAYERS) for name in names.split(" ")}
PUBLIC = RANKS["minigrad"]
SOURCES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in sorted(ROOT.rglob("*.py"))
}


def rank(module: str) -> int:
    """Of `minigrad` itself only if the name is exactly that: every module has a layer of its own."""
    known = [name for name in RANKS if module == name or (name != "minigrad" and module.startswith(name + "."))]
    assert known, f"{module} has no layer: give it one in {__name__}"
    return RANKS[max(known, key=len)]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of each import but those for type checkers; names of modules are told from names in them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in SOURCES else str(node.module), node.lineno
        else:
            yield from imports(node)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module: str) -> None:
    for imported, line in imports(SOURCES[module]):
        if imported.partition(".")[0] == "minigrad":
            assert rank(imported) <= rank(module), f"{module}:{line} imports {imported}, which is above it"


@pytest.mark.parametrize("module", SOURCES)
def test_only_kernels_know_the_compiler(module: str) -> None:
    found = [line for imported, line in imports(SOURCES[module]) if imported.partition(".")[0] in ("numba", "llvmlite")]
    assert not found or module.startswith("minigrad.kernels.") or rank(module) > PUBLIC  # which report versions


def test_one_module_imports_the_gpus_compiler() -> None:
    knowing = set()
    for module, tree in SOURCES.items():
        for node in ast.walk(tree):
            statement = ast.unparse(node) if isinstance(node, ast.Import | ast.ImportFrom) else ""
            if re.search(r"\bnumba(\.| import .*)cuda", statement):
                knowing.add(module)
    assert knowing == {"minigrad.kernels.cuda._numba"}


def test_gpu_kernels_are_declared_and_not_jitted_by_hand() -> None:
    """The compile gate knows what is declared with `@kernel`."""
    for module, tree in SOURCES.items():
        if module.startswith("minigrad.kernels.cuda"):
            jitted = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "jit"]
            assert not jitted or module == "minigrad.kernels.cuda.launch"


def words(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names and strings, docstrings left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            yield node.value, node.lineno


@pytest.mark.parametrize("module", [m for m in SOURCES if rank(m) < PUBLIC])
def test_only_the_device_layer_knows_of_cuda(module: str) -> None:
    if module != "minigrad.device" and not module.startswith("minigrad.kernels.cuda"):
        found = [(word, line) for word, line in words(SOURCES[module]) if "cuda" in word.lower()]
        assert not found


def kernels_called(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """`k.name` and `kernels(…).name`: what ops ask of a device's kernels."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            called = isinstance(owner, ast.Call) and ast.unparse(owner.func) in ("kernels", "devices.kernels")
            if called or (isinstance(owner, ast.Name) and owner.id == "k"):
                yield node.attr, node.lineno


@pytest.mark.parametrize("module", [m for m in SOURCES if RANKS["minigrad._tensor"] <= rank(m) < PUBLIC])
def test_every_kernel_that_is_called_exists(module: str) -> None:
    missing = [(name, line) for name, line in kernels_called(SOURCES[module]) if not hasattr(cpu, name)]
    assert not missing


def test_that_the_tests_above_look_at_something() -> None:
    assert len(SOURCES) > 40
    assert {name for name, _ in kernels_called(SOURCES["minigrad.ops.reduce"])} >= {"sum", "norm", "amax"}
    assert "minigrad._dtypes" in [m for m, _ in imports(SOURCES["minigrad.ops.comparison"])]


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 430} == {}


# The methods that the layers above attach to Tensor ------------------------------------------------------------------


def declared() -> dict[str, ast.FunctionDef]:
    (cls,) = (n for n in ast.parse((ROOT / "_methods.pyi").read_text()).body if isinstance(n, ast.ClassDef))
    return {node.name: node for node in cls.body if isinstance(node, ast.FunctionDef)}


def attached() -> dict[str, object]:
    everything = {name: getattr(thing, "fget", thing) for name, thing in vars(mg.Tensor).items()}
    return {name: f for name, f in everything.items() if inspect.isfunction(f) and f.__module__ != "minigrad._tensor"}


def test_the_declared_methods_are_the_attached_ones() -> None:
    assert set(declared()) == set(attached())


@pytest.mark.parametrize("name", [name for name in declared() if not name.startswith("__")])
def test_the_declared_arguments_are_the_real_ones(name: str) -> None:
    stub = declared()[name].args
    real = list(inspect.signature(attached()[name]).parameters.values())[1:]
    arguments = [a.arg for a in stub.args[1:]] + ([stub.vararg.arg] if stub.vararg else [])
    assert arguments + [a.arg for a in stub.kwonlyargs] == [p.name for p in real]
    defaults = [ast.literal_eval(d) for d in [*stub.defaults, *stub.kw_defaults] if d is not None]
    assert defaults == [p.default for p in real if p.default is not p.empty]


def test_every_module_imports_alone() -> None:
    for module in SOURCES:
        if not module.endswith("__main__") and "study" not in module:
            assert importlib.import_module(module)
