"""What stands for the `forward` of a module that is left to eager mode."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class Eager:
    """The `forward` of a module that is left to eager mode. Copies and pickles of the module get one of their own."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.__signature__ = inspect.signature(type(module).forward.__get__(module))

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)

    def __reduce__(self) -> tuple:
        return Eager, (self.module,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Eager:
        return Eager(memo.get(id(self.module), self.module))
