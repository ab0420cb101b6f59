"""Names of torch's modules that its documentation does not promise: where a module keeps its hooks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["drop_hooks", "share_hooks"]

_TABLES = ("_forward_hooks", "_forward_pre_hooks")
_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


def share_hooks(module: nn.Module, other: nn.Module) -> None:
    """From now on both have the forward hooks of ``other``, also those that are put on or taken off either of them."""
    for name in (*_TABLES, *_FLAGS):
        if hasattr(other, name):
            vars(module)[name] = getattr(other, name)


def drop_hooks(modules: Iterable[nn.Module], kind: type) -> int:
    """Take off all forward hooks of a class, also one that was registered when an interrupt came; returns how many."""
    dropped = 0
    for module in modules:
        for table in (getattr(module, name) for name in _TABLES):
            for key in [key for key, hook in list(table.items()) if isinstance(hook, kind)]:
                table.pop(key, None)
                for flags in (getattr(module, name, {}) for name in _FLAGS):
                    flags.pop(key, None)
                dropped += 1
    return dropped
