"""Who asks: what is asked under which id, and where the replies are written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paperhooks.generation.requests import Request, Response

__all__ = ["Ledger", "Reply"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a request.

    :param id: the request's.
    :param digest: hash of its prompt; None where there was none.
    :param seconds: its share of the time since the replies before it.
    """

    id: str
    response: Response
    digest: str | None = None
    seconds: float = 0.0


class Ledger:
    """What an :class:`~paperhooks.generation.Asker` asks, by id, and where it writes the replies.

    :ivar name: of the whole, in warnings.
    :ivar noun, unit: what messages and the line of progress call that which is asked.
    :ivar writes: whether this process writes for its replica.
    """

    name: str = "requests"
    noun: str = "request"
    unit: str = "requests"
    writes: bool = True

    def request(self, key: str) -> Request:
        """The request of an id; what it raises is the error of this id. Called in a worker thread."""
        raise NotImplementedError

    def laid_out(self, request: Request) -> Request:
        """The request with its images where they go, not opened yet. Called in a worker thread."""
        return request

    def check(self, key: str, digest: str) -> None:
        """Raise DataError where the reply that is there was given to a prompt of another hash."""
        return

    def write(self, replies: Sequence[Reply]) -> None:
        """Write replies down at once, those with an error too."""
        raise NotImplementedError

    def progress(self) -> str:
        """What the line of progress says beside the count."""
        return ""

    def close(self) -> None:
        """Nothing more is written."""
        return
