"""paperhooks: research papers as plugins for Hugging Face transformers.

>>> import paperhooks
>>> with paperhooks.attach(model, "pyramiddrop") as session:  # doctest: +SKIP
...     model.generate(**inputs)

Importing this package loads neither torch nor transformers: every name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from paperhooks.errors import (
    ArtefactError,
    DataError,
    HookError,
    MissingExtra,
    ModelError,
    PaperhooksError,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
    RegistryError,
    UnsupportedGeneration,
    UnsupportedModel,
)
from paperhooks.info import HOOK_API, Paper, PluginInfo, Traits
from paperhooks.markers import hookimpl

if TYPE_CHECKING:
    from paperhooks.comparing import Comparison, compare
    from paperhooks.compression import CompressionRequest, Level, compress
    from paperhooks.data import score, select
    from paperhooks.evaluation import EvaluationResult, evaluate, rescore
    from paperhooks.evaluation_callback import EvaluationCallback
    from paperhooks.inputs import DecoderInputs, LayerInputs
    from paperhooks.loss import HooksTrainerMixin, LossContext
    from paperhooks.modelview import ModelView
    from paperhooks.runtime import Call, Site
    from paperhooks.session import Session, active_session, attach, strip
    from paperhooks.tasks import Task, TaskInfo
    from paperhooks.weights import Artefact, WeightJournal

__version__ = "0.1.0"

__all__ = [
    "HOOK_API",
    "Artefact",
    "ArtefactError",
    "Call",
    "Comparison",
    "CompressionRequest",
    "DataError",
    "DecoderInputs",
    "EvaluationCallback",
    "EvaluationResult",
    "HookError",
    "HooksTrainerMixin",
    "LayerInputs",
    "Level",
    "LossContext",
    "MissingExtra",
    "ModelError",
    "ModelView",
    "Paper",
    "PaperhooksError",
    "PluginBroken",
    "PluginConflict",
    "PluginError",
    "PluginIncompatible",
    "PluginInfo",
    "PluginNotFound",
    "RegistryError",
    "Session",
    "Site",
    "Task",
    "TaskInfo",
    "Traits",
    "UnsupportedGeneration",
    "UnsupportedModel",
    "WeightJournal",
    "__version__",
    "active_session",
    "attach",
    "compare",
    "compress",
    "evaluate",
    "hookimpl",
    "rescore",
    "score",
    "select",
    "strip",
]

#: Public name to the module that defines it; fetched on first use (PEP 562).
_LAZY = {
    "Artefact": "weights",
    "Call": "runtime",
    "Comparison": "comparing",
    "CompressionRequest": "compression",
    "DecoderInputs": "inputs",
    "EvaluationCallback": "evaluation_callback",
    "EvaluationResult": "evaluation",
    "HooksTrainerMixin": "loss",
    "LayerInputs": "inputs",
    "Level": "compression",
    "LossContext": "loss",
    "ModelView": "modelview",
    "Session": "session",
    "Site": "runtime",
    "Task": "tasks",
    "TaskInfo": "tasks",
    "WeightJournal": "weights",
    "active_session": "session",
    "attach": "session",
    "compare": "comparing",
    "compress": "compression",
    "evaluate": "evaluation",
    "rescore": "evaluation",
    "score": "data",
    "select": "data",
    "strip": "session",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'paperhooks' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"paperhooks.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
