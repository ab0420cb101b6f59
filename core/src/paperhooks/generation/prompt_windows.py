"""Prompts made ahead of the model, a window at a time, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from paperhooks.generation.ledger import Ledger
from paperhooks.generation.open_requests import OpenRequest, open_request
from paperhooks.generation.requests import Backend

__all__ = ["PromptWindows"]

#: Batches in a window: prompts are sorted by cost within one, and one more is made ahead of the model.
_WINDOW: Final = 8
_LEAST: Final = 4
#: How many requests answered before have their prompts made again, to see that these are still the same.
_CHECKED: Final = 256


class PromptWindows:
    """Makes the prompts of a ledger's requests while those before them are asked.

    In between, the thread makes prompts of requests answered before again, to see that they are still the same: no
    more of them than there are open ones, beyond the first few, so that the rest of a long run stays short.

    :param batch_size: requests of a batch; a window has several.
    :param most: bytes that the images of two windows may keep in memory.
    """

    def __init__(self, ledger: Ledger, backend: Backend, batch_size: int, most: int) -> None:
        self.ledger, self.backend = ledger, backend
        self._size, self._most = max(_LEAST, _WINDOW * batch_size), most
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="paperhooks-prompts")
        self._following: Future[list[OpenRequest]] | None = None

    def windows(self, waiting: Sequence[str], answered: Sequence[str]) -> Iterator[list[OpenRequest]]:
        """Windows of open requests, each made while the one before it is asked; none of them is empty.

        :raises DataError: a request answered before has another prompt now.
        """
        worker, left = self._worker, deque(waiting)
        checks = _pieces(_spread(answered, max(_CHECKED, len(waiting))), self._size) if self.backend.asks else []
        late: list[Future[None]] = []
        following = self._following = worker.submit(self._prepare, left)
        while window := following.result():
            following = self._following = worker.submit(self._prepare, left)
            if checks:
                late.append(worker.submit(self._check, checks.pop(0)))
            yield window
            for check in [one for one in late if one.done()]:
                check.result()
        for check in [*late, *(worker.submit(self._check, piece) for piece in checks)]:
            check.result()

    def following(self) -> list[OpenRequest]:
        """The next window where it is made by now; else nothing."""
        made = self._following
        there = made is not None and made.done() and not made.cancelled() and made.exception() is None
        return made.result() if made is not None and there else []

    def close(self) -> None:
        """Make nothing more."""
        self._worker.shutdown(cancel_futures=True)

    def _prepare(self, left: deque[str]) -> list[OpenRequest]:
        """The next window: fewer requests where what they keep in memory is much.

        There are two windows at a time; pictures that are not opened yet take next to nothing.
        """
        window: list[OpenRequest] = []
        held = 0
        while left and len(window) < self._size and held < self._most // 2:
            window.append(open_request(self.ledger, self.backend, left.popleft()))
            held += window[-1].held
        return window

    def _check(self, keys: Sequence[str]) -> None:
        for one in (open_request(self.ledger, self.backend, key) for key in keys):
            if one.digest is not None:
                self.ledger.check(one.id, one.digest)


def _spread(keys: Sequence[str], most: int) -> Sequence[str]:
    """At most so many of the ids, evenly from all of them."""
    return keys if len(keys) <= most else [keys[i * len(keys) // most] for i in range(most)]


def _pieces(keys: Sequence[str], size: int) -> list[Sequence[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]
