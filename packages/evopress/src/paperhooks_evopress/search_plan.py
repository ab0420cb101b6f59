"""What a search will take, told before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from paperhooks.hooks import Levels

from paperhooks_evopress.algorithm import SearchSchedule, states_to_score
from paperhooks_evopress.spaces import Space

__all__ = ["SearchPlan"]


@dataclass(frozen=True)
class SearchPlan:
    """An estimate; a search shares layers and leaves candidates early, so that it takes less.

    states
        How many choices there are, where all of them are scored in place of a search.
    generations, tokens
        Of the schedule: tokens times candidates, at most, what the last comparison reads included.
    units, levels
        How many are searched, and how many values of levels are made before.
    offered_by
        The methods whose levels these are.
    seconds
        At the speed of a plain pass that was timed, shared by the processes.
    model_bytes, database_bytes, teacher_bytes
        Of the model's parameters, of the prepared levels (in memory, or mapped from the run folder), and of what is
        kept of the model's own predictions, at most.
    """

    states: int | None
    generations: int
    tokens: int
    units: int
    levels: int
    offered_by: tuple[str, ...]
    seconds: float
    model_bytes: float
    database_bytes: float
    teacher_bytes: int

    @classmethod
    def of(
        cls, schedule: SearchSchedule, levels: Levels, space: Space, *, more_tokens: int, pass_seconds: float,
        processes: int, teacher_bytes: int,
    ) -> SearchPlan:  # fmt: skip
        """The plan of a schedule.

        :param more_tokens: read besides it. :param pass_seconds: of one token.
        """
        made = [level for own in levels.values() for level in own if level.prepare is not None]
        states = states_to_score(space, schedule)
        tokens = schedule.evaluations + more_tokens
        if states is not None:
            tokens = states * schedule.stages[-1].tokens + more_tokens
        parameters = levels.view.model.parameters()
        return cls(
            states, schedule.generations, tokens, len(space.units), len(made),
            tuple(dict.fromkeys(level.method for own in levels.values() for level in own)),
            tokens * pass_seconds / processes,
            float(sum(each.numel() * each.element_size() for each in parameters)),
            float(sum(level.cost.get("bytes", 0) for level in made)), teacher_bytes,
        )  # fmt: skip

    def __str__(self) -> str:
        offered = ", ".join(self.offered_by)
        what = f"{self.generations} generations" if self.states is None else f"all {self.states} choices"
        text = (
            f"plan: {what} over {self.units} units with levels of {offered}, at most "
            f"{self.tokens:,} tokens to read, about {_span(self.seconds)}; memory: model {_size(self.model_bytes)}, "
            f"its predictions up to {_size(self.teacher_bytes)}"
        )
        if self.levels:
            text += f", {self.levels:,} values of levels {_size(self.database_bytes)}, which are made first"
        return text


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
