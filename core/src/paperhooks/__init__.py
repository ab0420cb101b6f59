"""paperhooks: research papers as plugins for Hugging Face transformers.

>>> import paperhooks
>>> with paperhooks.attach(model, "pyramiddrop") as session:  # doctest: +SKIP
...     model.generate(**inputs)

Importing this package loads neither torch nor transformers: every name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import lazy_loader

from paperhooks.errors import require

__version__ = "0.1.0"

#: What the evaluation toolkit brings (the extra ``paperhooks[evaluation]``), by name: the one table that looks upward.
_EVALUATION = (
    "Comparison",
    "EvaluationCallback",
    "EvaluationResult",
    "Task",
    "compare",
    "evaluate",
    "rescore",
)

_own, _, _names = lazy_loader.attach_stub(__name__, __file__)
_offered = _EVALUATION if importlib.util.find_spec("paperhooks_evaluation") else ()
__all__ = sorted([*_names, *_offered, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _EVALUATION:
        return _own(name)
    return getattr(require("paperhooks_evaluation", "paperhooks[evaluation]", "to evaluate models"), name)


def __dir__() -> list[str]:
    return __all__
