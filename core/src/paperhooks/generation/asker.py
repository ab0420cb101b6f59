"""Asking a backend what is still open, batch by batch, with prompts made and images opened ahead in threads."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import DataError, PaperhooksError
from paperhooks.generation.context_watch import ContextWatch
from paperhooks.generation.ledger import Ledger, Reply
from paperhooks.generation.open_requests import OpenRequest, agreed, with_images
from paperhooks.generation.pending_images import PendingImage
from paperhooks.generation.picture_store import PictureStore
from paperhooks.generation.prompt_windows import PromptWindows
from paperhooks.generation.requests import Backend, Prompt, Response
from paperhooks.generation.thoughts import separate_reasoning
from paperhooks.io.harmless import error_text

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["BATCH_TOKENS", "Asker"]

log = logging.getLogger("paperhooks.generation")

#: Tokens of a batch, with padding, unless the user says otherwise: 64 prompts of 256, or four of 4,096.
BATCH_TOKENS: Final = 16_384

_Pair = tuple[OpenRequest, Prompt]


class Asker:
    """Asks the requests of a ledger and has the responses written down after every batch.

    A batch that does not fit into memory is halved. Processes that hold one replica together ask the same.

    :param batch_size, batch_tokens: how many requests are asked at a time at most, and how many tokens their prompts
        may have with padding.
    :param image_memory: MiB that images may take which are not asked yet.
    """

    def __init__(
        self, ledger: Ledger, backend: Backend, batch_size: int, batch_tokens: int, image_memory: int
    ) -> None:  # fmt: skip
        self.ledger, self.backend = ledger, backend
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        most = image_memory * 2**20
        self._pictures = PictureStore(most)
        self._prompts = PromptWindows(ledger, backend, batch_size, most)
        self._context = ContextWatch(backend.context())
        self._progress: tqdm[Any] | None = None
        self._done = self._wanted = 0
        self._begun = 0.0

    def run(self, waiting: Sequence[str], answered: Sequence[str] = (), progress: bool = False) -> None:
        """Ask what waits; of what is answered, see that its prompts are still the same. Once for an asker.

        :param progress: show one line on a terminal.
        :raises DataError: the backend gives no further answers, or a request answered before has another prompt now.
        :raises PaperhooksError: the backend left one out, or another process of the replica failed.
        """
        from tqdm import tqdm

        self._done, self._wanted = len(answered), len(answered) + len(waiting)
        # None: shown on a terminal only.
        bar = {"total": self._wanted, "initial": self._done, "disable": None if progress else True}
        try:
            with self.backend.opened(), tqdm(unit=self.ledger.unit, **bar) as self._progress:
                windows = self._prompts.windows(waiting, answered)
                while window := self._agreed(windows):
                    self._ask_window(window)
        finally:
            self._prompts.close()
            if self.ledger.writes:
                self._context.warn(self.ledger.name)
            self._pictures.close()
            self.ledger.close()

    def _agreed(self, windows: Iterator[list[OpenRequest]]) -> list[OpenRequest]:
        """The next window, empty at the end: the same requests on all processes that hold one replica together."""
        failure: Exception | None = None
        window: list[OpenRequest] = []
        try:
            window = next(windows, [])
        except Exception as error:
            failure = error
        return agreed(self.backend, window, failure, self.ledger.noun)

    # -- asking ----------------------------------------------------------------------------------------------------

    def _ask_window(self, window: Sequence[OpenRequest]) -> None:
        failed = [one for one in window if one.prompt is None]
        self._begun = time.perf_counter()
        self._write([(one, Response("", error=one.error)) for one in failed])
        queue = self._sorted(window)
        self._context.count(prompt for _, prompt in queue)
        while queue:
            count = self._fitting([prompt for _, prompt in queue[: self.batch_size]])
            done = self._ask(queue[:count], queue[count:])
            queue = [pair for place, pair in enumerate(queue) if place not in done]

    def _sorted(self, window: Sequence[OpenRequest]) -> list[_Pair]:
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

    def _ask(self, batch: Sequence[_Pair], behind: Sequence[_Pair]) -> Container[int]:
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
                for some in self.backend.answers([with_images(batch[place][1], found) for place in places]):
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
            lost = next(one.id for place, (one, _) in enumerate(batch) if place not in done)
            raise PaperhooksError(f"{type(self.backend).__name__} gave no response to {lost!r}")
        if reason := self.backend.down():
            raise DataError(
                f"{reason}; {self._done} of {self._wanted} {self.ledger.noun}s are answered, and the same call goes on "
                "from here"
            )
        return range(len(batch))

    def _ask_less(self, count: int, too_large: bool) -> None:
        """From now on, after a batch failed: smaller ones, or what may be longer than the model's context apart."""
        if not too_large:
            self._context.apart = True
            return
        self.batch_size = count // 2
        log.warning("a batch of %d did not fit into memory; going on with %d", count, self.batch_size)

    def _shown(self, batch: Sequence[_Pair]) -> dict[str, Any]:
        """The images of a batch by key, opened, or why they cannot be opened."""
        return self._pictures.show(image for one, _ in batch for image in one.pending)

    def _unopened(self, batch: Sequence[_Pair], found: Mapping[str, Any]) -> set[int]:
        """Places of requests whose images cannot be opened, on any process that holds the same replica; written."""
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

    def _upcoming(self, behind: Sequence[_Pair]) -> list[PendingImage]:
        """Images that are asked next: those behind a batch, and of the next window once it is made."""
        return [image for one, _ in [*behind, *self._sorted(self._prompts.following())] for image in one.pending]

    def _write(self, answers: Sequence[tuple[OpenRequest, Response]]) -> None:
        """Have responses written down; each took its share of the time since the ones before it."""
        if not answers:
            return
        now = time.perf_counter()
        seconds, self._begun = (now - self._begun) / len(answers), now
        self.ledger.write([Reply(one.id, response, one.digest, seconds) for one, response in answers])
        self._done += sum(not response.error for _, response in answers)
        if self._progress is not None:
            self._progress.update(len(answers))
            self._progress.set_postfix_str(self.ledger.progress())
