"""Images opened in threads ahead of the model, within a bound of memory, and once where several prompts show them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from paperhooks.generation.pending_images import PendingImage

__all__ = ["PictureStore"]

_THREADS: Final = 4
_PIXEL: Final = 4
#: How much of the bound is for images; the rest is for decoders, and for what the allocator keeps of what is freed.
_SHARE: Final = 3 / 4
#: How many images are remembered at most, however small they are.
_COUNT: Final = 4096


@dataclass(slots=True)
class _Opening:
    """An image that is being opened, or was.

    :param taken: bytes: what opening takes at its peak, and once that is seen to be done, what the image takes.
    """

    future: Future[Any]
    taken: int
    done: bool = False

    def seen(self) -> _Opening:
        """Itself, with what is known of it by now."""
        if not self.done and self.future.done():
            image = None if self.future.exception() else self.future.result()
            self.done, self.taken = True, image.width * image.height * _PIXEL if image else 0
        return self


class PictureStore:
    """Pending images by what their pixels depend on.

    Those of the prompts that are being asked come on top of the bound; all others, opened ahead or remembered from
    before, stay within it. All methods are called from one thread; threads of its own do nothing but open images.

    :param most: the bound, in bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = int(most * _SHARE)
        self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="paperhooks-pictures")
        self._kept: dict[str, _Opening] = {}  # the ones used longest ago first
        self._shown: dict[str, _Opening] = {}
        self._later: set[str] = set()

    def show(self, images: Iterable[PendingImage]) -> dict[str, Any]:
        """The images by key, opened: what is asked now. In the place of one that cannot be opened stands the error."""
        shown: dict[str, _Opening] = {}
        for image in images:
            key = image.key
            if key not in shown:
                shown[key] = self._kept.pop(key) if key in self._kept else self._submitted(image)
        self._shown = shown
        return {key: one.future.exception() or one.future.result() for key, one in shown.items()}

    def begin(self, upcoming: Sequence[PendingImage]) -> None:
        """Begin to open what is asked next, in this order, as far as the bound allows."""
        self._later = {image.key for image in upcoming}
        taken = self._taken()
        for image in upcoming:
            if image.key in self._shown:
                continue
            if image.key in self._kept:
                self._kept[image.key] = self._kept.pop(image.key)
                continue
            taken = self._with_room(taken, image.peak_bytes)
            if taken + image.peak_bytes > self._most or len(self._kept) >= _COUNT:
                return
            self._kept[image.key] = self._submitted(image)
            taken += image.peak_bytes

    def release(self) -> None:
        """What was shown is no longer asked: it is remembered as far as the bound allows."""
        shown, self._shown = self._shown, {}
        taken = self._taken()
        for key, one in shown.items():
            taken = self._with_room(taken, one.seen().taken)
            if taken + one.taken <= self._most and len(self._kept) < _COUNT:
                self._kept[key] = one
                taken += one.taken

    def close(self) -> None:
        """Open nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _taken(self) -> int:
        return sum(one.seen().taken for one in self._kept.values())

    def _with_room(self, taken: int, wanted: int) -> int:
        """Forget images that are not asked next until there is room for as many bytes; returns what is taken then."""
        if wanted > self._most or (taken + wanted <= self._most and len(self._kept) < _COUNT):
            return taken
        for key in [key for key, one in self._kept.items() if key not in self._later and one.done]:
            taken -= self._kept.pop(key).taken
            if taken + wanted <= self._most and len(self._kept) < _COUNT:
                break
        return taken

    def _submitted(self, image: PendingImage) -> _Opening:
        return _Opening(self._pool.submit(image.open), image.peak_bytes)
