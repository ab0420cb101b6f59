"""MathNeuro (arXiv 2410.16930) as a paperhooks plugin: the parameters of a skill, found with forward passes alone.

target = collect(model, maths, tokenizer=tokenizer)
reference = collect(model, prose, tokenizer=tokenizer)
skill = select(model, target, reference, ratio=0.05)
with apply(model, skill, scale=0.0):  # undone at the end, bit for bit
    model.generate(**inputs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperhooks_mathneuro.choosing import Choice, choose, split
    from paperhooks_mathneuro.collecting import CoverageWarning, collect
    from paperhooks_mathneuro.controlling import CONTROLS, control, controls
    from paperhooks_mathneuro.editing import EditWarning, Surgery, apply
    from paperhooks_mathneuro.effects import Change, Contrast, Effects, Measurement, holm, paired_p
    from paperhooks_mathneuro.evaluating import evaluate
    from paperhooks_mathneuro.mathneuro import MathNeuro
    from paperhooks_mathneuro.matrices import Coverage, Matrix, find_matrices
    from paperhooks_mathneuro.overlapping import Overlap, overlap
    from paperhooks_mathneuro.reporting import report
    from paperhooks_mathneuro.selecting import SelectionWarning, select, sweep
    from paperhooks_mathneuro.selections import Masks, Recipe, Selection, load_selection
    from paperhooks_mathneuro.stabilities import NoiseFloor, Stability, noise_floor, stability
    from paperhooks_mathneuro.statistics import Statistics
    from paperhooks_mathneuro.studying import Study, study
    from paperhooks_mathneuro.texts import OFFICIAL_TEMPLATE, TEMPLATE, Sample, read_records, tokenized
    from paperhooks_mathneuro.training import TrainOnlyCallback, train_only

__version__ = "0.1.0"

_HOMES: dict[str, tuple[str, ...]] = {
    "choosing": ("Choice", "choose", "split"),
    "collecting": ("CoverageWarning", "collect"),
    "controlling": ("CONTROLS", "control", "controls"),
    "editing": ("EditWarning", "Surgery", "apply"),
    "effects": ("Change", "Contrast", "Effects", "Measurement", "holm", "paired_p"),
    "evaluating": ("evaluate",),
    "mathneuro": ("MathNeuro",),
    "matrices": ("Coverage", "Matrix", "find_matrices"),
    "overlapping": ("Overlap", "overlap"),
    "reporting": ("report",),
    "selecting": ("SelectionWarning", "select", "sweep"),
    "selections": ("Masks", "Recipe", "Selection", "load_selection"),
    "stabilities": ("NoiseFloor", "Stability", "noise_floor", "stability"),
    "statistics": ("Statistics",),
    "studying": ("Study", "study"),
    "texts": ("OFFICIAL_TEMPLATE", "TEMPLATE", "Sample", "read_records", "tokenized"),
    "training": ("TrainOnlyCallback", "train_only"),
}
_LAZY = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CONTROLS",
    "OFFICIAL_TEMPLATE",
    "TEMPLATE",
    "Change",
    "Choice",
    "Contrast",
    "Coverage",
    "CoverageWarning",
    "EditWarning",
    "Effects",
    "Masks",
    "MathNeuro",
    "Matrix",
    "Measurement",
    "NoiseFloor",
    "Overlap",
    "Recipe",
    "Sample",
    "Selection",
    "SelectionWarning",
    "Stability",
    "Statistics",
    "Study",
    "Surgery",
    "TrainOnlyCallback",
    "__version__",
    "apply",
    "choose",
    "collect",
    "control",
    "controls",
    "evaluate",
    "find_matrices",
    "holm",
    "load_selection",
    "noise_floor",
    "overlap",
    "paired_p",
    "read_records",
    "report",
    "select",
    "split",
    "stability",
    "study",
    "sweep",
    "tokenized",
    "train_only",
]


def __getattr__(name: str) -> Any:
    # Loading the entry point imports this package; nothing heavy may come with it.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
