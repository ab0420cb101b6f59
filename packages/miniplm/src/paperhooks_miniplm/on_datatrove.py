"""Scoring a corpus in parts on datatrove: a task is a unit of a :class:`~paperhooks_miniplm.ScoringRun`.

A task reads its own rows and leaves a unit alone that is there, so one that runs twice or late does no harm.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from paperhooks import DataError
from paperhooks.errors import require
from paperhooks.io import whole
from tqdm import tqdm

from paperhooks_miniplm.scoring.runs import ScoringRun
from paperhooks_miniplm.scoring.worker_pool import done_by_workers

__all__ = ["ScoringStep", "executor_options", "score_on_datatrove"]


def _datatrove(module: str) -> Any:
    return require(f"datatrove.{module}", "paperhooks-miniplm[datatrove]", "to score on it")


class ScoringStep(_datatrove("pipeline.base").PipelineStep):  # type: ignore[misc]
    """Scores the unit that has the task's number. Raises DataError for another number of tasks than of units."""

    type, name = "SCORER", "paperhooks"

    def __init__(self, scoring: ScoringRun) -> None:
        super().__init__()
        self.scoring = scoring

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Score unit ``rank``; ``data`` goes on to the next step."""
        if world_size != (units := self.scoring.units):
            raise DataError(f"the run has {units} units and {world_size} tasks; give it a task a unit")
        with self.track_time("unit"):
            self.scoring.score(rank)
        return data


class _LocalExecutor(_datatrove("executor.local").LocalPipelineExecutor):  # type: ignore[misc]
    """Runs on this machine, as datatrove's own does, which waits for ever where a worker is killed; this goes on."""

    def run(self) -> None:
        """Do the tasks that are left, of all; raises what they do."""
        self.save_executor_as_json()
        left = self.get_incomplete_ranks()
        done = done_by_workers(self.run_task, left, self.workers)
        list(tqdm(done, desc="score", unit="unit", total=self.tasks, initial=self.tasks - len(left)))

    def run_task(self, rank: int) -> None:
        plain: Any = self.pipeline
        self.pipeline: Any = deepcopy(plain)  # steps count
        self._run_for_rank(rank, local_rank=1)
        self.pipeline = plain


def executor_options(scoring: ScoringRun) -> dict[str, Any]:
    """What any executor of datatrove is given beside its own options: pipeline, tasks and logging folder.

    The folder is named by the run and its number of tasks; marks in it of units that are not there are removed.
    """
    address = f"{scoring.out}/logs-{scoring.run[:12]}-{scoring.units}"
    (folder := _datatrove("io").get_datafolder(address)).invalidate_cache()
    missing = {f"completions/{number:05d}" for number in scoring.missing()}
    for mark in missing.intersection(folder.list_files("completions")):
        folder.rm(mark)
    return {"pipeline": [ScoringStep(scoring)], "tasks": scoring.units, "logging_dir": address}


def score_on_datatrove(scoring: ScoringRun, workers: int = 1) -> None:
    """Score what is missing on this machine.

    :param workers: processes, each with the model, among which cores and GPUs are dealt out; several need the usual
        ``if __name__ == "__main__":``. :raises DataError: as :meth:`ScoringRun.score`, or workers are killed for ever.
    """
    _LocalExecutor(**executor_options(scoring), workers=whole("workers", workers, at_least=1)).run()
