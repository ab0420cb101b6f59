"""The torch hooks that paperhooks itself puts on models: known by their class, also on copies of an attached model."""

from __future__ import annotations

from typing import Any

from torch import nn

from paperhooks.weights.compat import drop_hooks

__all__ = ["Hook", "hooked", "own_hooks", "strip_hooks"]


class Hook:
    """Base of every torch hook that a session registers; ``strip`` finds them by this class."""


def hooked(module: nn.Module) -> bool:
    """Whether a torch hook of paperhooks is on ``module`` itself."""
    tables = (module._forward_pre_hooks, module._forward_hooks)
    return any(isinstance(hook, Hook) for table in tables if table for hook in table.values())


def own_hooks(model: nn.Module) -> list[Any]:
    """The torch hooks of paperhooks on ``model`` and all modules in it."""
    tables = (table for m in model.modules() for table in (m._forward_pre_hooks, m._forward_hooks) if table)
    return [hook for table in tables for hook in table.values() if isinstance(hook, Hook)]


def strip_hooks(model: nn.Module) -> int:
    """Remove the torch hooks of paperhooks from ``model`` and all modules in it; returns how many."""
    return drop_hooks(model.modules(), Hook)
