"""The evaluation tasks that this package offers, as light descriptions: importing this imports no task."""

from __future__ import annotations

from typing import Final

from paperhooks.tasks import TaskInfo

__all__ = ["TASKS"]

TASKS: Final[tuple[TaskInfo, ...]] = (
    TaskInfo(
        name="pope",
        summary="Objects that are or are not in a picture, asked with yes or no; random, popular, adversarial.",
        task="paperhooks_cca.pope_task:Pope",
        needs=("text", "image"),
    ),
    TaskInfo(
        name="chair",
        summary="Captions of COCO pictures: how often they name objects that are not there.",
        task="paperhooks_cca.chair_task:Chair",
        needs=("text", "image"),
    ),
    TaskInfo(
        name="mme",
        summary="Two yes-or-no questions a picture, scored by category; existence, count, position, color and more.",
        task="paperhooks_cca.mme_task:Mme",
        needs=("text", "image"),
    ),
)
