"""PyramidDrop (arXiv 2410.17247) as a paperhooks plugin.

with paperhooks.attach(model, PyramidDrop(stages={8: 0.5, 16: 0.25, 24: 0.125})):
    model.generate(**inputs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperhooks_pyramiddrop.calibration import Calibration, calibrate
    from paperhooks_pyramiddrop.drops import Drop
    from paperhooks_pyramiddrop.pyramiddrop import PaperPyramidDrop, PyramidDrop, RandomDrop
    from paperhooks_pyramiddrop.rank import POLICIES, Ranking
    from paperhooks_pyramiddrop.report import illustrate
    from paperhooks_pyramiddrop.schedule import DecoderShape, Savings, Schedule, solve_ratio

__version__ = "0.1.0"

__all__ = [
    "POLICIES",
    "Calibration",
    "DecoderShape",
    "Drop",
    "PaperPyramidDrop",
    "PyramidDrop",
    "RandomDrop",
    "Ranking",
    "Savings",
    "Schedule",
    "__version__",
    "calibrate",
    "illustrate",
    "solve_ratio",
]

_LAZY = {
    "Calibration": "calibration",
    "DecoderShape": "schedule",
    "Drop": "drops",
    "POLICIES": "rank",
    "PaperPyramidDrop": "pyramiddrop",
    "PyramidDrop": "pyramiddrop",
    "RandomDrop": "pyramiddrop",
    "Ranking": "rank",
    "Savings": "schedule",
    "Schedule": "schedule",
    "calibrate": "calibration",
    "illustrate": "report",
    "solve_ratio": "schedule",
}


def __getattr__(name: str) -> Any:
    # Loading the entry point imports this package; nothing heavy may come with it.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
