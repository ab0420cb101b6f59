"""What is installed, and what functions and modules of it take."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable

from torch import nn

from paperhooks.errors import UnsupportedModel

__all__ = ["keyword_parameters", "positional_names", "version"]


def version() -> str:
    """The transformers that is installed, for messages: ``"transformers 5.24.0"``."""
    return f"transformers {importlib.metadata.version('transformers')}"


def positional_names(parameters: Iterable[inspect.Parameter]) -> tuple[str, ...]:
    """Those of ``parameters`` that can be given by position."""
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def keyword_parameters(module: nn.Module) -> tuple[str, ...]:
    """The parameters of ``module.forward`` in order, for a module that hands further keyword arguments down.

    :raises UnsupportedModel: it takes no ``**kwargs``.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UnsupportedModel(
            f"{type(module).__name__}.forward takes no **kwargs, so per-forward state cannot reach the layers"
        )
    return positional_names(parameters)
