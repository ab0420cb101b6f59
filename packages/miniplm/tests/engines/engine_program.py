"""One run of an engine, for tests to kill: ``python engine_program.py FOLDER ENGINE WORKERS OUT [FAULT ...]``.

FOLDER holds a model and parts; OUT is an address of scores. Prints a line of JSON: the engine's seconds, or its error.
Each unit that is begun leaves a file in FOLDER/begun, whose name tells which process began it. Faults:

slow
    A unit takes longer, so that a kill finds it unfinished.
ahead
    Workers believe that it is two hours later.
memory
    Workers run out of memory with more than a hundred tokens at once.
deadly
    Unit 3 kills whoever begins it.
absent
    What is sent to workers needs a module that only this process has.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import types
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from paperhooks import DataError
from paperhooks_miniplm import LogLikelihood, ScoringRun, ScoringSpec

#: What the rows are scored with.
SETTINGS: dict[str, Any] = {"end": 2, "max_length": 48}
CORES = 6


class ObservedRun(ScoringRun):
    """A run with faults, which it takes from the environment."""

    def score(self, number: int) -> bool:
        faults = os.environ["FAULTS"].split()
        Path(os.environ["BEGUN"], f"{number}-{os.getpid()}").touch()
        if "deadly" in faults and number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if "ahead" in faults and not hasattr(time, "real"):
            time.real = time.time
            time.time = lambda: time.real() + 7200
        if "memory" in faults:
            LogLikelihood._batch = small_memory
        if "slow" in faults:
            time.sleep(0.2)
        return super().score(number)


def elsewhere(run: ObservedRun) -> ObservedRun:
    """A run whose class stands in a module that no other process finds."""
    module = types.ModuleType("module_of_the_driver")
    sys.modules[module.__name__] = module
    module.Run = type("Run", (ObservedRun,), {"__module__": module.__name__})
    return module.Run(**{field.name: getattr(run, field.name) for field in fields(run)})


PLAIN = LogLikelihood._batch


def small_memory(self: LogLikelihood, rows: Any) -> Any:
    """As a GPU that has room for a hundred tokens, with padding."""
    if len(rows) * max(map(len, rows)) > 100:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return PLAIN(self, rows)


def scored(scoring: ScoringRun, engine: str, workers: int) -> None:
    """Run an engine to its end."""
    if engine == "ray":
        import ray
        from paperhooks_miniplm.on_ray import score_on_ray

        if not ray.is_initialized():
            ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
        score_on_ray(scoring, workers)
        return
    from paperhooks_miniplm.on_datatrove import executor_options, score_on_datatrove

    if engine == "datatrove":
        score_on_datatrove(scoring, workers)
        return
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    ray.init(num_cpus=CORES, include_dashboard=False)
    options = executor_options(scoring)
    RayPipelineExecutor(**options, workers=workers, tasks_per_job=2, mem_per_cpu_gb=0.5).run()


def main(folder: Path, engine: str, counts: str, out: str, *faults: str) -> None:
    """Run once for each number of workers, which a comma divides, in OUT with the number behind it."""
    (folder / "begun").mkdir(exist_ok=True)
    os.environ |= {"FAULTS": " ".join(faults), "BEGUN": str(folder / "begun")}
    corpus = os.environ.get("CORPUS", str(folder / "parts"))
    for workers in map(int, counts.split(",")):
        place = out if "," not in counts else f"{out}{workers}"
        run = ScoringRun.begin(ScoringSpec(str(folder / "model"), **SETTINGS), corpus, place)
        observed = ObservedRun(**{field.name: getattr(run, field.name) for field in fields(run)})
        observed = elsewhere(observed) if "absent" in faults else observed
        start = time.monotonic()
        try:
            scored(observed, engine, workers)
        except DataError as error:
            print(json.dumps({"workers": workers, "error": str(error)}), flush=True)
        else:
            seconds = round(time.monotonic() - start, 2)
            print(json.dumps({"workers": workers, "seconds": seconds, "missing": run.missing()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
