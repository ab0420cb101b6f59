"""The options of methods as texts that are equal in all processes which attached the same, to be compared and shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import FunctionType
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from paperhooks.io.hashing import sampled_digest, tensor_digest
from paperhooks.models.engines import is_spread

__all__ = ["OptionTexts", "option_texts", "unlike", "words"]

#: How many elements of each tensor tell a model from another one.
_ELEMENTS: Final = 4

#: Option to its value as a text, by method in the order of attaching.
OptionTexts: TypeAlias = Mapping[str, Mapping[str, str]]


def option_texts(method: object) -> dict[str, str]:
    """Every option of a method that is plain, or a model that is whole here; what else it holds is left out.

    So are fields of a dataclass with ``compare=False``, as those of a list that the method fills.
    """
    if dataclasses.is_dataclass(method):
        fields = [field.name for field in dataclasses.fields(method) if field.compare]
    else:
        fields = sorted(vars(method))
    values = {field: _told(getattr(method, field, None)) for field in fields if not field.startswith("_")}
    return {field: text for field, text in values.items() if text is not None}


def words(methods: OptionTexts) -> str:
    """``pyramiddrop(ratio=0.5), cca()``, or ``nothing``."""
    return ", ".join(f"{name}({_listed(options)})" for name, options in methods.items()) or "nothing"


def unlike(mine: OptionTexts, theirs: OptionTexts) -> tuple[str, str] | None:
    """Both as words where they differ, else None; of the same methods only the options that differ are told."""
    if list(mine) != list(theirs):
        return ", ".join(mine) or "nothing", ", ".join(theirs) or "nothing"
    pairs = [(name, dict(mine[name]), dict(theirs[name])) for name in mine]
    other = [(name, *_differing(one, another)) for name, one, another in pairs if one != another]
    if not other:
        return None
    return words({name: one for name, one, _ in other}), words({name: another for name, _, another in other})


def _differing(one: dict[str, str], another: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    names = [name for name in {**one, **another} if one.get(name) != another.get(name)]
    return {name: one.get(name, "not told") for name in names}, {name: another.get(name, "not told") for name in names}


def _listed(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in options.items())


def _told(value: Any) -> str | None:
    """A value as a text, or None where processes cannot tell it alike; tensors and models by their digests."""
    if isinstance(value, nn.Module):
        return _sampled(value)
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)} {tensor_digest(value)[:12]}"
    if isinstance(value, Mapping):
        parts = [(_told(key), _told(item)) for key, item in value.items()]
        known = [f"{key}: {item}" for key, item in parts if key is not None and item is not None]
        return f"{{{', '.join(known)}}}" if len(known) == len(parts) else None
    if isinstance(value, tuple | list | set | frozenset):
        items = [text for item in value if (text := _told(item)) is not None]
        if len(items) < len(value):
            return None
        return f"[{', '.join(items if isinstance(value, tuple | list) else sorted(items))}]"
    if isinstance(value, Enum | Path | torch.dtype | torch.device | slice | range):
        return str(value)
    if isinstance(value, type | FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}({_listed(option_texts(value))})"
    return repr(value) if value is None or isinstance(value, bool | int | float | complex | str | bytes) else None


def _sampled(model: nn.Module) -> str | None:
    """A model, such as a teacher, by its class and some elements of each tensor; None for one with parts elsewhere."""
    if any(is_spread(each) or each.is_meta for each in model.parameters()):
        return None
    return f"{type(model).__name__} {sampled_digest(model, _ELEMENTS)[:12]}"
