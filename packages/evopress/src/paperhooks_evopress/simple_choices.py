"""All baselines of a target on a search's own problem, the best of which is kept.

>>> data = {"calibration": texts, "held_out": others}  # doctest: +SKIP
>>> artefact = paperhooks.compress(model, "evopress/baselines", data=data, target="bits=3.0")  # doctest: +SKIP
>>> artefact.data["baseline"], artefact.data["table"]  # doctest: +SKIP
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from paperhooks import Artefact, CompressionRequest, DataError, ModelView, PaperhooksError, Traits, hookimpl
from paperhooks.errors import did_you_mean
from paperhooks.hooks import Levels
from paperhooks.io import choice, optional, text, whole
from torch import Tensor
from tqdm import tqdm

from paperhooks_evopress.baselines import BASELINES, Setting, baselines_of, random_best
from paperhooks_evopress.evaluator import Evaluator, Fitness, sequences
from paperhooks_evopress.groundwork import (
    SHARED,
    check_options,
    decided_by,
    evaluator_options,
    level_methods,
    offered_levels,
    posed_problem,
)
from paperhooks_evopress.report import MeasuredChoice, SearchRun, comparison_blocks
from paperhooks_evopress.spaces import Exchange, Fuse, LevelProblem, Target

__all__ = ["BestBaseline"]

_PARTS: Final = ("calibration", "held_out")
_SEED_OF_ALL: Final = 0  # a minibatch of all tokens is the same with any
_WINNER: Final = "evopress"


@dataclass(eq=False)
class BestBaseline:
    """The best of the simple choices at a budget, beside which a search has to stand.

    Data are calibration texts, or ``{"calibration": ..., "held_out": ...}``: then all choices are measured on text that
    none has seen, too. Which one is kept is decided on the calibration text alone.

    baselines
        Names of those to try; by default all that answer the kind of the target. What was named has to succeed.
    tokens
        The minibatch that every pass over the model and every candidate of a baseline reads.
    random_tokens
        That the random candidates read together, such as those of the search; 32 minibatches by default.
    run
        Folder of a finished search on the same model, text, target and levels, whose winner is measured too.
    fitness, exchange, fuse, whole_layers, max_level, max_deviation, max_length, teacher_bytes, top_tokens, check_model
        As of :class:`paperhooks_evopress.EvoPress`.

    :raises ValueError: an option that cannot be meant; names it, its value and what is expected.
    """

    baselines: Sequence[str] = ()
    tokens: int = 2048
    random_tokens: int | None = None
    run: str = ""
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
    traits = Traits(writes=frozenset({"weights"}), devices=("cpu", "cuda"), dtypes=("float32", "bfloat16", "float16"))

    def __post_init__(self) -> None:
        given = (self.baselines,) if isinstance(self.baselines, str) else tuple(self.baselines)
        self.baselines = tuple(choice("baselines", name, tuple(BASELINES)) for name in given)
        self.tokens = whole("tokens", self.tokens, at_least=2)
        self.random_tokens = optional(whole, "random_tokens", self.random_tokens, at_least=2)
        self.run = text("run", str(self.run)) if self.run else ""
        check_options(self)

    def default_levels(self, view: ModelView, target: Any) -> list[Any]:
        """The methods whose levels are chosen from where the user names none: those of a search."""
        return level_methods(view, Target.of(target))

    @hookimpl
    def compression(self, view: ModelView, request: CompressionRequest) -> Artefact:
        """Try all, measure them, and keep the best."""
        target = Target.of(request.target)
        names = self._names(target)
        calibration, held_out = _parts(request)
        search = self._search(view, target, calibration.data)
        texts = sequences(view, calibration, self.max_length)
        others = None if held_out is None else sequences(view, held_out, self.max_length)
        with offered_levels(view, calibration, target, whole_layers=self.whole_layers) as levels:
            posed = posed_problem(view, levels, target, self)
            found = {} if search is None else {_WINNER: _winner(search, levels, posed)}
            levels.prepare(_database(request, search), decides=decided_by(texts), progress=request.progress)
            setting = Setting(levels, posed, self._evaluator(view, levels, texts), self.tokens, request.seed)
            tried, notes = self._tried(names, setting, request)
            rows = self._measured({**tried, **found}, setting, others)
            best = _best([row for row in rows if row.name in tried], posed)
            told = {
                "target": str(target), "cost_kind": posed.kind, "fitness": self.fitness, "baseline": best.name,
                "pass_tokens": setting.read, "teacher_perplexity": setting.evaluator.teacher_perplexity,
                "table": [row.to_json() for row in rows], "left_out": notes,
            }  # fmt: skip
            request.blocks += comparison_blocks(request.run, rows, told)
            levels.switch(best.choice)
            levels.write(view.journal, method=request.method)
            return request.artefact(view, data=told, levels=levels)

    def _names(self, target: Target) -> tuple[str, ...]:
        """What is tried.

        :raises DataError: a baseline that does not answer this kind of target.
        """
        known = baselines_of(target.kind)
        for name in self.baselines:
            if name not in known:
                raise DataError(f"the baseline {name!r} does not answer {target}; those that do are {', '.join(known)}")
        return tuple(dict.fromkeys(self.baselines)) or known

    def _search(self, view: ModelView, target: Target, data: Any) -> SearchRun | None:
        """The search whose winner is measured too.

        :raises DataError: a run of another problem; names the first difference.
        """
        if not self.run:
            return None
        search = SearchRun.open(self.run)
        search.check(view, target, data, {name: getattr(self, name) for name in SHARED})
        return search

    def _evaluator(self, view: ModelView, levels: Levels, sequences: Sequence[Tensor]) -> Evaluator:
        return Evaluator(view, levels, sequences, **evaluator_options(self))

    def _tried(
        self, names: Sequence[str], setting: Setting, request: CompressionRequest
    ) -> tuple[dict[str, MeasuredChoice], dict[str, str]]:
        """What each baseline chose; and why others, which were not asked for by name, could not."""
        kept = {} if request.run is None else request.run.result["results"].get("tried", {})
        found = {name: MeasuredChoice.from_json(row) for name, row in kept.items() if name in names}
        notes: dict[str, str] = {}
        for name in (bar := tqdm(names, desc="baselines", disable=not request.progress)):
            bar.set_postfix_str(name)
            if name in found:
                continue
            try:
                found[name] = self._asked(name, setting)
            except PaperhooksError as error:
                if self.baselines:
                    raise
                notes[name] = str(error)
            if request.run is not None:
                request.run.record(tried={name: row.to_json() for name, row in found.items()})
        if not found:
            raise DataError(f"no baseline could answer {setting.problem.target}: {'; '.join(notes.values())}")
        return found, notes

    def _asked(self, name: str, setting: Setting) -> MeasuredChoice:
        """What one baseline chose, and what that took."""
        begin = time.perf_counter()
        try:
            answer = random_best(setting, self.random_tokens) if name == "random" else BASELINES[name](setting)
        finally:
            setting.levels.restore()
        seconds = time.perf_counter() - begin
        return MeasuredChoice(
            name, dict(answer.choice), setting.problem.space.cost(answer.state), answer.tokens, seconds
        )

    def _measured(
        self, found: Mapping[str, MeasuredChoice], setting: Setting, held_out: Sequence[Tensor] | None
    ) -> list[MeasuredChoice]:  # fmt: skip
        """All rows with their sizes and what they give on all text of both kinds, in order of the first."""
        rows = list(found.values())
        choices = [row.choice for row in rows]
        scores = setting.evaluator.score(choices, setting.evaluator.tokens, _SEED_OF_ALL)
        others: list[float | None] = [None] * len(rows)
        if held_out is not None:
            evaluator = self._evaluator(setting.view, setting.levels, held_out)
            others = list(evaluator.score(choices, evaluator.tokens, _SEED_OF_ALL))
        setting.levels.restore()  # what is left out is not among the model's parameters meanwhile
        measured = [
            replace(row, fitness=fitness, held_out=other, size=_size(setting, row.choice))
            for row, fitness, other in zip(rows, scores, others, strict=True)
        ]
        return sorted(measured, key=lambda row: row.fitness)


def _parts(request: CompressionRequest) -> tuple[CompressionRequest, CompressionRequest | None]:
    """Requests of the calibration text and of the held-out text.

    :raises DataError: other parts, or held-out text alone.
    """
    data = request.data
    if not isinstance(data, Mapping):
        return request, None
    if odd := [str(part) for part in data if part not in _PARTS]:
        raise DataError(f"the data has a part {odd[0]!r}; {did_you_mean(odd[0], _PARTS)}")
    if "calibration" not in data:
        raise DataError("the data has no part 'calibration', which everything is chosen on")
    held_out = replace(request, data=data["held_out"]) if "held_out" in data else None
    return replace(request, data=data["calibration"]), held_out


def _database(request: CompressionRequest, search: SearchRun | None) -> Path | None:
    """Where levels are kept: the search has made them already."""
    if search is not None and search.database.is_dir():
        return search.database
    return None if request.run is None else request.run.path / "database"


def _winner(search: SearchRun, levels: Levels, posed: LevelProblem) -> MeasuredChoice:
    """The winner of a search as a row.

    :raises DataError: levels that are not the same here.
    """
    chosen = search.chosen
    for name, told in chosen.items():
        there = [each for each in levels.get(name, ()) if each.label == told["label"]]
        if not there or there[0].method != told["method"] or dict(there[0].options) != told["options"]:
            raise DataError(
                f"{search.path} chose {told['label']!r} of {told['method']} for {name}, which is not offered here; "
                f"give the levels of that search: {search.methods}"
            )
    choice = {name: told["label"] for name, told in chosen.items()}
    return MeasuredChoice(_WINNER, choice, search.told["cost"], search.told["evaluations"], search.seconds)


def _best(rows: Sequence[MeasuredChoice], posed: LevelProblem) -> MeasuredChoice:
    if not any(math.isfinite(row.fitness) for row in rows):
        raise DataError(f"no simple choice for {posed.target} gives anything finite; look at the levels offered")
    return min(rows, key=lambda row: row.fitness)


def _size(setting: Setting, chosen: Mapping[str, str]) -> float | None:
    """Bytes of the whole model at a choice; None where levels do not tell theirs."""
    levels = setting.levels
    try:
        saved = levels.cost({}, "bytes", whole=True) - levels.cost(chosen, "bytes", whole=True)
    except DataError:
        return None
    parameters = setting.view.model.parameters()
    return sum(each.numel() * each.element_size() for each in parameters) - saved
