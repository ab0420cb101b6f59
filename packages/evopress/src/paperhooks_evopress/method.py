"""EvoPress as a method of ``paperhooks.compress``: a search over the levels that any methods offer.

>>> artefact = paperhooks.compress(model, "evopress", data=texts, target="bits=3.0", out="run/")  # doctest: +SKIP
>>> artefact.undo()  # doctest: +SKIP
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from paperhooks import Artefact, CompressionRequest, DataError, ModelView, Traits, hookimpl
from paperhooks.errors import counted
from paperhooks.hooks import Levels
from paperhooks.io import Ranks, choice, local_path, optional, read_json, text, whole, write_json
from paperhooks.reports import Paragraph
from tqdm import tqdm

from paperhooks_evopress.algorithm import Evolution, SearchSchedule, select
from paperhooks_evopress.baselines import Setting, additive
from paperhooks_evopress.evaluator import CandidateMap, Evaluator, Fitness, RankMap, SharedEvaluator, sequences
from paperhooks_evopress.groundwork import (
    check_options,
    decided_by,
    evaluator_options,
    level_methods,
    offered_levels,
    posed_problem,
)
from paperhooks_evopress.history import evaluations
from paperhooks_evopress.on_ray import ActorMap
from paperhooks_evopress.report import blocks
from paperhooks_evopress.schedules import SCHEDULES, schedule_of
from paperhooks_evopress.search_plan import SearchPlan
from paperhooks_evopress.spaces import Exchange, Fuse, LevelProblem, Target

__all__ = ["EvoPress"]

_CHECKPOINT: Final = "search.json"
_START: Final = "start.json"
_ARTEFACT: Final = "artefact.safetensors"
#: Folder of what an interrupted search leaves.
_BEST: Final = "best"
#: Tokens that are timed for the plan.
_TIMED: Final = 512
_SEED_OF_ALL: Final = 0  # a minibatch of all tokens is the same with any


@dataclass(eq=False)
class EvoPress:
    """Searches the choice of levels under a budget whose model is closest to the model itself.

    schedule
        "light", "quick" or "paper": generations, offspring and tokens of the stages (section 4 and appendix of the
        paper); "quick" is for small models on a CPU.
    generations, offspring
        In place of the schedule's.
    fitness
        "kl", the divergence of the model's predictions, or "perplexity" on the text.
    exchange
        Who trades levels of bits: matrices of equal "size", of equal "name", or "none": all with all, mended to the
        budget.
    fuse
        "vllm" gives q, k and v one level, and gate and up another, as deployed kernels run them together.
    whole_layers
        Leave out whole layers in place of attentions and MLPs.
    max_level, max_deviation
        How many steps a unit, and all together, may be from an even choice.
    max_length
        Tokens of a calibration text; longer ones are divided.
    teacher_bytes
        Memory for what the model itself says of the calibration texts.
    top_tokens
        The model's most likely tokens that are kept at a position, the rest as one; all by default.
    check_model
        Refuse a model that predicts the calibration text no better than guessing.
    start
        "even", as in the paper; "additive": what an integer program makes of each level's damage alone, measured on the
        tokens of the first stage, which takes as many candidates as there are levels; or the run folder or artefact of
        another choice among the same levels, such as that of ``evopress/baselines``.
    finalists
        How many choices, of those that led longest, are compared on all calibration text at the end. The first one is
        among them, so that the winner is never worse than it there. 0 keeps the last one.
    actors
        Ray actors among which candidates are dealt out, each with a copy of the model, a core and, where the model is
        on a GPU, one of those; 0 scores them here, or on the ranks of a launch. It decides nothing: a run goes on with
        another number.

    :raises ValueError: an option that cannot be meant; names it, its value and what is expected.
    """

    schedule: str = "light"
    generations: int | None = None
    offspring: int | None = None
    fitness: Fitness = "kl"
    exchange: Exchange = "size"
    fuse: Fuse = "no"
    whole_layers: bool = False
    max_level: int | None = None
    max_deviation: int | None = None
    max_length: int = 2048
    teacher_bytes: int = 2**30
    top_tokens: int | None = None
    check_model: bool = True
    start: str = "even"
    finalists: int = 4
    actors: int = field(default=0, compare=False)
    traits = Traits(
        writes=frozenset({"weights"}),
        devices=("cpu", "cuda"),
        dtypes=("float32", "bfloat16", "float16"),
        shared_work=True,
    )

    def __post_init__(self) -> None:
        self.schedule = choice("schedule", self.schedule, tuple(SCHEDULES))
        self.generations = optional(whole, "generations", self.generations, at_least=0)
        self.offspring = optional(whole, "offspring", self.offspring, at_least=1)
        self.start = text("start", str(self.start))
        self.finalists = whole("finalists", self.finalists, at_least=0)
        self.actors = whole("actors", self.actors, at_least=0)
        check_options(self)

    def default_levels(self, view: ModelView, target: Any) -> list[Any]:
        """The methods whose levels are searched where the user names none, by the kind of the target."""
        return level_methods(view, Target.of(target))

    @hookimpl
    def compression(self, view: ModelView, request: CompressionRequest) -> Artefact:
        """Search, keep the winner, and say what was found."""
        target = Target.of(request.target)
        texts = sequences(view, request, self.max_length)
        with (
            offered_levels(view, request, target, whole_layers=self.whole_layers) as levels,
            self._candidates() as candidates,
        ):
            posed = posed_problem(view, levels, target, self)
            given = self._given(posed)
            # Before hours go into levels: a model that cannot be searched is refused here.
            evaluator = SharedEvaluator(view, levels, texts, candidates=candidates, **evaluator_options(self))
            plan = self._plan(posed, levels, evaluator)
            if request.progress:
                tqdm.write(str(plan), file=sys.stderr)
            with _timed(request, "levels"):
                levels.prepare(
                    request.run.path / "database" if request.run is not None else None,
                    decides=decided_by(texts), progress=request.progress,
                )  # fmt: skip
            with _timed(request, "start"):
                start = self._start(posed, levels, evaluator, request, given)
            with _timed(request, "search"):
                evolution = self._search(view, posed, levels, evaluator, request, start)
            try:
                with _timed(request, "comparison"):
                    best, scores = self._compared(posed, evaluator, evolution, progress=request.progress)
            except KeyboardInterrupt:
                _leave(view, request, levels, posed, evolution)
                raise
            return self._finished(view, request, levels, posed, evaluator, evolution, plan, best, scores)

    def _candidates(self) -> AbstractContextManager[CandidateMap]:
        """Who scores candidates."""
        if not self.actors:
            return nullcontext(RankMap())
        if (ranks := Ranks().count) > 1:
            raise DataError(f"actors={self.actors} in a launch of {ranks} processes; choose one of the two")
        return ActorMap(self.actors)

    def _plan(self, posed: LevelProblem, levels: Levels, evaluator: SharedEvaluator) -> SearchPlan:
        """What the search will take, by the time that a pass over the model itself takes."""
        schedule, tokens = self._schedule(posed), min(_TIMED, evaluator.tokens)
        for draw in range(2):  # a first pass takes longer
            begin = time.perf_counter()
            evaluator.score([{}], tokens, draw)
            seconds = (time.perf_counter() - begin) / tokens
        more = self.finalists * evaluator.tokens
        said = 4 * evaluator.head.vocabulary * evaluator.tokens if self.fitness == "kl" else 0
        if self.start == "additive":
            tries = 1 + sum(len(unit.choices) for unit in posed.space.units)
            more += tries * min(evaluator.tokens, schedule.stages[0].tokens)
        return SearchPlan.of(
            schedule, levels, posed.space, more_tokens=more, processes=evaluator.workers,
            pass_seconds=seconds, teacher_bytes=min(self.teacher_bytes, said),
        )  # fmt: skip

    def _given(self, posed: LevelProblem) -> tuple[int, ...] | None:
        """The choice of the run or artefact that is named as the start, looked at before anything long."""
        if self.start in ("even", "additive"):
            return None
        place = local_path(self.start)
        if not place.exists():
            raise DataError(
                f"start={self.start!r}: there is no such run or artefact; expected 'even', 'additive', or the run "
                "folder or artefact of another choice"
            )
        if (place / _CHECKPOINT).exists() and not (place / _ARTEFACT).exists():
            raise DataError(
                f"start={self.start!r}: that search is not finished; run its command again, or start from what an "
                f"interrupt has left in {place / _BEST}"
            )
        chosen = Artefact.load(place).data.get("levels", {})
        return posed.state({name: each["label"] for name, each in chosen.items()})

    def _start(
        self, posed: LevelProblem, levels: Levels, evaluator: Evaluator, request: CompressionRequest,
        given: tuple[int, ...] | None,
    ) -> tuple[int, ...] | None:  # fmt: skip
        """The state to begin with, mended where it does not use up the budget, and kept in the run folder."""
        if self.start == "even":
            return None
        file = request.run.path / _START if request.run is not None else None
        state: tuple[int, ...] | None = None
        if file is not None and file.exists():
            kept = _of_this_run(request, file, "start of a search")
            state = tuple(kept["state"]) if isinstance(kept, dict) and isinstance(kept.get("state"), list) else ()
            if not _belongs(posed, state):
                raise DataError(f"{file} cannot be gone on with: it holds no state of this search; use another folder")
        if state is None:
            setting = Setting(levels, posed, evaluator, self._schedule(posed).stages[0].tokens, request.seed)
            state = given or additive(setting, progress=request.progress).state
            if not posed.space.feasible(state):
                state = posed.space.repair(state, Random(request.seed))
            if not posed.space.feasible(state):
                raise DataError(
                    f"start={self.start!r} is outside of what {posed.target} and the limits on levels allow"
                )
            if file is not None and Ranks().first:
                write_json(file, {"run": _run_hash(request), "state": list(state)})
        return state

    def _search(
        self, view: ModelView, posed: LevelProblem, levels: Levels, evaluator: Evaluator, request: CompressionRequest,
        start: tuple[int, ...] | None,
    ) -> Evolution:  # fmt: skip
        """Generation by generation, kept after each; after an interrupt the best so far is left as an artefact."""
        planned = self._schedule(posed)

        def score(states: Sequence[tuple[int, ...]], tokens: int, seed: int, survivors: int | None) -> list[float]:
            return evaluator.score([posed.choice(state) for state in states], tokens, seed, survivors)

        evolution = Evolution(posed.space, planned, score, request.seed, start=start)
        file = request.run.path / _CHECKPOINT if request.run is not None else None
        if file is not None and file.exists():
            kept = _of_this_run(request, file, "state of a search")
            try:
                evolution.load_state_dict(kept)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file} cannot be gone on with: {error}; use another folder") from error
        Ranks().meet()  # all have read it before one writes
        done = len(evolution.history)
        try:
            with tqdm(
                total=planned.generations, initial=max(0, done - 1), desc="search", unit="generation",
                disable=not request.progress,
            ) as bar:  # fmt: skip
                for generation in evolution.run():
                    if file is not None and Ranks().first:
                        write_json(file, {"run": _run_hash(request), **evolution.state_dict()})
                    bar.set_postfix(fitness="-" if generation.fitness is None else f"{generation.fitness:.4g}")
                    bar.update(int(generation.number > 0))
        except KeyboardInterrupt:
            _leave(view, request, levels, posed, evolution)
            raise
        return evolution

    def _schedule(self, posed: LevelProblem) -> SearchSchedule:
        classes = [unit.exchange for unit in posed.space.units]
        blocks = max((classes.count(name) for name in set(classes)), default=0)
        removed = max((blocks - int(own) for own in posed.space.budgets.values()), default=0)
        found = schedule_of(self.schedule, posed.target.kind, blocks=blocks, removed=max(0, min(removed, blocks)))
        changes: dict[str, Any] = {}
        if self.generations is not None:
            changes["generations"] = self.generations
        if self.offspring is not None:
            changes["offspring"] = self.offspring
            changes["stages"] = tuple(
                replace(stage, survivors=min(stage.survivors, self.offspring)) for stage in found.stages
            )
        return replace(found, **changes)

    def _compared(
        self, posed: LevelProblem, evaluator: Evaluator, evolution: Evolution, *, progress: bool
    ) -> tuple[tuple[int, ...], dict[str, float | None]]:
        """The best of the finalists on all calibration text, with what it and the first choice lose there."""
        best = evolution.best
        assert best is not None  # the search has ended
        finalists = evolution.finalists(self.finalists)
        if not finalists:
            return best, {}
        if progress:  # for a small search this is the longest part
            words = f"{counted(len(finalists), 'choice')} on all {evaluator.tokens:,} tokens of the calibration text"
            tqdm.write(f"compare {words}", file=sys.stderr)
        values = evaluator.score([posed.choice(state) for state in finalists], evaluator.tokens, _SEED_OF_ALL)
        first = evolution.history[0].best
        beginning = _finite(values[finalists.index(first)]) if first in finalists else None
        return finalists[select(values, 1)[0]], {"final": _finite(min(values)), "first": beginning}

    def _finished(
        self, view: ModelView, request: CompressionRequest, levels: Levels, posed: LevelProblem, evaluator: Evaluator,
        evolution: Evolution, plan: SearchPlan, best: tuple[int, ...], scores: dict[str, float | None],
    ) -> Artefact:  # fmt: skip
        won = posed.choice(best)
        told: dict[str, Any] = {
            "target": str(posed.target),
            "cost": posed.space.cost(best),
            "budget": posed.space.budget if posed.space.budget is not None else dict(posed.space.budgets),
            "cost_kind": posed.kind,
            "fitness": self.fitness,
            "start": self.start,
            "generations": len(evolution.history) - 1,
            "teacher_perplexity": evaluator.teacher_perplexity,
            "evaluations": evaluations(evolution.history),
            **scores,
        }
        timings = request.run.result["timings"] if request.run is not None else {}
        request.blocks += [
            *blocks(request.run, posed, evolution.history, won, told, timings),
            Paragraph(f"Before it began: {plan}."),
        ]
        if request.run is not None and Ranks().first:
            shutil.rmtree(request.run.path / _BEST, ignore_errors=True)
        levels.switch(won)
        levels.write(view.journal, method=request.method)
        return request.artefact(view, data=told, levels=levels)


def _belongs(posed: LevelProblem, state: tuple[Any, ...]) -> bool:
    """Whether what a file holds is a state of the search."""
    return all(isinstance(place, int) for place in state) and posed.space.feasible(state)


def _leave(
    view: ModelView, request: CompressionRequest, levels: Levels, posed: LevelProblem, evolution: Evolution
) -> None:
    """What an interrupted search has found so far, as an artefact beside its checkpoint."""
    if request.run is None or evolution.best is None or not Ranks().first:
        return
    levels.switch(posed.choice(evolution.best))
    levels.write(view.journal, method=request.method)
    told = {"target": str(posed.target), "cost": posed.space.cost(evolution.best), "unfinished": True}
    file = request.artefact(view, data=told, levels=levels).save(request.run.path / _BEST)
    tqdm.write(
        f"interrupted after {counted(len(evolution.history) - 1, 'generation')}; the best so far is {file}, and the "
        "same command goes on",
        file=sys.stderr,
    )


def _run_hash(request: CompressionRequest) -> str:
    """Of all that decides a run: model, text, target, options, levels."""
    return "" if request.run is None else str(request.run.result["inputs_hash"])


def _of_this_run(request: CompressionRequest, file: Path, what: str) -> Any:
    """The content of a file that this run wrote; raises DataError for one of another run."""
    kept = read_json(file, what)
    if isinstance(kept, dict) and kept.get("run", "") != _run_hash(request):
        raise DataError(
            f"{file} cannot be gone on with: it is of a run on another model or text, or with other options"
        )
    return kept


def _timed(request: CompressionRequest, name: str) -> AbstractContextManager[None]:
    return nullcontext() if request.run is None else request.run.timed(name)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
