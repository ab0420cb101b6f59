"""Asking a backend what is still open, batch by batch, with prompts made ahead in a worker thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import DataError, LibraryBroken, MissingExtra, PaperhooksError
from paperhooks.generation import Backend, Prompt, Request, Response, separate_reasoning
from paperhooks.io import Ranks, error_text

from paperhooks_evaluation.plan import AskOptions, Plan
from paperhooks_evaluation.samples import SampleFile, prompt_hash, sample_row
from paperhooks_evaluation.scoring import score_row
from paperhooks_evaluation.task import Document, Record

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Asker", "notify"]

log = logging.getLogger("paperhooks.evaluation")

#: Batches in a window: prompts are sorted by cost within one, and one more is made ahead of the model.
_WINDOW: Final = 8
_LEAST: Final = 4
#: How many documents answered before have their prompts made again, to see that these are still the same.
_CHECKED: Final = 256


@dataclass(frozen=True, slots=True)
class _Open:
    """A document to be asked: its prompt and the prompt's hash, or why it has none."""

    document: Document
    prompt: Prompt | None = None
    digest: str | None = None
    error: str = ""


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


class Asker:
    """Asks documents and writes the responses down after every batch; the running score is that of the first mode.

    ``confirm`` raises where the folder of the run is no longer there.
    """

    def __init__(
        self, plan: Plan, backend: Backend, file: SampleFile, options: AskOptions, batch_size: int, batch_tokens: int,
        confirm: Callable[[], None],
    ) -> None:  # fmt: skip
        self.plan, self.backend, self.file, self.options = plan, backend, file, options
        self.task, self.confirm = plan.task, confirm
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.observers: Sequence[Any] = ()
        self._progress: tqdm[Any] | None = None
        self._scores: list[float] = []
        self._unparsable = self._done = self._wanted = 0

    def run(self, documents: Sequence[Document], observers: Sequence[Any] = (), progress: bool = False) -> None:
        """Ask the documents that have no response; the backend is not opened when there is none."""
        from tqdm import tqdm

        self.observers = observers
        answered: list[Document] = []
        waiting: list[Document] = []
        for document in documents:
            (answered if self.file.answered(document) else waiting).append(document)
        self._done, self._wanted = len(answered), len(documents)
        if not waiting:
            return
        worker = ThreadPoolExecutor(1, thread_name_prefix="paperhooks-prompts")
        # None: shown on a terminal only.
        bar = {"total": len(documents), "initial": len(answered), "disable": None if progress else True}
        try:
            with self.backend.opened(), tqdm(unit="docs", **bar) as self._progress:
                windows = self._windows(worker, waiting, answered)
                while window := self._agreed(windows):
                    self._ask_window(window)
        finally:
            worker.shutdown(cancel_futures=True)
            self.file.close()

    # -- ahead of the model ----------------------------------------------------------------------------------------

    def _windows(
        self, worker: ThreadPoolExecutor, waiting: Sequence[Document], answered: Sequence[Document]
    ) -> Iterator[list[_Open]]:
        """Windows of open documents, each made while the one before it is asked.

        In between, the worker makes prompts of documents answered before again, to see that they are still the same: no
        more of them than there are open ones, beyond the first few, so that the rest of a long run stays short.
        """
        size = max(_LEAST, _WINDOW * self.batch_size)
        windows = _pieces(waiting, size)
        checks = _pieces(_spread(answered, max(_CHECKED, len(waiting))), size) if self.backend.asks else []
        late: list[Future[None]] = []
        following: Future[list[_Open]] = worker.submit(self._prepare, windows[0])
        for number in range(len(windows)):
            current = following
            if number + 1 < len(windows):
                following = worker.submit(self._prepare, windows[number + 1])
            if checks:
                late.append(worker.submit(self._check, checks.pop(0)))
            yield current.result()
            for check in [one for one in late if one.done()]:
                check.result()
        for check in [*late, *(worker.submit(self._check, piece) for piece in checks)]:
            check.result()

    def _prepare(self, documents: Sequence[Document]) -> list[_Open]:
        return [self._open(document) for document in documents]

    def _open(self, document: Document) -> _Open:
        if not self.backend.asks:
            return _Open(document, Prompt(document.id, "", Request()))
        try:
            request = self.task.request(document)
        except (MissingExtra, LibraryBroken):
            raise
        except Exception as error:
            return _Open(document, error=f"request: {error_text(error)}")
        try:
            prompt = self.backend.prompt(document.id, self.options.apply(request))
            prompt.text.encode()  # half of a surrogate pair would end the whole batch
            return _Open(document, prompt, prompt_hash(prompt))
        except PaperhooksError as error:
            error.add_note(f"while making the prompt of {document.id!r}")
            raise
        except Exception as error:  # an image that cannot be decoded shows only now
            return _Open(document, error=f"prompt: {error_text(error)}")

    def _check(self, documents: Iterable[Document]) -> None:
        for one in self._prepare(list(documents)):
            if one.digest is not None:
                self.file.check_prompt(one.document.id, one.digest)

    def _agreed(self, windows: Iterator[list[_Open]]) -> list[_Open]:
        """The next window, empty at the end: the same documents on all processes that hold one replica together.

        What fails on one of them, or has another prompt there, fails on all.
        """
        failure: Exception | None = None
        window: list[_Open] = []
        try:
            window = next(windows, [])
        except Exception as error:
            failure = error
        told = self.backend.gathered(
            (
                Ranks().index,
                [(one.document.id, one.digest, one.error) for one in window],
                "" if failure is None else f"{type(failure).__name__}: {failure}",
            )
        )
        if failure is not None:
            raise failure
        for rank, _, message in told:
            if message:
                raise PaperhooksError(f"rank {rank} failed: {message}")
        if any([row[0] for row in rows] != [one.document.id for one in window] for _, rows, _ in told):
            raise PaperhooksError(
                f"ranks {[rank for rank, *_ in told]}, which hold one model together, have different documents left; "
                "give them the same data and the same folder"
            )
        return [_settled(one, [(rank, *rows[place][1:]) for rank, rows, _ in told]) for place, one in enumerate(window)]

    # -- asking ----------------------------------------------------------------------------------------------------

    def _ask_window(self, window: Sequence[_Open]) -> None:
        failed = [one for one in window if one.prompt is None]
        self._write([(one, Response("", error=one.error)) for one in failed], 0.0)
        queue = [(one, one.prompt) for one in window if one.prompt is not None]
        if self.batch_size > 1:
            queue.sort(key=lambda pair: (pair[1].kind, pair[1].cost))
        while queue:
            count = self._fitting([prompt for _, prompt in queue[: self.batch_size]])
            if self._ask(queue[:count]):
                del queue[:count]

    def _fitting(self, prompts: Sequence[Prompt]) -> int:
        """How many of the prompts, at least one, make a batch: of one kind, and not too many tokens with padding."""
        longest = 0
        for place, prompt in enumerate(prompts):
            longest = max(longest, prompt.tokens)
            if place and (prompt.kind != prompts[0].kind or longest * (place + 1) > self.batch_tokens):
                return place
        return len(prompts)

    def _ask(self, batch: Sequence[tuple[_Open, Prompt]]) -> bool:
        """Ask one batch; False when it did not fit into memory and is to be asked in smaller ones."""
        begin = time.perf_counter()
        too_large = ""
        try:
            responses = self.backend.answer([prompt for _, prompt in batch])
        except Exception as error:
            if not self.backend.too_large(error):
                raise
            too_large = error_text(error)
        if too_large:  # out of the except clause, whose traceback keeps the tensors of the failed forward
            self.backend.recover()
            if len(batch) > 1:
                self.batch_size = len(batch) // 2
                log.warning("a batch of %d did not fit into memory; going on with %d", len(batch), self.batch_size)
                return False
            responses = [Response("", error=too_large)]
        seconds = (time.perf_counter() - begin) / len(batch)
        pairs = zip(batch, responses, strict=True)
        self._write([(one, separate_reasoning(response, prompt)) for (one, prompt), response in pairs], seconds)
        if reason := self.backend.down():
            raise DataError(
                f"{reason}; {self._done} of {self._wanted} documents are answered, and the same call goes on from here"
            )
        return True

    def _write(self, answers: Sequence[tuple[_Open, Response]], seconds: float) -> None:
        if not answers:
            return
        self.confirm()
        self.file.append(sample_row(one.document, response, one.digest, seconds) for one, response in answers)
        for one, response in answers:
            if not response.error:
                self._done += 1
                self._tell(one.document)
        if self._progress is not None:
            self._progress.update(len(answers))
            self._progress.set_postfix_str(self._running())

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

    def _running(self) -> str:
        n = len(self._scores)
        return f"score {sum(self._scores) / n:.3f}, unparsable {self._unparsable / n:.1%}" if n else ""


def _settled(one: _Open, told: Sequence[tuple[int, str | None, str]]) -> _Open:
    """A document as all have it: with the first error of any rank, or where one has made another prompt.

    :param told: rank, hash of the prompt and error, each.
    """
    if error := next((error for _, _, error in told if error), ""):
        return _Open(one.document, error=error)
    first, digest, _ = told[0]
    for rank, its_digest, _ in told:
        if its_digest != digest:
            return _Open(one.document, error=f"prompt: rank {rank} has made another prompt than rank {first}")
    return one


def _spread(documents: Sequence[Document], most: int) -> Sequence[Document]:
    """At most so many of the documents, evenly from all of them."""
    return documents if len(documents) <= most else [documents[i * len(documents) // most] for i in range(most)]


def _pieces(documents: Sequence[Document], size: int) -> list[Sequence[Document]]:
    return [documents[start : start + size] for start in range(0, len(documents), size)]
