"""Small real models and data for paperhooks, with no network: a vision-language model, scenes, texts, problems.

>>> from paperhooks_testbed import load_vlm, question_set, prompt  # doctest: +SKIP
>>> model, processor = load_vlm()  # doctest: +SKIP
>>> question = question_set("test", 1)[0]  # doctest: +SKIP
>>> inputs = processor(images=question.image(), text=prompt(question), return_tensors="pt")  # doctest: +SKIP
>>> processor.decode(model.generate(**inputs, max_new_tokens=2)[0, -2], skip_special_tokens=True)  # doctest: +SKIP
'yes'

Importing this package imports neither torch nor transformers; the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paperhooks_testbed.arithmetic import Problem, problems
    from paperhooks_testbed.evaluate import Share, accuracy, answer, depth_profile, noise_image
    from paperhooks_testbed.pope import PopeScores, pope_questions, pope_scores
    from paperhooks_testbed.pretrained import load_vlm, vlm_folder
    from paperhooks_testbed.scenes import (
        KINDS,
        Question,
        Scene,
        Shape,
        generate_scene,
        prompt,
        question_set,
        questions_for,
        render,
    )
    from paperhooks_testbed.smollm2 import load_smollm2
    from paperhooks_testbed.text import Document, documents

__version__ = "0.1.0"

_HOMES: dict[str, tuple[str, ...]] = {
    "arithmetic": ("Problem", "problems"),
    "evaluate": ("Share", "accuracy", "answer", "depth_profile", "noise_image"),
    "pope": ("PopeScores", "pope_questions", "pope_scores"),
    "scenes": (
        *("KINDS", "Question", "Scene", "Shape", "generate_scene"),
        *("prompt", "question_set", "questions_for", "render"),
    ),
    "smollm2": ("load_smollm2",),
    "text": ("Document", "documents"),
    "pretrained": ("load_vlm", "vlm_folder"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "KINDS",
    "Document",
    "PopeScores",
    "Problem",
    "Question",
    "Scene",
    "Shape",
    "Share",
    "__version__",
    "accuracy",
    "answer",
    "depth_profile",
    "documents",
    "generate_scene",
    "load_smollm2",
    "load_vlm",
    "noise_image",
    "pope_questions",
    "pope_scores",
    "problems",
    "prompt",
    "question_set",
    "questions_for",
    "render",
    "vlm_folder",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
