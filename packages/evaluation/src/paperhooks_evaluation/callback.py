"""Evaluation tasks during training with ``transformers.Trainer``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paperhooks.errors import DataError
from paperhooks.info import TaskInfo
from transformers import TrainerCallback

from paperhooks_evaluation.evaluator import evaluate
from paperhooks_evaluation.task import Task

__all__ = ["EvaluationCallback"]

log = logging.getLogger("paperhooks.evaluation")


class EvaluationCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Runs a task every ``every`` optimiser steps and logs its metrics as ``eval/<task>/<metric>``.

    >>> trainer = Trainer(model, arguments, train_dataset=rows)  # doctest: +SKIP
    >>> trainer.add_callback(EvaluationCallback(trainer, processor, "pope", data="pope/", out="runs/", every=500))

    Metrics of a group are logged as ``eval/<task>/<metric>/<grouping>/<group>``. Every evaluation is a run folder
    ``out/step-000500``. What :func:`paperhooks.evaluate` takes goes through as ``options``; reports are off unless
    asked for. In distributed training the processes share the documents.

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
            for metric in result.summary.metrics
            if metric.value is not None
        })  # fmt: skip
