"""MiniPLM (arXiv 2410.17215) as a paperhooks plugin: score a corpus with two models, keep what teaches.

rows = open_rows("packed/")
score(teacher, rows, "scores/teacher", tokenizer=tokenizer)
score(reference, rows, "scores/reference", tokenizer=tokenizer)
chosen = select(diff("scores/teacher", "scores/reference"), ratio=0.5)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperhooks_miniplm.collating import collate
    from paperhooks_miniplm.converting import convert
    from paperhooks_miniplm.corpora import open_corpus
    from paperhooks_miniplm.differing import Difference, diff
    from paperhooks_miniplm.distilling import Distil, DistilTerm
    from paperhooks_miniplm.divergences import DistillationLoss, distillation_loss
    from paperhooks_miniplm.duplicates import duplicates_of
    from paperhooks_miniplm.exporting import export, load_selection, read_index
    from paperhooks_miniplm.miniplm import MiniPLM
    from paperhooks_miniplm.packing import Packer, PackReport, pack
    from paperhooks_miniplm.planning import Plan, plan
    from paperhooks_miniplm.record_rows import StreamRows
    from paperhooks_miniplm.records import Document
    from paperhooks_miniplm.reporting import report
    from paperhooks_miniplm.rows import MemoryRows, Row, RowSource
    from paperhooks_miniplm.scaling import ScalingLaw, fit_scaling, published_table
    from paperhooks_miniplm.schedule import lr_at, warmup_cosine
    from paperhooks_miniplm.scores import Scores, merge
    from paperhooks_miniplm.scoring import LogLikelihood, ScoringWarning
    from paperhooks_miniplm.selecting import Selection, select
    from paperhooks_miniplm.shards import Shards, write_shards
    from paperhooks_miniplm.sources import open_rows, read_documents
    from paperhooks_miniplm.units import score
    from paperhooks_miniplm.views import SelectedDataset, StreamDataset, TrainingCollator, sequence_mean_loss

__version__ = "0.1.0"

_HOMES: dict[str, tuple[str, ...]] = {
    "collating": ("collate",),
    "converting": ("convert",),
    "corpora": ("open_corpus",),
    "differing": ("Difference", "diff"),
    "distilling": ("Distil", "DistilTerm"),
    "divergences": ("DistillationLoss", "distillation_loss"),
    "duplicates": ("duplicates_of",),
    "exporting": ("export", "load_selection", "read_index"),
    "miniplm": ("MiniPLM",),
    "packing": ("PackReport", "Packer", "pack"),
    "planning": ("Plan", "plan"),
    "record_rows": ("StreamRows",),
    "records": ("Document",),
    "reporting": ("report",),
    "rows": ("MemoryRows", "Row", "RowSource"),
    "scaling": ("ScalingLaw", "fit_scaling", "published_table"),
    "schedule": ("lr_at", "warmup_cosine"),
    "scores": ("Scores", "merge"),
    "scoring": ("LogLikelihood", "ScoringWarning"),
    "selecting": ("Selection", "select"),
    "shards": ("Shards", "write_shards"),
    "sources": ("open_rows", "read_documents"),
    "units": ("score",),
    "views": ("SelectedDataset", "StreamDataset", "TrainingCollator", "sequence_mean_loss"),
}
_LAZY = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Difference",
    "Distil",
    "DistilTerm",
    "DistillationLoss",
    "Document",
    "LogLikelihood",
    "MemoryRows",
    "MiniPLM",
    "PackReport",
    "Packer",
    "Plan",
    "Row",
    "RowSource",
    "ScalingLaw",
    "Scores",
    "ScoringWarning",
    "SelectedDataset",
    "Selection",
    "Shards",
    "StreamDataset",
    "StreamRows",
    "TrainingCollator",
    "__version__",
    "collate",
    "convert",
    "diff",
    "distillation_loss",
    "duplicates_of",
    "export",
    "fit_scaling",
    "load_selection",
    "lr_at",
    "merge",
    "open_corpus",
    "open_rows",
    "pack",
    "plan",
    "published_table",
    "read_documents",
    "read_index",
    "report",
    "score",
    "select",
    "sequence_mean_loss",
    "warmup_cosine",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    # Loading the entry point imports this package; nothing heavy may come with it.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
