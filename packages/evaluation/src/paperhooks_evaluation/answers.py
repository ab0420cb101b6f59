"""Asking a backend what is still open, batch by batch, with prompts made and images opened ahead in threads."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import DataError, LibraryBroken, MissingExtra, PaperhooksError
from paperhooks.generation import Backend, PendingImage, Prompt, Request, Response, separate_reasoning
from paperhooks.io import Picture, Ranks, error_text

from paperhooks_evaluation.context import ContextWatch
from paperhooks_evaluation.picture_store import PictureStore
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
#: Bytes of a pixel in memory.
_PIXEL: Final = 4
#: How many documents answered before have their prompts made again, to see that these are still the same.
_CHECKED: Final = 256


@dataclass(frozen=True, slots=True)
class _Open:
    """A document to be asked: its prompt and the prompt's hash, or why it has none; and what it keeps in memory."""

    document: Document
    prompt: Prompt | None = None
    digest: str | None = None
    error: str = ""
    held: int = 0

    @property
    def pending(self) -> list[PendingImage]:
        """Its images that are not opened yet."""
        images = [] if self.prompt is None else self.prompt.request.images
        return [image for image in images if isinstance(image, PendingImage)]


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

    ``confirm`` raises where the folder of the run is no longer there. ``image_memory``: MiB that images may take which
    are not asked yet.
    """

    def __init__(
        self, plan: Plan, backend: Backend, file: SampleFile, options: AskOptions, batch_size: int, batch_tokens: int,
        image_memory: int, confirm: Callable[[], None],
    ) -> None:  # fmt: skip
        self.plan, self.backend, self.file, self.options = plan, backend, file, options
        self.task, self.confirm = plan.task, confirm
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.image_bytes = image_memory * 2**20
        self._pictures = PictureStore(self.image_bytes)
        self._context = ContextWatch(backend.context())
        self._following: Future[list[_Open]] | None = None
        self.observers: Sequence[Any] = ()
        self._progress: tqdm[Any] | None = None
        self._scores: list[float] = []
        self._unparsable = self._done = self._wanted = 0
        self._begun = 0.0

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
            if self.file.writes:
                self._context.warn(self.plan.name)
            self._pictures.close()
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
        checks = _pieces(_spread(answered, max(_CHECKED, len(waiting))), size) if self.backend.asks else []
        late: list[Future[None]] = []
        left = deque(waiting)
        self._following = worker.submit(self._prepare, left, size)
        while window := self._following.result():
            self._following = worker.submit(self._prepare, left, size)
            if checks:
                late.append(worker.submit(self._check, checks.pop(0)))
            yield window
            for check in [one for one in late if one.done()]:
                check.result()
        for check in [*late, *(worker.submit(self._check, piece) for piece in checks)]:
            check.result()

    def _prepare(self, left: deque[Document], size: int) -> list[_Open]:
        """The next window: at most ``size`` documents, and fewer where what they keep in memory is much.

        There are two windows at a time; pictures that are not opened yet take next to nothing.
        """
        window: list[_Open] = []
        held = 0
        while left and len(window) < size and held < self.image_bytes // 2:
            window.append(self._open(left.popleft()))
            held += window[-1].held
        return window

    def _open(self, document: Document) -> _Open:
        if not self.backend.asks:
            return _Open(document, Prompt(document.id, "", Request()))
        try:
            request = self.task.request(document)
            for image in request.images:
                if isinstance(image, Picture):
                    image.check()
        except (MissingExtra, LibraryBroken):
            raise
        except Exception as error:
            return _Open(document, error=f"request: {error_text(error)}")
        try:
            prompt = self.backend.prompt(document.id, self.options.apply(request))
            prompt.text.encode()  # half of a surrogate pair would end the whole batch
            return _Open(document, prompt, prompt_hash(prompt), held=sum(map(_held, prompt.request.images)))
        except PaperhooksError as error:
            error.add_note(f"while making the prompt of {document.id!r}")
            raise
        except Exception as error:  # an image that cannot be decoded shows only now
            return _Open(document, error=f"prompt: {error_text(error)}")

    def _check(self, documents: Iterable[Document]) -> None:
        for one in map(self._open, documents):
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
        self._begun = time.perf_counter()
        self._write([(one, Response("", error=one.error)) for one in failed])
        queue = self._sorted(window)
        self._context.count(prompt for _, prompt in queue)
        while queue:
            count = self._fitting([prompt for _, prompt in queue[: self.batch_size]])
            done = self._ask(queue[:count], queue[count:])
            queue = [pair for place, pair in enumerate(queue) if place not in done]

    def _sorted(self, window: Sequence[_Open]) -> list[tuple[_Open, Prompt]]:
        queue = [(one, one.prompt) for one in window if one.prompt is not None]
        if self.batch_size > 1:
            queue.sort(key=lambda pair: (pair[1].kind, pair[1].cost))
        return queue

    def _fitting(self, prompts: Sequence[Prompt]) -> int:
        """How many of the prompts, at least one, make a batch: of one kind, and not too many tokens with padding."""
        longest = 0
        for place, prompt in enumerate(prompts):
            if place and self._context.apart and any(map(self._context.reaches, prompts[: place + 1])):
                return place
            longest = max(longest, prompt.tokens)
            if place and (prompt.kind != prompts[0].kind or longest * (place + 1) > self.batch_tokens):
                return place
        return len(prompts)

    def _ask(self, batch: Sequence[tuple[_Open, Prompt]], behind: Sequence[tuple[_Open, Prompt]]) -> Container[int]:
        """Ask one batch while the images behind it are opened; places of those that need not be asked again.

        What did not fit into memory is to be asked again in smaller batches; what failed and may be longer than the
        model's context, alone.
        """
        found = self._shown(batch)
        self._begun = time.perf_counter()
        done = self._unopened(batch, found)
        self._pictures.begin(self._upcoming(behind))
        failure, too_large = "", False
        places = [place for place in range(len(batch)) if place not in done]
        try:
            if places:
                for some in self.backend.answers([_with_images(batch[place][1], found) for place in places]):
                    answered = {places[place]: response for place, response in some.items()}
                    self._write([
                        (batch[place][0], separate_reasoning(response, batch[place][1]))
                        for place, response in answered.items()
                    ])  # fmt: skip
                    done |= set(answered)
        except Exception as error:
            too_large = self.backend.too_large(error)
            beyond = not self.backend.ranks().in_step and self._context.explains(error, [prompt for _, prompt in batch])
            if not too_large and not beyond:
                raise
            failure = error_text(error)
        del found
        self._pictures.release()
        if failure:  # out of the except clause, whose traceback keeps the tensors of the failed forward
            if too_large:
                self.backend.recover()
            if len(batch) > 1:
                self._ask_less(len(batch), too_large)
                return done
            said = failure if too_large else self._context.told(failure, batch[0][1])
            self._write([(batch[0][0], Response("", error=said))])
        elif len(done) < len(batch):
            lost = next(one.document.id for place, (one, _) in enumerate(batch) if place not in done)
            raise PaperhooksError(f"{type(self.backend).__name__} gave no response to {lost!r}")
        if reason := self.backend.down():
            raise DataError(
                f"{reason}; {self._done} of {self._wanted} documents are answered, and the same call goes on from here"
            )
        return range(len(batch))

    def _ask_less(self, count: int, too_large: bool) -> None:
        """From now on, after a batch failed: smaller ones, or what may be longer than the model's context apart."""
        if not too_large:
            self._context.apart = True
            return
        self.batch_size = count // 2
        log.warning("a batch of %d did not fit into memory; going on with %d", count, self.batch_size)

    def _shown(self, batch: Sequence[tuple[_Open, Prompt]]) -> dict[str, Any]:
        """The images of a batch by key, opened, or why they cannot be opened."""
        return self._pictures.show(image for one, _ in batch for image in one.pending)

    def _unopened(self, batch: Sequence[tuple[_Open, Prompt]], found: Mapping[str, Any]) -> set[int]:
        """Places of documents whose images cannot be opened, on any process that holds the same replica; written."""
        errors: dict[int, str] = {}
        if found:
            own = {
                place: f"request: {error_text(found[image.key])}"
                for place, (one, _) in enumerate(batch)
                for image in one.pending
                if isinstance(found[image.key], Exception)
            }
            for told in self.backend.gathered(own):
                errors = told | errors
        self._write([(batch[place][0], Response("", error=error)) for place, error in errors.items()])
        return set(errors)

    def _upcoming(self, behind: Sequence[tuple[_Open, Prompt]]) -> list[PendingImage]:
        """Images that are asked next: those behind a batch, and of the next window once it is made."""
        upcoming, following = list(behind), self._following
        if following is not None and following.done() and not following.cancelled() and following.exception() is None:
            upcoming += self._sorted(following.result())
        return [image for one, _ in upcoming for image in one.pending]

    def _write(self, answers: Sequence[tuple[_Open, Response]]) -> None:
        """Write responses down; each took its share of the time since the ones before it."""
        if not answers:
            return
        self.confirm()
        now = time.perf_counter()
        seconds, self._begun = (now - self._begun) / len(answers), now
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


def _held(image: Any) -> int:
    """Bytes that an image of a prompt keeps in memory until it is asked."""
    if isinstance(image, PendingImage):
        return image.held
    return int(getattr(image, "width", 0) * getattr(image, "height", 0) * _PIXEL)


def _with_images(prompt: Prompt, found: Mapping[str, Any]) -> Prompt:
    """The prompt with the images that are opened by now in their places."""
    images = [found[one.key] if isinstance(one, PendingImage) else one for one in prompt.request.images]
    return dataclasses.replace(prompt, request=dataclasses.replace(prompt.request, images=images)) if images else prompt


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
