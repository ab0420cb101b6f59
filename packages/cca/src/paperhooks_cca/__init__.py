"""Concentric Causal Attention (arXiv 2410.15926) as a paperhooks plugin.

with paperhooks.attach(model, CCA()):
    model.generate(**inputs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperhooks_cca.cca import CCA
    from paperhooks_cca.chair import ObjectTable, chair_scores
    from paperhooks_cca.chair_objects import COCO_OBJECTS
    from paperhooks_cca.chair_task import Chair
    from paperhooks_cca.checkpoint import mark, read_mark, unmark
    from paperhooks_cca.flow import information_flow
    from paperhooks_cca.geometry import allowed_mask, positions
    from paperhooks_cca.mme import mme_scores
    from paperhooks_cca.mme_task import Mme
    from paperhooks_cca.pope import pope_scores
    from paperhooks_cca.pope_task import Pope
    from paperhooks_cca.schemes import SCHEMES, ring_permutation, ring_table

__version__ = "0.1.0"

__all__ = [
    "CCA",
    "COCO_OBJECTS",
    "SCHEMES",
    "Chair",
    "Mme",
    "ObjectTable",
    "Pope",
    "__version__",
    "allowed_mask",
    "chair_scores",
    "information_flow",
    "mark",
    "mme_scores",
    "pope_scores",
    "positions",
    "read_mark",
    "ring_permutation",
    "ring_table",
    "unmark",
]

_LAZY = {
    "CCA": "cca",
    "COCO_OBJECTS": "chair_objects",
    "Chair": "chair_task",
    "Mme": "mme_task",
    "ObjectTable": "chair",
    "Pope": "pope_task",
    "SCHEMES": "schemes",
    "allowed_mask": "geometry",
    "chair_scores": "chair",
    "information_flow": "flow",
    "mark": "checkpoint",
    "mme_scores": "mme",
    "pope_scores": "pope",
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
