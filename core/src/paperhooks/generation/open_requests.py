"""Requests that have no reply yet, with their prompts; all processes that hold one replica have the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paperhooks.errors import LibraryBroken, MissingExtra, PaperhooksError
from paperhooks.generation.hashes import prompt_hash
from paperhooks.generation.ledger import Ledger
from paperhooks.generation.pending_images import PendingImage
from paperhooks.generation.requests import Backend, Prompt, Request
from paperhooks.io.harmless import error_text
from paperhooks.io.images import Picture
from paperhooks.io.processes import Ranks

__all__ = ["OpenRequest", "agreed", "open_request", "with_images"]

#: Bytes of a pixel in memory.
_PIXEL: Final = 4


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What is to be asked: its prompt and the prompt's hash, or why it has none; and what it keeps in memory."""

    id: str
    prompt: Prompt | None = None
    digest: str | None = None
    error: str = ""
    held: int = 0

    @property
    def pending(self) -> list[PendingImage]:
        """Its images that are not opened yet."""
        images = [] if self.prompt is None else self.prompt.request.images
        return [image for image in images if isinstance(image, PendingImage)]


def open_request(ledger: Ledger, backend: Backend, key: str) -> OpenRequest:
    """The request of an id with its prompt, or with the error that making them ended in.

    :raises PaperhooksError: what is wrong is no matter of this request, such as a missing library.
    """
    if not backend.asks:
        return OpenRequest(key, Prompt(key, "", Request()))
    try:
        request = ledger.request(key)
        for image in request.images:
            if isinstance(image, Picture):
                image.check()
    except (MissingExtra, LibraryBroken):
        raise
    except Exception as error:
        return OpenRequest(key, error=f"request: {error_text(error)}")
    try:
        prompt = backend.prompt(key, ledger.laid_out(request))
        prompt.text.encode()  # half of a surrogate pair would end the whole batch
        return OpenRequest(key, prompt, prompt_hash(prompt), held=sum(map(_held, prompt.request.images)))
    except PaperhooksError as error:
        error.add_note(f"while making the prompt of {key!r}")
        raise
    except Exception as error:  # an image that cannot be decoded shows only now
        return OpenRequest(key, error=f"prompt: {error_text(error)}")


def agreed(backend: Backend, window: Sequence[OpenRequest], failure: Exception | None, noun: str) -> list[OpenRequest]:
    """The requests as all processes have them that hold one replica together.

    What fails on one of them, or has another prompt there, fails on all.

    :param failure: why this process has no window.
    :raises PaperhooksError: one of them failed, or they have different requests left.
    """
    told = backend.gathered(
        (
            Ranks().index,
            [(one.id, one.digest, one.error) for one in window],
            "" if failure is None else f"{type(failure).__name__}: {failure}",
        )
    )
    if failure is not None:
        raise failure
    for rank, _, message in told:
        if message:
            raise PaperhooksError(f"rank {rank} failed: {message}")
    if any([row[0] for row in rows] != [one.id for one in window] for _, rows, _ in told):
        raise PaperhooksError(
            f"ranks {[rank for rank, *_ in told]}, which hold one model together, have different {noun}s left; "
            "give them the same data and the same folder"
        )
    return [_settled(one, [(rank, *rows[place][1:]) for rank, rows, _ in told]) for place, one in enumerate(window)]


def _settled(one: OpenRequest, told: Sequence[tuple[int, str | None, str]]) -> OpenRequest:
    """A request as all have it: with the first error of any rank, or where one has made another prompt.

    :param told: rank, hash of the prompt and error, each.
    """
    if error := next((error for _, _, error in told if error), ""):
        return OpenRequest(one.id, error=error)
    first, digest, _ = told[0]
    for rank, its_digest, _ in told:
        if its_digest != digest:
            return OpenRequest(one.id, error=f"prompt: rank {rank} has made another prompt than rank {first}")
    return one


def with_images(prompt: Prompt, found: Mapping[str, Any]) -> Prompt:
    """The prompt with the images that are opened by now in their places."""
    images = [found[one.key] if isinstance(one, PendingImage) else one for one in prompt.request.images]
    return dataclasses.replace(prompt, request=dataclasses.replace(prompt.request, images=images)) if images else prompt


def _held(image: Any) -> int:
    """Bytes that an image of a prompt keeps in memory until it is asked."""
    if isinstance(image, PendingImage):
        return image.held
    return int(getattr(image, "width", 0) * getattr(image, "height", 0) * _PIXEL)
