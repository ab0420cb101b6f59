"""Running evaluation tasks on a model, with or without methods attached.

A run folder holds ``result.json``, ``samples.jsonl`` (one line an item) and a report. Killing the process loses at most
the batch that was being answered; calling again with the same arguments goes on. ``limit`` may grow from call to call.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from paperhooks.errors import DataError, MissingExtra, PaperhooksError
from paperhooks.intervals import mean_interval
from paperhooks.methods import describe_method
from paperhooks.provenance import hash_json, model_digest
from paperhooks.report import Block, Figure, Heading, Paragraph, RunFolder, Table
from paperhooks.tasks import Item, Score, Task, TaskInfo, checked_items, load_task

if TYPE_CHECKING:
    from paperhooks.engine import Reply, Request
    from paperhooks.samples import SampleFile

__all__ = ["EvaluationResult", "GroupResult", "Item", "Score", "Task", "TaskInfo", "evaluate"]


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Mean score of ``n`` items with its 95 % interval (Wilson's where scores are 0 or 1)."""

    n: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> GroupResult:
        """Summarise scores; there must be at least one."""
        low, high = mean_interval(values)
        return cls(len(values), fmean(values), low, high)

    def as_dict(self) -> dict[str, float]:
        """Plain data."""
        return {"n": self.n, "mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The outcome of a run.

    overall, groups
        Scores over all answered items, and by the items' groups.
    unparsable, truncated, errors
        Replies that could not be read (scored as the task says), replies cut at the length limit, and items that
        failed and are not in the scores.
    path
        The run folder.
    """

    task: str
    overall: GroupResult
    groups: Mapping[str, GroupResult]
    unparsable: int
    truncated: int
    errors: int
    path: Path
    samples: Sequence[Mapping[str, Any]] = field(repr=False, default=())

    def __str__(self) -> str:
        o = self.overall
        text = f"{self.task}: {o.mean:.1%} [{o.low:.1%}, {o.high:.1%}], n = {o.n}"
        counts = (("unparsable", self.unparsable), ("truncated", self.truncated), ("errors", self.errors))
        return text + "".join(f", {count} {name}" for name, count in counts if count) + f"; {self.path / 'report.html'}"


def evaluate(
    model: Any,
    processor: Any,
    task: str | TaskInfo | Task,
    *,
    data: str | Path,
    out: str | Path,
    methods: Sequence[Any] = (),
    limit: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> EvaluationResult:
    """Ask a model all items of a task and score the replies.

    model, processor
        A transformers model and its processor (a tokenizer for text-only tasks). The model may be attached already.
    task
        Name of a task that a plugin offers, its TaskInfo, or a :class:`Task` object.
    methods
        Plugin names or method instances to attach for the run, as in :func:`paperhooks.attach`.
    limit
        Only the first items.

    Raises DataError for data or a folder that cannot be used; items whose prompt or score fails are recorded, counted
    and tried again by the next call.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(f"batch_size = {batch_size} and limit = {limit} must be at least 1")
    name, loaded = load_task(task)
    items = checked_items(name, loaded.items(str(data)))[:limit]
    chosen = [_method(method) for method in methods]
    run = RunFolder(out)
    run.start("evaluate", inputs=_inputs(name, loaded, data, model, processor, chosen), seed=seed)
    with run.timed("evaluate"):
        samples = _Runner(model, processor, loaded, run, chosen).run(items, batch_size, progress)
    return _finish(run, name, samples)


class _Runner:
    """Answers what is still open, batch by batch."""

    def __init__(self, model: Any, processor: Any, task: Task, run: RunFolder, methods: Sequence[Any]) -> None:
        from paperhooks.samples import SampleFile

        self.model, self.processor, self.task, self.methods = model, processor, task, methods
        self.session = ExitStack()
        self.file: SampleFile = SampleFile(run.path / "samples.jsonl")

    def run(self, items: Sequence[Item], batch_size: int, progress: bool) -> list[Mapping[str, Any]]:
        """The rows of all items, in their order."""
        from tqdm import tqdm

        batch: list[tuple[Item, Request, str]] = []
        try:
            for item in tqdm(items, unit="items", disable=not progress):
                batch += self._open(item)
                if len(batch) == batch_size:
                    self._answer(batch)
                    batch = []
            if batch:
                self._answer(batch)
        finally:
            self.file.close()
            self.session.close()
        return [self.file.rows[item.id] for item in items]

    def _open(self, item: Item) -> list[tuple[Item, Request, str]]:
        """The item with its request, or nothing when it was answered before or its request fails."""
        from paperhooks.engine import prompt_text
        from paperhooks.samples import request_hash

        try:
            request = self.task.request(item)
            key = request_hash(request, prompt_text(self.processor, request))
        except PaperhooksError:
            raise
        except Exception as error:
            self.file.append(_failure(item, f"request: {type(error).__name__}: {error}"))
            return []
        return [] if self.file.get(item.id, key) is not None else [(item, request, key)]

    def _answer(self, batch: Sequence[tuple[Item, Request, str]]) -> None:
        from paperhooks.engine import answer

        self._attach()
        begin = time.perf_counter()
        replies = answer(self.model, self.processor, [request for _, request, _ in batch])
        seconds = (time.perf_counter() - begin) / len(batch)
        for (item, _, key), reply in zip(batch, replies, strict=True):
            self.file.append(self._row(item, key, reply, seconds))

    def _attach(self) -> None:
        # Only with something to answer: a finished run asks nothing, and an idle session would warn about that.
        from paperhooks.session import attach

        if self.methods:
            self.session.enter_context(attach(self.model, *self.methods))
            self.methods = ()

    def _row(self, item: Item, key: str, reply: Reply, seconds: float) -> dict[str, Any]:
        row: dict[str, Any] = {"id": item.id, "group": item.group, "request": key, "reply": reply.text}
        row |= {"new_tokens": reply.new_tokens, "truncated": reply.truncated, "seconds": round(seconds, 4)}
        try:
            score = self.task.score(item, reply.text)
        except Exception as error:
            return {**row, "error": f"score: {type(error).__name__}: {error}"}
        return {**row, "parsed": score.parsed, "score": float(score.value), "error": None}


def _failure(item: Item, error: str) -> dict[str, Any]:
    return {"id": item.id, "group": item.group, "error": error}


def _method(method: Any) -> Any:
    from paperhooks.catalog import catalog

    return catalog().create_method(method) if isinstance(method, str) else method


def _inputs(
    name: str, task: Task, data: str | Path, model: Any, processor: Any, methods: Sequence[Any]
) -> dict[str, Any]:
    from paperhooks.session import active_session

    session = active_session(model)
    attached = [describe_method(method) for method in session.methods.values()] if session else []
    return {
        "task": name,
        "version": str(task.version),
        "data": str(data),
        "model": model_digest(model),
        "dtype": str(model.dtype),
        "processor": type(processor).__name__,
        "chat_template": hash_json(getattr(processor, "chat_template", None)),
        "methods": attached + [describe_method(method) for method in methods],
    }


def _finish(run: RunFolder, name: str, samples: Sequence[Mapping[str, Any]]) -> EvaluationResult:
    scored = [row for row in samples if not row.get("error")]
    if not scored:
        first = samples[0]["error"]
        raise DataError(f"task {name!r}: all {len(samples)} items failed, the first with {first!r}; see {run.path}")
    groups: dict[str, list[float]] = {}
    for row in scored:
        groups.setdefault(row["group"] or "all", []).append(row["score"])
    result = EvaluationResult(
        task=name,
        overall=GroupResult.of([row["score"] for row in scored]),
        groups={group: GroupResult.of(values) for group, values in sorted(groups.items())},
        unparsable=sum(row["parsed"] is None for row in scored),
        truncated=sum(bool(row["truncated"]) for row in scored),
        errors=len(samples) - len(scored),
        path=run.path,
        samples=tuple(samples),
    )
    _record(run, result)
    return result


def _record(run: RunFolder, result: EvaluationResult) -> None:
    counts = {"unparsable": result.unparsable, "truncated": result.truncated, "errors": result.errors}
    groups = {name: group.as_dict() for name, group in result.groups.items()}
    run.record(overall=result.overall.as_dict(), groups=groups, **counts)
    run.report(f"Evaluation: {result.task}", _blocks(run, result, counts))
    run.finish()


def _blocks(run: RunFolder, result: EvaluationResult, counts: Mapping[str, int]) -> list[Block]:
    methods = ", ".join(method["class"] for method in run.result["inputs"]["methods"]) or "none"
    lines = {"all": result.overall, **{k: v for k, v in result.groups.items() if k != "all"}}
    rows = [(name, line.n, line.mean, line.low, line.high) for name, line in lines.items()]
    return [
        Paragraph(f"Methods attached: {methods}. Intervals are 95 % (Wilson's for scores of 0 and 1)."),
        Table(("group", "items", "score", "low", "high"), rows),
        *_figure(run, lines),
        Heading("Replies"),
        Table(("what", "items"), list(counts.items())),
    ]


def _figure(run: RunFolder, lines: Mapping[str, GroupResult]) -> list[Block]:
    from paperhooks.figures import bar_figure

    means, intervals = [line.mean for line in lines.values()], [(line.low, line.high) for line in lines.values()]
    try:
        figure = bar_figure(list(lines), means, intervals=intervals, title="Score by group", x="mean score")
    except MissingExtra as error:
        return [Paragraph(f"Without figures: {error}", "note")]
    run.figure("groups", figure)
    return [Figure("groups", "Mean score of each group", "Whiskers: 95 % intervals.")]
