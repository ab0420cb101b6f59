"""The mark in a model's config that says how it was trained, so that a saved checkpoint tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paperhooks.compat import times_written
from torch import nn

__all__ = ["mark", "read_mark", "weights_of"]

#: The config's attribute that holds one entry a plugin.
_ATTRIBUTE = "paperhooks"
_NAME = "cca"


def read_mark(model: nn.Module) -> dict[str, Any] | None:
    """The settings a model was trained with, or None for a model without a mark."""
    marks = getattr(model.config, _ATTRIBUTE, None)
    found = marks.get(_NAME) if isinstance(marks, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else None


def mark(model: nn.Module, settings: Mapping[str, Any]) -> Callable[[], None]:
    """Write settings into ``model.config``, from where ``save_pretrained`` takes them to ``config.json``.

    A session does this while it is open, and leaves the mark behind on a model that it has trained.

    :return: a function that puts the config back; it leaves alone what others have written since, be it another mark or
        other plugins' entries.
    """
    config: Any = model.config
    before = getattr(config, _ATTRIBUTE, None)
    own = dict(settings)
    written = {**(before or {}), _NAME: own}
    setattr(config, _ATTRIBUTE, written)

    def undo() -> None:
        marks = getattr(config, _ATTRIBUTE, None)
        if not isinstance(marks, Mapping) or marks.get(_NAME) is not own:
            return
        left = before
        if marks is not written:
            others = {name: entry for name, entry in marks.items() if name != _NAME}
            left = {**others, **({_NAME: before[_NAME]} if before and _NAME in before else {})} or None
        if left is None:
            delattr(config, _ATTRIBUTE)
        else:
            setattr(config, _ATTRIBUTE, left)

    return undo


def weights_of(model: nn.Module) -> list[tuple[int, int]]:
    """Which tensors the parameters are (sharding puts others in their place), and how often each was written."""
    return [(id(parameter), times_written(parameter)) for parameter in model.parameters()]
