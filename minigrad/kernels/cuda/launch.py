"""How a kernel is declared and launched.

A kernel is a plain Python function with a signature per dtype. Nothing is compiled until the first launch with a
dtype; and as the dtypes are declared, a test can compile all of them without a GPU.

    @kernel("u4 T[] T", T=FLOATS)
    def _fill(size, out, value):
        for i in items(size):
            out[i] = value

    _fill.each(out.size, out, 0)                     # a thread for each of so many items, the first argument
    _tiles[blocks, threads](out, x, rows, columns)   # a grid of one's own
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minigrad.kernels.cuda._numba import SIMULATED, cuda, kept_on_disk, steps, type_of
from minigrad.kernels.cuda._stream import Variant, here

FLOATS = ("f4", "f8")
NUMBERS = (*FLOATS, "i8")
COMPUTED = (*NUMBERS, "?")  # all but float16, which is only stored: it is computed with in float32
STORED = (*COMPUTED, "f2")

#: Threads of a block. In the simulator a thread costs much, and small arrays shall fill several blocks.
BLOCK = 4 if SIMULATED else 256
_MOST_BLOCKS = 2 if SIMULATED else 1024  # as many as an H200 runs at once, and the same on every device

KERNELS: dict[str, Kernel] = {}  # all that were declared, by name


class Kernel:
    """A declared kernel: `k[grid, block](*args)` or `k.each(size, *args)` launches it.

    An argument for an array (`T[]`) is a contiguous `Array`; one for a scalar (`T`, `u4`) a
    number, converted to the declared type. A letter stands for one dtype throughout a launch.
    """

    def __init__(
        self, fn: Callable[..., Any], name: str, signature: str, dtypes: dict[str, tuple[str, ...]], threads: int | None
    ):
        self.fn, self.name, self.threads, self.__doc__ = fn, name, threads, fn.__doc__
        self._letters = {letter: tuple(map(np.dtype, choices)) for letter, choices in dtypes.items()}
        self._parameters = [(part.removesuffix("[]"), part.endswith("[]")) for part in signature.split()]
        self._telling = [i for i, (letter, array) in enumerate(self._parameters) if array and letter in dtypes]
        self._variants: dict[tuple[int, ...], Variant] = {}
        if len(self._parameters) != fn.__code__.co_argcount:
            raise TypeError(f"kernel {name}: {fn.__code__.co_argcount} parameters, but the signature is {signature!r}")
        if self.name in KERNELS:
            raise TypeError(f"kernel {name}: declared twice")
        KERNELS[name] = self

    @functools.cached_property
    def _compiled(self) -> Any:
        dispatcher = cuda.jit(self.fn) if SIMULATED else cuda.jit(self.fn, launch_bounds=self.threads)
        return kept_on_disk(dispatcher, self.name)

    def __getitem__(self, configuration: tuple[Any, Any]) -> Callable[..., None]:
        return functools.partial(self._launch, *configuration)

    def each(self, size: int, *args: Any) -> None:
        """Launch with enough threads for all `items`; not at all for none."""
        if size:
            self._launch(min(-(-size // BLOCK), _MOST_BLOCKS), BLOCK, size, *args)

    def _launch(self, grid: Any, block: Any, *args: Any) -> None:
        variant = self._variants.get(tuple([args[i].dtype.num for i in self._telling])) or self._variant(args)
        packed = variant.pack(args)
        if here.recording is None:
            variant.run(grid, block, packed)
        else:
            here.recording.add(variant, grid, block, packed, args)

    def _variant(self, args: tuple[Any, ...]) -> Variant:
        """For the dtypes of these arguments, which are checked."""
        chosen: dict[str, Any] = {}
        for i in self._telling:
            letter, dtype = self._parameters[i][0], args[i].dtype
            if chosen.setdefault(letter, dtype) != dtype:
                raise TypeError(f"kernel {self.name}: {letter} is {chosen[letter]} and {dtype} in one launch")
            if dtype not in self._letters[letter]:
                raise TypeError(f"kernel {self.name}: not declared for {letter} = {dtype}")
        parameters = [(chosen.get(letter, letter), array) for letter, array in self._parameters]
        variant = Variant(self.name, self._compiled, self._types(chosen), parameters)
        return self._variants.setdefault(tuple(args[i].dtype.num for i in self._telling), variant)

    def _types(self, chosen: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(type_of(chosen.get(letter, letter), array) for letter, array in self._parameters)

    def signatures(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """(the dtypes in words, Numba's types) of every variant that may be launched."""
        for choice in itertools.product(*self._letters.values()):
            chosen = dict(zip(self._letters, choice, strict=True))
            yield ", ".join(map(str, choice)), self._types(chosen)


def kernel(
    signature: str, *, formula: Any = None, name: str = "", threads: int | None = None, **dtypes: tuple[str, ...]
) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel: types of its parameters, and which dtypes each letter in them may stand for.

    `formula`: the function that the kernel closes over, or `name`: one of one's own; it becomes part of its name.
    `threads`: the most that a block will have, so that the compiler gives each no more registers than there are.
    """

    def declare(fn: Callable[..., Any]) -> Kernel:
        full = f"{fn.__module__.rpartition('.')[2]}.{fn.__qualname__}".replace("<locals>.", "")
        suffix = name or (formula.__name__ if formula is not None else "")
        return Kernel(fn, f"{full}.{suffix}" if suffix else full, signature, dtypes, threads)

    return declare


def helper(fn: Callable[..., Any]) -> Any:
    """A function for kernels to call; compiled as a part of them."""
    return cuda.jit(device=True)(fn)


@helper
def items(size: Any) -> Any:
    """In a kernel that `each` launches: the numbers of the items of a thread, one or, if there are many, several."""
    return steps(np.uint32(cuda.grid(1)), size, np.uint32(_MOST_BLOCKS * BLOCK))
