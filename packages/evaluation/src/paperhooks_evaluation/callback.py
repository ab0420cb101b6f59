"""Evaluation tasks during training with ``transformers.Trainer``."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.info import TaskInfo
from transformers import TrainerCallback

from paperhooks_evaluation.evaluator import evaluate
from paperhooks_evaluation.task import Metric, Task

__all__ = ["EvaluationCallback"]

log = logging.getLogger("paperhooks.evaluation")

#: Groupings of more groups are in the run folder only: a series of each would hide the others.
_MOST_GROUPS: Final = 8


class EvaluationCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Runs a task every ``every`` optimiser steps and logs its metrics as ``eval/<task>/<metric>``.

    >>> trainer = Trainer(model, arguments, train_dataset=rows)  # doctest: +SKIP
    >>> trainer.add_callback(EvaluationCallback(trainer, processor, "pope", data="pope/", out="runs/", every=500))

    Logged are all metrics of the whole, and as ``eval/<task>/<metric>/<grouping>/<group>`` the first metric of the
    groups, of groupings that have 8 of them at most; the run folder has all. Every evaluation is a run folder
    ``out/step-000500``. What :func:`paperhooks.evaluate` takes goes through as ``options``, such as ``limit`` and
    ``limit_per``; reports are off unless asked for. In distributed training the processes share the documents.

    :raises DataError: ``every`` below 1.
    """

    def __init__(
        self,
        trainer: Any,
        processor: Any,
        task: str | TaskInfo | Task,
        *,
        data: str | Path,
        out: str | Path,
        every: int,
        **options: Any,
    ) -> None:
        if every < 1:
            raise DataError(f"every = {every} must be at least 1 step")
        self.trainer, self.processor, self.task, self.every = trainer, processor, task, every
        self.data, self.out = data, Path(out)
        self.options: Mapping[str, Any] = {"report": False, **options}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate after every ``every``-th step."""
        if state.global_step % self.every:
            return
        folder = self.out / f"step-{state.global_step:06d}"
        result = evaluate(self.trainer.model, self.processor, self.task, data=self.data, out=folder, **self.options)
        log.info("step %d: %s", state.global_step, result)
        self.trainer.log({
            "/".join(filter(None, (f"eval/{result.task}/{metric.name}", metric.grouping, metric.group))): metric.value
            for metric in _logged(result.summary.metrics)
            if metric.value is not None
        })  # fmt: skip


def _logged(metrics: Sequence[Metric]) -> list[Metric]:
    """Those of the whole, and the first one of the groups of groupings with few of them."""
    headline = metrics[0].name
    counts = Counter(metric.grouping for metric in metrics if metric.group and metric.name == headline)
    return [
        metric
        for metric in metrics
        if not metric.group or (metric.name == headline and counts[metric.grouping] <= _MOST_GROUPS)
    ]
