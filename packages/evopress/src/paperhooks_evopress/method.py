"""EvoPress as a method of ``paperhooks.compress``: a search over the levels that any methods offer.

>>> artefact = paperhooks.compress(model, "evopress", data=texts, target="bits=3.0", out="run/")  # doctest: +SKIP
>>> artefact.undo()  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import torch
from paperhooks import Artefact, CompressionRequest, DataError, ModelView, Traits, hookimpl
from paperhooks.hooks import Levels
from paperhooks.io import choice, flag, optional, read_json, tensor_digest, whole, write_json
from paperhooks.plugins import catalog
from torch import Tensor
from tqdm import tqdm

from paperhooks_evopress.algorithm import Evolution, SearchSchedule
from paperhooks_evopress.calibration import sequences
from paperhooks_evopress.evaluator import Evaluator, Fitness
from paperhooks_evopress.history import evaluations
from paperhooks_evopress.plugin import DEFAULT_LEVELS
from paperhooks_evopress.problems import Exchange, Fuse, LevelProblem, module_names, problem
from paperhooks_evopress.report import blocks
from paperhooks_evopress.schedules import SCHEDULES, schedule_of
from paperhooks_evopress.targets import Target

__all__ = ["EvoPress"]

_CHECKPOINT: Final = "search.json"
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
    final_check
        Score the winner and the even choice on all calibration text at the end.

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
    final_check: bool = True
    traits = Traits(writes=frozenset({"weights"}))

    def __post_init__(self) -> None:
        self.schedule = choice("schedule", self.schedule, tuple(SCHEDULES))
        self.fitness = choice("fitness", self.fitness, get_args(Fitness))
        self.exchange = choice("exchange", self.exchange, get_args(Exchange))
        self.fuse = choice("fuse", self.fuse, get_args(Fuse))
        for name in ("generations", "max_level", "max_deviation"):
            setattr(self, name, optional(whole, name, getattr(self, name), at_least=0))
        for name in ("offspring", "top_tokens"):
            setattr(self, name, optional(whole, name, getattr(self, name), at_least=1))
        for name in ("whole_layers", "check_model", "final_check"):
            setattr(self, name, flag(name, getattr(self, name)))
        self.max_length = whole("max_length", self.max_length, at_least=2)
        self.teacher_bytes = whole("teacher_bytes", self.teacher_bytes, at_least=1)

    def default_levels(self, view: ModelView, target: Any) -> list[Any]:
        """The methods whose levels are searched where the user names none, by the kind of the target."""
        wanted = Target.of(target)
        found = []
        for name in DEFAULT_LEVELS[wanted.kind]:
            options: dict[str, Any] = {}
            if wanted.kind == "sparsity":
                options = {"around": wanted.value, "step": _step(view, wanted.value)}
            found.append(catalog().create_method(name, **options))
        return found

    @hookimpl
    def compression(self, view: ModelView, request: CompressionRequest) -> Artefact:
        """Search, keep the winner, and say what was found."""
        target = Target.of(request.target)
        texts = sequences(view, request, self.max_length)
        with self._levels(view, request, target) as levels:
            posed = problem(
                view, levels, target, exchange=self.exchange, fuse=self.fuse, max_level=self.max_level,
                max_deviation=self.max_deviation,
            )  # fmt: skip
            # Before hours go into levels: a model that cannot be searched is refused here.
            evaluator = Evaluator(
                view, levels, texts, fitness=self.fitness, limit=self.teacher_bytes, tokens=self.top_tokens,
                most_perplexity=None if self.check_model else math.inf,
            )  # fmt: skip
            levels.prepare(
                request.run.path / "database" if request.run is not None else None,
                decides=_decides(texts), progress=request.progress,
            )  # fmt: skip
            evolution = self._search(posed, evaluator, request)
            return self._finished(view, request, levels, posed, evaluator, evolution)

    def _levels(self, view: ModelView, request: CompressionRequest, target: Target) -> Levels:
        """What is offered for the modules of a target; those without levels belong to what contains them."""
        levels = request.levels(view, module_names(view, target, whole_layers=self.whole_layers))
        with_levels = [name for name, own in levels.items() if own]
        return levels if len(with_levels) in (0, len(levels)) else request.levels(view, with_levels)

    def _search(self, posed: LevelProblem, evaluator: Evaluator, request: CompressionRequest) -> Evolution:
        """Generation by generation, kept after each."""
        planned = self._schedule(posed, evaluator)

        def score(states: Sequence[tuple[int, ...]], tokens: int, seed: int, survivors: int | None) -> list[float]:
            return evaluator.score([posed.choice(state) for state in states], tokens, seed, survivors)

        evolution = Evolution(posed.space, planned, score, request.seed)
        file = request.run.path / _CHECKPOINT if request.run is not None else None
        if file is not None and file.exists():
            try:
                evolution.load_state_dict(read_json(file, "the state of a search"))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file} cannot be gone on with: {error}; use another folder") from error
        done = len(evolution.history)
        with tqdm(
            total=planned.generations + 1, initial=done, desc="search", unit="generation", disable=not request.progress
        ) as bar:
            for generation in evolution.run():
                if file is not None:
                    write_json(file, evolution.state_dict())
                bar.set_postfix(fitness="-" if generation.fitness is None else f"{generation.fitness:.4g}")
                bar.update()
        return evolution

    def _schedule(self, posed: LevelProblem, evaluator: Evaluator) -> SearchSchedule:
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

    def _finished(
        self, view: ModelView, request: CompressionRequest, levels: Levels, posed: LevelProblem, evaluator: Evaluator,
        evolution: Evolution,
    ) -> Artefact:  # fmt: skip
        best = evolution.best
        assert best is not None  # the search has ended
        won = posed.choice(best)
        told: dict[str, Any] = {
            "target": str(posed.target),
            "cost": posed.space.cost(best),
            "budget": posed.space.budget if posed.space.budget is not None else dict(posed.space.budgets),
            "cost_kind": posed.kind,
            "fitness": self.fitness,
            "generations": len(evolution.history) - 1,
            "teacher_perplexity": evaluator.teacher_perplexity,
            "evaluations": evaluations(evolution.history),
        }
        if self.final_check:
            first = posed.choice(evolution.history[0].best)
            scores = evaluator.score([won, first], evaluator.tokens, _SEED_OF_ALL)
            told |= {"final": _finite(scores[0]), "first": _finite(scores[1])}
        request.blocks += blocks(request.run, posed, evolution.history, won, told)
        levels.switch(won)
        levels.write(view.journal, method=request.method)
        return request.artefact(view, data=told, levels=levels)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _step(view: ModelView, sparsity: float, steps: int = 8) -> int:
    """Weights between two levels of sparsity: D = 0.5 min(s, 1 - s) / levels hidden^2 (official default)."""
    hidden = int(view.text_config.hidden_size)
    return max(1, int(0.5 * min(sparsity, 1 - sparsity) / steps * hidden**2))


def _decides(texts: Sequence[Tensor]) -> dict[str, Any]:
    return {"calibration": tensor_digest(torch.cat(list(texts)))}
