"""What belongs to the whole process and no method may change: functions and classes of the libraries, settings.

A method that puts a function of its own in the place of one of torch's or transformers' changes every other model of
the process while it is attached, even if it puts the old one back in the end. :class:`ProcessState` takes down what is
there, by identity, and names later what somebody has replaced.
"""

from __future__ import annotations

import builtins
import operator
import os
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, Final

import numpy
import torch
from torch import nn

__all__ = ["ProcessState"]

#: Modules of torch that a model computes with. Others keep notes of their own while they work.
_TORCH: Final = (
    "torch",
    "torch._C._nn",
    "torch.autograd",
    "torch.linalg",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.nn.parameter",
    "torch.special",
    "torch.utils.checkpoint",
)
_FOLDERS: Final = ("torch.nn.modules", "transformers")
_TABLES: Final = (dict, OrderedDict, list, set)
#: Tables with more entries are vocabularies and the like.
_LARGE: Final = 4000
_GONE: Final = object()


class ProcessState:
    """The functions, classes and tables of torch and transformers, and the settings of the process, as they are now.

    :param model: its classes, their bases and the modules that define them are looked at too. Take the state after a
        forward: libraries load some of their parts when they are first used.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [_Place(name, owner) for name, owner in _owners(model)]
        self._settings = _settings()

    def note_settings(self) -> None:
        """Take the settings down anew; functions, classes and tables stay as they were found first."""
        self._settings = _settings()

    def changes(self, settings: bool = True) -> list[str]:
        """What is another object now, as sentences, one a place. Names that libraries load later are no change.

        :param settings: whether the settings of the process are compared too.
        """
        found = [text for place in self._places for text in place.changes()]
        now = _settings() if settings else self._settings
        return found + [f"{name} was changed" for name, value in self._settings.items() if now[name] != value]


def _owners(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What names are looked up in: modules, classes, and the tables that these hold."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    modules = dict(_modules({cls.__module__ for cls in classes}))
    for module in modules.values():
        classes |= {v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__}
    seen: set[int] = set()
    for name, owner in [*modules.items(), *((f"{cls.__module__}.{cls.__qualname__}", cls) for cls in classes)]:
        yield name, owner
        for where, table in _tables(name, owner):
            if id(table) not in seen and len(table) <= _LARGE:
                seen.add(id(table))
                yield where, table


def _modules(homes: set[str]) -> Iterator[tuple[str, ModuleType]]:
    yield "builtins", builtins
    for name, module in list(sys.modules.items()):
        inside = any(name == folder or name.startswith(f"{folder}.") for folder in _FOLDERS)
        if isinstance(module, ModuleType) and (inside or name in _TORCH or name in homes):
            yield name, module


def _tables(place: str, owner: Any) -> Iterator[tuple[str, Any]]:
    """Tables among the names of a module or class, also those inside objects such as the table of attention kernels."""
    for name, value in list(vars(owner).items()):
        if name.startswith("__"):
            continue
        if type(value) in _TABLES:
            yield f"{place}.{name}", value
        elif str(type(value).__module__).startswith("transformers."):
            inner = getattr(value, "__dict__", None) or {}
            yield from ((f"{place}.{name}.{n}", table) for n, table in list(inner.items()) if type(table) in _TABLES)


class _Place:
    """One namespace or table as it was found, and the code of its functions, which may be exchanged inside them."""

    __slots__ = ("codes", "entries", "name", "owner", "table")

    def __init__(self, name: str, owner: Any) -> None:
        self.name = name
        self.owner = owner
        self.table = type(owner) in _TABLES
        self.entries = self._now()
        self.codes = {k: v.__code__ for k, v in self.entries.items() if isinstance(v, FunctionType)}

    def _now(self) -> dict[Any, Any]:
        names: Mapping[Any, Any] = vars(self.owner) if not self.table else self.owner
        return dict(names) if isinstance(names, Mapping) else dict(enumerate(names))

    def changes(self) -> list[str]:
        """What is another object now."""
        now = self._now()
        same = len(now) == len(self.entries) and all(map(operator.is_, now.values(), self.entries.values()))
        replaced = [] if same else list(self._replaced(now))
        exchanged = (k for k, code in self.codes.items() if self.entries[k].__code__ is not code)
        return replaced + [f"{self._shown(key)} was replaced inside" for key in exchanged]

    def _replaced(self, now: dict[Any, Any]) -> Iterator[str]:
        """Only what can be called counts: libraries keep notes and counters among their names."""
        for key, old in self.entries.items():
            new = now.pop(key, _GONE)
            if (
                new is not old
                and (callable(old) or callable(new) or isinstance(old, ModuleType))
                and not _of_dynamo(key)
            ):
                yield f"{self._shown(key)} was {'deleted' if new is _GONE else 'replaced'}"
        added = (key for key, value in now.items() if self._foreign(value) and not _of_dynamo(key))
        yield from (f"{self._shown(key)} was added" for key in added)

    def _shown(self, key: Any) -> str:
        return f"{self.name}[{key!r}]" if self.table else f"{self.name}.{key}"

    def _foreign(self, value: Any) -> bool:
        """Whether something new comes from elsewhere than the library under whose names it is now."""
        own = isinstance(value, FunctionType)  # a wrapper may say that it comes from where the wrapped one does
        home = value.__globals__.get("__name__") if own else getattr(value, "__module__", None)
        libraries = (self.name.partition(".")[0], "torch", "transformers", "builtins")
        return callable(value) and str(home or "").partition(".")[0] not in libraries


def _of_dynamo(key: Any) -> bool:
    """Whether torch.compile has put something among the names of a module that it compiled code of."""
    return isinstance(key, str) and key.startswith("__") and not key.endswith("__")


def _settings() -> dict[str, Any]:
    cpu = torch.device("cpu").type
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": _numpy_state(),
        "Python's random state": random.getstate(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": torch.get_default_device(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled(cpu), torch.get_autocast_dtype(cpu)),
        "the choice of deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of matrix products": torch.get_float32_matmul_precision(),
        "the number of torch's threads": torch.get_num_threads(),
        "torch's choice of attention kernels": _attention_switches(),
        "the filters of warnings": list(warnings.filters),
        "the environment": dict(os.environ),
        "the trace function": (sys.gettrace(), sys.getprofile()),
    }


def _numpy_state() -> tuple[Any, ...]:
    state: Any = numpy.random.get_state(legacy=False)
    return state["state"]["key"].tobytes(), state["state"]["pos"], state["has_gauss"]


def _attention_switches() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()
