"""The report of an evaluation: figures with intervals, responses that could not be read, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import LibraryBroken, MissingExtra, counted
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table

from paperhooks_evaluation.results import EvaluationResult, describe_metric
from paperhooks_evaluation.scoring import ModeResult
from paperhooks_evaluation.task import FigureSpec, Metric

__all__ = ["figure_blocks", "write_report"]

_INTERVALS: Final = {
    "wilson": "Wilson's",
    "wilson over clusters": "Wilson's over clusters",
    "normal": "the normal approximation",
    "bootstrap": "the percentile bootstrap",
}
_SHOWN: Final = 20
#: So many modes are shown in full, so many metrics beside tables of a task, and so many groupings beside its figures.
_FEW_MODES: Final = 2
_MANY: Final = 60
_FEW_GROUPINGS: Final = 2


def write_report(run: RunFolder, result: EvaluationResult) -> Path:
    """Write ``report.md`` and ``report.html`` with the figures; returns the path of the latter."""
    blocks: list[Block] = [*_opening(run, result), *figure_blocks(run, [*_bars(result), *result.summary.figures])]
    several = len(result.modes) > 1
    shown = list(result.modes.items())[: None if len(result.modes) <= _FEW_MODES else 1]
    for mode, found in shown:
        blocks += _mode_blocks(mode, found, several)
    if len(shown) < len(result.modes):
        blocks += _by_mode(result)
    blocks += [Heading("Responses"), _counts(result), *_differing(result), *_failures(result)]
    return run.report(f"Evaluation: {result.task}", blocks)


def _opening(run: RunFolder, result: EvaluationResult) -> list[Block]:
    methods = ", ".join(method["class"] for method in run.result["inputs"].get("methods", [])) or "none"
    about = run.result["results"]["about"]
    named = " ".join(str(about[key]) for key in ("class", "name", "revision") if about.get(key))
    lines = [f"{describe_metric(result.headline)}. Model: {named or 'not told'}. Methods attached: {methods}."]
    reasoning = run.result["results"]["reasoning"]
    if reasoning["responses"]:
        read = "read with them" if reasoning["kept"] else "kept apart"
        lines.append(f"Reasoning in front of {counted(reasoning['responses'], 'answer')} was {read}.")
    if any(result.cost.values()):
        prompts, answers = result.cost["prompt_tokens"], result.cost["answer_tokens"]
        lines.append(f"Tokens: {prompts:,} of prompts, {answers:,} of answers.")
    if result.documents < result.original:
        lines.append(f"A part of the data: {result.documents} of {result.original} documents.")
    opening = Paragraph(" ".join(lines), "note" if result.documents < result.original else "text")
    return [opening, *(Paragraph(note, "note") for note in result.notes)]


def _mode_blocks(mode: str, found: ModeResult, several: bool) -> list[Block]:
    metrics = found.summary.metrics
    kinds = sorted({_INTERVALS.get(metric.interval, metric.interval) for metric in metrics if metric.interval})
    caption = f"95 % intervals: {', '.join(kinds)}." if kinds else ""
    if len(metrics) > _MANY and found.summary.tables:
        metrics = [one for one in metrics if one.name == metrics[0].name]
        caption = f"{caption} All metrics are in results.json.".strip()
    rows = [(one.part or "all", one.name, one.n, one.value, one.low, one.high) for one in metrics]
    heading = f"Scores in mode {mode}" if several else "Scores"
    table = Table(("group", "metric", "n", "value", "low", "high"), rows, caption)
    return [Heading(heading), table, *found.summary.tables]


def _by_mode(result: EvaluationResult) -> list[Block]:
    """The headline metric of every part of the data in every mode."""
    name = result.headline.name
    values = {
        mode: {one.part: one.value for one in found.summary.metrics if one.name == name}
        for mode, found in result.modes.items()
    }
    parts = list(dict.fromkeys(part for by_part in values.values() for part in by_part))
    rows = [(part or "all", *(values[mode].get(part) for mode in values)) for part in parts]
    caption = f"{name} of the same responses, read in all modes."
    return [Heading("Scores by mode"), Table(("group", *values), rows, caption)]


def _bars(result: EvaluationResult) -> list[FigureSpec]:
    """The headline metric of all and of each group, a figure a grouping.

    Beside figures of the task a single bar says nothing, and those of many groupings too much.
    """
    name = result.headline.name
    lines = [one for one in result.summary.metrics if one.name == name and one.value is not None]
    every, groupings = lines[:1], list(dict.fromkeys(one.grouping for one in lines[1:]))
    if len(groupings) > _FEW_GROUPINGS and result.summary.figures:
        return []
    if not groupings:
        return [] if result.summary.figures else [_bar_figure("groups", name, "", every)]
    return [
        _bar_figure(
            f"groups-{grouping}" if number else "groups", name, grouping,
            [*every, *(one for one in lines[1:] if one.grouping == grouping)],
        )
        for number, grouping in enumerate(groupings)
    ]  # fmt: skip


def _bar_figure(file: str, name: str, grouping: str, lines: Sequence[Metric]) -> FigureSpec:
    def draw() -> Any:
        from paperhooks.reports import bar_figure

        groups, values = [one.group or "all" for one in lines], [one.value or 0.0 for one in lines]
        title = f"By {grouping or 'group'}"
        return bar_figure(groups, values, intervals=[one.bounds for one in lines], title=title, x=name)

    of_each = f" and of each {grouping or 'group'}" if len(lines) > 1 else ""
    return FigureSpec(file, f"{name} of all documents{of_each}", "Whiskers: 95 % intervals.", draw)


def figure_blocks(run: RunFolder, specs: Sequence[FigureSpec]) -> list[Block]:
    """The figures, drawn into the folder of a run; where they cannot be drawn, a note why."""
    blocks: list[Block] = []
    for spec in specs:
        try:
            run.figure(spec.name, spec.draw())
        except (MissingExtra, LibraryBroken) as error:
            return [Paragraph(f"Without figures: {error}", "note")]
        blocks.append(Figure(spec.name, spec.alt, spec.caption))
    return blocks


def _counts(result: EvaluationResult) -> Table:
    counts = {mode: found.counts() for mode, found in result.modes.items()}
    names = list(result.first.counts())
    rows = [(mode, *(told[name] for name in names)) for mode, told in counts.items()]
    caption = "Unparsable: nothing could be read, scored as the mode says. Truncated: cut at the length limit."
    return Table(("mode", *names), rows, caption)


def _differing(result: EvaluationResult) -> list[Block]:
    """Documents whose score depends on the mode."""
    if len(result.modes) < 2:
        return []
    scores: dict[str, dict[str, float]] = {}
    for mode, found in result.modes.items():
        for record in found.records:
            scores.setdefault(record.document.id, {})[mode] = record.score
    rows = [(key, *(by.get(mode) for mode in result.modes)) for key, by in scores.items() if len(set(by.values())) > 1]
    if not rows:
        return [Paragraph("All modes give every document the same score.")]
    caption = f"Documents whose score depends on the mode: {len(rows)}; the first {min(len(rows), _SHOWN)}."
    return [Table(("document", *result.modes), rows[:_SHOWN], caption)]


def _failures(result: EvaluationResult) -> list[Block]:
    failures = {key: error for found in result.modes.values() for key, error in found.failures.items()}
    if not failures:
        return []
    caption = f"Documents without a score: {len(failures)}; the next call tries again those without a response."
    return [Heading("Failures"), Table(("document", "error"), list(failures.items())[:_SHOWN], caption)]
