"""Names of torch's modules that its documentation does not promise: who has hooks on one."""

from __future__ import annotations

from torch import nn

__all__ = ["has_hooks"]


def has_hooks(module: nn.Module) -> bool:
    """Whether torch hooks stand on a module, which do not run while it is skipped."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
