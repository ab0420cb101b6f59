"""Concentric Causal Attention (arXiv 2410.15926) as a paperhooks plugin.

with paperhooks.attach(model, CCA()):
    model.generate(**inputs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperhooks_cca.cca import CCA
    from paperhooks_cca.checkpoint import mark, read_mark, unmark
    from paperhooks_cca.flow import information_flow
    from paperhooks_cca.geometry import allowed_mask, positions
    from paperhooks_cca.schemes import SCHEMES, ring_permutation, ring_table

__version__ = "0.1.0"

__all__ = [
    "CCA",
    "SCHEMES",
    "__version__",
    "allowed_mask",
    "information_flow",
    "mark",
    "positions",
    "read_mark",
    "ring_permutation",
    "ring_table",
    "unmark",
]

_LAZY = {
    "CCA": "cca",
    "SCHEMES": "schemes",
    "allowed_mask": "geometry",
    "information_flow": "flow",
    "mark": "checkpoint",
    "positions": "geometry",
    "read_mark": "checkpoint",
    "ring_permutation": "schemes",
    "ring_table": "schemes",
    "unmark": "checkpoint",
}


def __getattr__(name: str) -> Any:
    # Loading the entry point imports this package; nothing heavy may come with it.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
