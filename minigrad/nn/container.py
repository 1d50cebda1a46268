"""Modules that hold modules in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, overload

from minigrad.nn.module import Module


class ModuleList(Module):
    """A list of modules, registered under "0", "1", …; a forward of its own it has not.

    >>> import minigrad as mg
    >>> layers = mg.nn.ModuleList([mg.nn.Linear(2, 2), mg.nn.ReLU()])
    >>> layers.append(mg.nn.Linear(2, 1))
    ModuleList(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=1, bias=True)
    )
    """

    def __init__(self, modules: Iterable[Module] = ()):
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> Self:
        """Add a module at the end, and return the list."""
        name = len(self)
        while str(name) in self._modules:  # a part of a Sequential keeps its names, and "1" may be its first one
            name += 1
        self.register_module(str(name), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end, and return the list."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Add a module before the one at `index`, and return the list."""
        modules = list(self)
        modules.insert(index, module)
        self._claim(str(len(self)), module, Module)  # before the others are taken out
        return self._replace(modules)

    def _replace(self, modules: list[Module]) -> Self:
        self._modules.clear()
        return self.extend(modules)

    def _key(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__} of {len(self)} modules: no index {index}")
        return list(self._modules)[index]

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Module | Self:
        if isinstance(index, slice):
            part = type(self)()
            for name, module in list(self._modules.items())[index]:
                part.register_module(name if isinstance(self, Sequential) else str(len(part)), module)
            return part
        return self._modules[self._key(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self.register_module(self._key(index), module)

    def __delitem__(self, index: int) -> None:
        del self._modules[self._key(index)]
        if all(name.isdigit() for name in self._modules):
            self._replace(list(self))

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(list(self._modules.values()))


class Sequential(ModuleList):
    """Modules one after the other, each fed with the output of the one before; named "0", "1", … or by a dict.

    >>> import minigrad as mg
    >>> net = mg.nn.Sequential(mg.nn.Linear(4, 3), mg.nn.Tanh())
    >>> net(mg.ones(2, 4)).shape
    (2, 3)
    >>> list(mg.nn.Sequential({"hidden": mg.nn.Linear(4, 3, bias=False)}).state_dict())
    ['hidden.weight']
    """

    def __init__(self, *modules: Module | Mapping[str, Module]):
        super().__init__()
        for given in modules:
            if isinstance(given, Mapping):
                for name, module in given.items():
                    self.register_module(name, module)
            else:
                self.append(given)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
