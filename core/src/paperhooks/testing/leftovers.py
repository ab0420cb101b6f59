"""What is still in memory after forwards: tensors that nobody has let go of, and what a method gathers on itself."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Self

import numpy
from torch import Tensor, nn

__all__ = ["NewTensors", "gathered"]

_CONTAINERS: Final = (dict, list, tuple, set, frozenset, deque)


class NewTensors:
    """Inside ``with NewTensors() as new``, tells which tensors were made since and are still alive.

    Objects that are older are set aside from Python's garbage collection meanwhile, so that looking costs little.
    """

    def __enter__(self) -> Self:
        gc.freeze()
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()

    def alive(self) -> list[Tensor]:
        """The tensors, after what is garbage has been collected."""
        gc.collect()
        return [each for each in gc.get_objects() if issubclass(type(each), Tensor)]

    def size(self) -> tuple[int, int]:
        """How many they are, and how many bytes their storages hold; views share one."""
        found = self.alive()
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found if not t.is_meta}
        return len(found), sum(storages.values())


def gathered(method: object, model: nn.Module) -> int:
    """How many entries the lists, mappings, texts, arrays and tensors hold together where a method might gather them.

    On itself, on its class, in its module, and on the modules of the model. Objects of the method's own package are
    looked into, those of others are not.
    """
    home, seen = type(method).__module__.partition(".")[0], set[int]()
    places = [*map(vars, type(method).__mro__), vars(sys.modules[type(method).__module__]), *map(vars, model.modules())]
    values = [value for place in places for value in list(place.values()) if isinstance(value, _CONTAINERS)]
    return sum(entry for value in (method, *values) for entry in _entries(value, home, seen))


def _entries(value: Any, home: str, seen: set[int]) -> Iterator[int]:
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value.numel()
    elif isinstance(value, numpy.ndarray):
        yield value.size
    elif isinstance(value, str | bytes | bytearray):
        yield len(value)
    elif isinstance(value, _CONTAINERS):
        yield len(value)
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _entries(each, home, seen)
    elif type(value).__module__.partition(".")[0] == home:
        for each in _attributes(value):
            yield from _entries(each, home, seen)


def _attributes(value: Any) -> list[Any]:
    slots = (name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()))
    slotted = [getattr(value, name) for name in slots if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).values(), *slotted]
