"""What :func:`paperhooks.evaluate` tells at the start of a run, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paperhooks.errors import DataError, did_you_mean

from paperhooks_evaluation.scoring import ModeResult
from paperhooks_evaluation.task import Metric, Record, Summary

__all__ = ["EvaluationResult", "EvaluationRun", "describe_metric"]


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """What observers are told at the start: all documents, how many of them have a response already, and the modes."""

    task: str
    path: Path
    documents: int
    answered: int
    modes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The outcome of a run.

    :param modes: mode to figures and records; the first one is the headline.
    :param original, documents: how many documents the data hold, and how many of them were wanted (``limit``,
        ``groups``).
    :param answered: how many of those have a response; fewer when some failed, or when other shards are not done.
    :param cost: tokens of all prompts and of all answers, ``{"prompt_tokens": ..., "answer_tokens": ...}``; 0 where the
        backend does not say.
    :param notes: what the task tells of the data, such as rows that were left out.
    :param untried: ids of documents that no process has tried: those of shards that are not done. Files with results
        are written when there is none.
    """

    task: str
    path: Path
    modes: Mapping[str, ModeResult]
    original: int
    documents: int
    answered: int
    cost: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    untried: Sequence[str] = ()

    @property
    def first(self) -> ModeResult:
        """The headline mode."""
        return next(iter(self.modes.values()))

    @property
    def summary(self) -> Summary:
        """The figures of the headline mode."""
        return self.first.summary

    @property
    def records(self) -> Sequence[Record]:
        """The scored documents of the headline mode."""
        return self.first.records

    @property
    def headline(self) -> Metric:
        """The first metric of the headline mode."""
        return self.summary.metrics[0]

    def metric(
        self, name: str | None = None, *, group: str = "", grouping: str | None = None, mode: str | None = None
    ) -> Metric:
        """A metric by name (the headline's without one), group and mode.

        :param grouping: of the group, where several groupings have one of this name.
        :raises DataError: there is none, or there are several.
        """
        if mode is not None and mode not in self.modes:
            raise DataError(f"the run was not scored in the mode {mode!r}; {did_you_mean(mode, self.modes)}")
        metrics = (self.first if mode is None else self.modes[mode]).summary.metrics
        wanted = metrics[0].name if name is None else name
        found = [
            one for one in metrics
            if (one.name, one.group) == (wanted, group) and grouping in (None, one.grouping)
        ]  # fmt: skip
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"several groupings have the group {group!r}: {', '.join(one.part for one in found)}")
        known = [f"{metric.name} of {metric.part}" if metric.group else metric.name for metric in metrics]
        raise DataError(f"there is no metric {wanted!r} of group {group!r}; {did_you_mean(wanted, known)}")

    def __str__(self) -> str:
        counts = self.first.counts()
        notes = "".join(
            f", {counts[name]} {name}" for name in ("unparsable", "truncated", "empty", "failed") if counts[name]
        )
        return f"{self.task}: {describe_metric(self.headline)}{notes}; {self.path / 'report.html'}"


def describe_metric(metric: Metric) -> str:
    """A metric with its interval and n in words."""
    if metric.value is None:
        return f"{metric.name} undefined, n = {metric.n}"
    form = ".1%" if metric.scale == 1 else ".4g"
    text = f"{metric.name} {metric.value:{form}}"
    if metric.low is not None and metric.high is not None:
        text += f" [{metric.low:{form}}, {metric.high:{form}}]"
    return f"{text}, n = {metric.n}"
