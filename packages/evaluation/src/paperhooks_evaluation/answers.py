"""The documents of a task as requests by id, whose responses are written down and scored as they come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from paperhooks.generation import Ledger, Reply, Request

from paperhooks_evaluation.plan import AskOptions, Plan
from paperhooks_evaluation.samples import SampleFile, sample_row
from paperhooks_evaluation.scoring import score_row
from paperhooks_evaluation.task import Document, Record

__all__ = ["TaskLedger", "notify"]

log = logging.getLogger("paperhooks.evaluation")


def notify(observers: Sequence[Any], event: str, *details: Any) -> None:
    """Call a method of all observers that have it; what it raises is logged and goes no further."""
    for observer in observers:
        method = getattr(observer, event, None)
        if method is None:
            continue
        try:
            method(*details)
        except Exception:
            log.exception("the observer %r failed in %s(); the evaluation goes on", observer, event)


class TaskLedger(Ledger):
    """The documents of a plan, by id; the running score is that of the first mode.

    ``confirm`` raises where the folder of the run is no longer there.
    """

    noun, unit = "document", "docs"

    def __init__(
        self, plan: Plan, documents: Sequence[Document], file: SampleFile, options: AskOptions,
        observers: Sequence[Any], confirm: Callable[[], None],
    ) -> None:  # fmt: skip
        self.plan, self.file, self.options = plan, file, options
        self.observers, self.confirm = observers, confirm
        self.name, self.writes = plan.name, file.writes
        self._documents = {document.id: document for document in documents}
        self._scores: list[float] = []
        self._unparsable = 0

    def request(self, key: str) -> Request:
        """The task's request for a document."""
        return self.plan.task.request(self._documents[key])

    def laid_out(self, request: Request) -> Request:
        """As the user wishes it to be asked."""
        return self.options.apply(request)

    def check(self, key: str, digest: str) -> None:
        """Raise DataError where a document was answered by another prompt."""
        self.file.check_prompt(key, digest)

    def write(self, replies: Sequence[Reply]) -> None:
        """Write the rows down, and tell the observers of what was answered."""
        self.confirm()
        self.file.append(sample_row(self._documents[reply.id], reply) for reply in replies)
        for reply in replies:
            if not reply.response.error:
                self._tell(self._documents[reply.id])

    def progress(self) -> str:
        """The running score."""
        n = len(self._scores)
        return f"score {sum(self._scores) / n:.3f}, unparsable {self._unparsable / n:.1%}" if n else ""

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _tell(self, document: Document) -> None:
        row, plan = self.file.rows[document.id], self.plan
        try:
            record = score_row(plan.task, document, row, plan.modes[0], plan.keep_reasoning)
        except Exception:  # counted and shown when the run is scored
            return
        self._count(record)
        notify(self.observers, "sample", record)

    def _count(self, record: Record) -> None:
        self._scores.append(record.score)
        self._unparsable += record.parsed.fallback
