"""The light description that the entry point exposes, and the evaluation tasks: importing this imports no task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from paperhooks import hookimpl
from paperhooks.info import PluginInfo, TaskInfo

__all__ = ["PLUGIN", "TASKS", "evaluation_tasks"]

TASKS: Final[tuple[TaskInfo, ...]] = (
    TaskInfo(
        name="pope",
        summary="Objects that are or are not in an image, asked with yes or no; random, popular, adversarial.",
        task="paperhooks_hallucination.pope.task:Pope",
        needs=("text", "image"),
    ),
    TaskInfo(
        name="chair",
        summary="Captions of COCO images: how often they name objects that are not there.",
        task="paperhooks_hallucination.chair.task:Chair",
        needs=("text", "image"),
    ),
    TaskInfo(
        name="mme",
        summary="Two yes-or-no questions an image, scored by category; existence, count, position, color and more.",
        task="paperhooks_hallucination.mme.task:Mme",
        needs=("text", "image"),
    ),
)

PLUGIN: Final = PluginInfo(
    name="hallucination",
    api=1,
    kind="benchmark",
    summary="Objects that are not in the image: POPE, CHAIR and MME as evaluation tasks and as metrics.",
    hooks="paperhooks_hallucination.plugin",
)


@hookimpl
def evaluation_tasks() -> Sequence[TaskInfo]:
    """The tasks ``pope``, ``chair`` and ``mme``."""
    return TASKS
