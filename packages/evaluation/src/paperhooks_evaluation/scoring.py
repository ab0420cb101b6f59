"""From stored responses to figures: every mode reads and scores the same responses. Needs neither model nor images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paperhooks.errors import DataError, did_you_mean
from paperhooks.io import error_text

from paperhooks_evaluation.task import Document, Parsed, Record, Summary, Task, mean_metrics

__all__ = ["ModeResult", "check_modes", "score_mode", "score_response", "score_row"]


@dataclass(frozen=True, slots=True)
class ModeResult:
    """What one mode makes of a run.

    :param records, summary: the scored documents in their order, and the task's figures.
    :param unparsable, truncated, empty: responses that could not be read, that were cut at the length limit, and that
        hold nothing.
    :param failures: id to error of the documents without a score: those not answered, and those whose response could
        not be scored.
    """

    mode: str
    records: Sequence[Record]
    summary: Summary
    unparsable: int
    truncated: int
    empty: int
    failures: Mapping[str, str]

    def counts(self) -> dict[str, int]:
        """Plain data: the number of scored documents and what to know about the others."""
        return {
            "scored": len(self.records),
            "unparsable": self.unparsable,
            "truncated": self.truncated,
            "empty": self.empty,
            "failed": len(self.failures),
        }


def check_modes(name: str, task: Task, modes: Sequence[str] | None) -> tuple[str, ...]:
    """The wanted modes, all of the task's without a wish; raises DataError for an unknown one."""
    if isinstance(modes, str):
        modes = (modes,)
    wanted = tuple(dict.fromkeys(modes if modes else task.modes))
    for mode in wanted:
        if mode not in task.modes:
            raise DataError(f"the task {name!r} has no mode {mode!r}; {did_you_mean(mode, task.modes)}")
    return wanted


def score_response(task: Task, document: Document, response: str, mode: str, truncated: bool = False) -> Record:
    """Read and score one response."""
    parsed = task.parse(document, response, mode)
    if not isinstance(parsed, Parsed):
        raise TypeError(f"{type(task).__name__}.parse returned {type(parsed).__name__}, not Parsed")
    score = float(task.score(document, parsed))
    if not math.isfinite(score):
        raise ValueError(f"{type(task).__name__}.score returned {score}")
    return Record(document, response, parsed, score, truncated)


def score_row(
    task: Task, document: Document, row: Mapping[str, Any], mode: str, keep_reasoning: bool = False
) -> Record:
    """Read and score a stored response, with the reasoning in front of it where that is wanted.

    Reasoning that no answer follows was cut, whatever the backend says of its end.
    """
    reasoning, answer = row.get("reasoning") or "", row["reply"]
    truncated = row.get("finish") == "length" or (reasoning != "" and not answer.strip())
    return score_response(task, document, reasoning + answer if keep_reasoning else answer, mode, truncated)


def score_mode(
    task: Task, documents: Sequence[Document], rows: Mapping[str, Mapping[str, Any]], mode: str, *,
    keep_reasoning: bool = False, whole: bool = True,
) -> ModeResult:  # fmt: skip
    """Score the responses to ``documents`` in a mode; a response that cannot be scored is a failure, not an error.

    Unless the data are ``whole`` (other shards are still to come), the figures are plain means: a task may need all
    documents for its own.
    """
    records: list[Record] = []
    failures: dict[str, str] = {}
    for document in documents:
        row = rows.get(document.id)
        if row is None or row.get("error"):
            failures[document.id] = str(row["error"]) if row else "not answered"
            continue
        try:
            records.append(score_row(task, document, row, mode, keep_reasoning))
        except Exception as error:
            failures[document.id] = f"score: {error_text(error)}"
    settled = _settled(task, records, mode)
    return ModeResult(
        mode=mode,
        records=settled,
        summary=task.aggregate(settled, mode) if settled and whole else Summary(mean_metrics(task.metric, settled)),
        unparsable=sum(record.parsed.fallback for record in settled),
        truncated=sum(record.truncated for record in settled),
        empty=sum(not record.response.strip() for record in settled),
        failures=failures,
    )


def _settled(task: Task, records: Sequence[Record], mode: str) -> tuple[Record, ...]:
    settled = tuple(task.settle(records, mode))
    if [record.document.id for record in settled] != [record.document.id for record in records]:
        raise DataError(f"{type(task).__name__}.settle must return its records in their order, each changed at most")
    return settled
