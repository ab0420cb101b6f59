"""The exception tree.

PaperhooksError
├── PluginError           something is wrong with a plugin or with the choice of plugins
│   ├── PluginNotFound        no installed plugin or method has that name
│   ├── PluginBroken          it is installed but cannot be imported or validated
│   ├── PluginIncompatible    it was written for another hook API, or for another kind of model
│   └── PluginConflict        two plugins or methods exclude each other
├── ModelError            something is wrong with the model or with what it was asked to do
│   ├── UnsupportedModel      core cannot find a decoder, its layers or its image tokens
│   └── UnsupportedGeneration a cache or generation mode that an attached method does not allow
├── HookError             a hook implementation returned something the model cannot take
├── ArtefactError         an artefact is damaged, or belongs to another model
├── DataError             an input file, corpus, data set, batch or run folder cannot be used
├── MissingExtra          an optional library is needed; the message names the extra
├── LibraryBroken         an optional library is installed and cannot be imported
└── RegistryError         registry.toml contradicts itself or the packages

Every message says what was asked, what was found and what to do.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "ArtefactError",
    "DataError",
    "HookError",
    "LibraryBroken",
    "MissingExtra",
    "ModelError",
    "PaperhooksError",
    "PluginBroken",
    "PluginConflict",
    "PluginError",
    "PluginIncompatible",
    "PluginNotFound",
    "RegistryError",
    "UnsupportedGeneration",
    "UnsupportedModel",
    "counted",
    "did_you_mean",
    "first_line",
    "require",
]


class PaperhooksError(Exception):
    """Base of every error that paperhooks raises on purpose."""


class PluginError(PaperhooksError):
    """A plugin, or the choice of plugins, is wrong."""


class PluginNotFound(PluginError, LookupError):
    """No installed plugin or method has the requested name."""


class PluginBroken(PluginError):
    """A plugin is installed but could not be imported or validated."""


class PluginIncompatible(PluginError):
    """A plugin speaks another hook API, or does not fit this model."""


class PluginConflict(PluginError):
    """Two plugins or methods cannot be used together."""


class ModelError(PaperhooksError, ValueError):
    """The model, or what it was asked to do, is not supported."""


class UnsupportedModel(ModelError):
    """Core cannot find in the model what a method needs."""


class UnsupportedGeneration(ModelError):
    """A cache or generation mode that an attached method does not allow."""


class HookError(PaperhooksError):
    """A hook implementation returned something that cannot be used."""


class ArtefactError(PaperhooksError):
    """An artefact is damaged, incomplete, or was made for another model."""


class DataError(PaperhooksError, ValueError):
    """An input file, corpus, data set, batch or run folder cannot be used."""


class MissingExtra(PaperhooksError, ImportError):
    """An optional dependency is missing.

    >>> str(MissingExtra("matplotlib", "paperhooks[plots]", "to draw figures"))
    "matplotlib is needed to draw figures; install it with: pip install 'paperhooks[plots]'"
    """

    def __init__(self, module: str, requirement: str, purpose: str) -> None:
        super().__init__(f"{module} is needed {purpose}; install it with: pip install '{requirement}'")


class LibraryBroken(PaperhooksError, ImportError):
    """An optional dependency is installed, and its import fails; the message ends with its own error."""


def require(module: str, requirement: str, purpose: str, *, called: str = "") -> Any:
    """The module of an optional library.

    :param requirement: what brings it, such as ``paperhooks[plots]``. :param purpose: what it is needed for.
    :param called: what pip calls the library, where that is not the module's name with hyphens.
    :raises MissingExtra: it is not installed. :raises LibraryBroken: it is, and cannot be imported.
    """
    top = module.partition(".")[0]
    called = called or top.replace("_", "-")
    try:
        importlib.import_module(top)  # first, so that what is missing is named by the library
        return importlib.import_module(module)
    except Exception as error:  # a library that does not fit another raises anything: AttributeError, OSError, ...
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            raise MissingExtra(called, requirement, purpose) from error
        raise LibraryBroken(
            f"{called} is needed {purpose}; it is installed and cannot be imported: {type(error).__name__}: {error}; "
            f"reinstall it with: pip install --force-reinstall {called}"
        ) from error


class RegistryError(PaperhooksError):
    """``registry.toml`` contradicts itself or the packages it lists."""


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word and all known words.

    >>> did_you_mean("pyramidrop", ["pyramiddrop", "cca"])
    "did you mean 'pyramiddrop'? Known: cca, pyramiddrop"
    >>> did_you_mean("x", [])
    'nothing is known here'
    """
    names = sorted(known)
    if not names:
        return "nothing is known here"
    near = difflib.get_close_matches(asked, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(names)}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun, and with the verb behind it where ``many`` is given.

    >>> counted(1, "fault"), counted(3, "fault"), counted(1, "document has", "documents have")
    ('1 fault', '3 faults', '1 document has')
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says; its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
