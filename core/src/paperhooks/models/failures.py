"""Errors of ranks that wait for one another in the middle of a call: the others are told, and nobody waits for ever.

They speak through the store of torch.distributed, at which nobody has to wait; a collective would wait for all of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from paperhooks.io.processes import Ranks
from paperhooks.models.engines import shared_store

__all__ = ["GRACE", "Failures"]

log = logging.getLogger("paperhooks.models")

#: Seconds that a rank has to fail likewise when another one has failed, before it is taken to wait for that.
GRACE: Final = 3.0
_PAUSE: Final = 0.02
#: How often a rank looks whether another one has failed, in seconds.
_LOOK: Final = 0.5
#: The attribute of an error that has the places where the other ranks were told of it.
_TOLD: Final = "told_by_paperhooks"
#: Where torch's own Python code stands while a collective runs: a call of one, a wrapper's, or the backward pass.
_COLLECTIVES: Final = tuple(f"/torch/{place}" for place in ("distributed", "nn/parallel", "autograd", "_ops.py"))


class Failures:
    """What ranks that wait for one another tell of their errors.

    A rank's n-th failure is the others' n-th: ranks that fail alike, or one after the other, go on together.

    :param place: where they tell it in the store, the same on all of them. :param group: these ranks.
    """

    def __init__(self, place: str, group: Sequence[int] = ()) -> None:
        self._place, self._group = place, tuple(group)
        self._told = 0
        self._over = threading.Event()
        #: A rank that has left for good, as far as this one has noticed.
        self.left: int | None = None

    def watch(self) -> None:
        """Look from a thread of its own whether another rank has failed and this one, which calls here, has not.

        It may wait for that rank in a collective, which nothing can interrupt and which torch gives up after half an
        hour: then this process ends, as torch's own watchdog ends it.
        """
        caller = threading.get_ident()
        threading.Thread(target=self._watch, args=(caller,), name="paperhooks-failures", daemon=True).start()

    def tell(self, error: BaseException) -> None:
        """This rank fails with ``error``; one that another rank's end has caused gets a note that names that rank."""
        places = getattr(error, _TOLD, ())
        if self._place in places:
            return
        setattr(error, _TOLD, (*places, self._place))
        self.explain(error)
        with contextlib.suppress(Exception):  # a store that is gone must not hide the error
            told = json.dumps([time.time(), f"{type(error).__name__}: {error}"])
            shared_store().set(self._key(self._told, Ranks().index), told)
        self._told += 1

    def explain(self, error: BaseException) -> None:
        """Note on ``error`` which other rank has failed before with another one, if one has."""
        with contextlib.suppress(Exception):
            found = self._first(self._told)
            if found is not None and not found[1].endswith(f": {error}"):
                note = f"paperhooks: rank {found[0]} failed before, with {found[1]}"
                if note not in getattr(error, "__notes__", ()):
                    error.add_note(note)

    def lonely(self) -> bool:
        """Whether this rank's last failure stays one that not all ranks have; waits for them a while."""
        end = time.monotonic() + GRACE
        with contextlib.suppress(Exception):  # the store is gone, and so are they
            while not all(self.of(rank, self._told - 1) for rank in self._group):
                if time.monotonic() > end:
                    return True
                time.sleep(_PAUSE)
        return False

    def of(self, rank: int, number: int = 0) -> tuple[float, str] | None:
        """When and with which error a rank has failed for the ``number``-th time; None where it has not."""
        store, key = shared_store(), self._key(number, rank)
        if not store.check([key]):
            return None
        when, error = json.loads(store.get(key))
        return float(when), str(error)

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()

    def leave(self) -> None:
        """Watch no more, and tell the others that this rank calls the model with them no more."""
        self.stop()
        with contextlib.suppress(Exception):  # the group has ended
            shared_store().set(self._gone(Ranks().index), "")

    def _key(self, number: int, rank: int) -> str:
        return f"{self._place}/failed {number}/{rank}"

    def _gone(self, rank: int) -> str:
        return f"{self._place}/left {rank}"

    def _first(self, number: int) -> tuple[int, str] | None:
        """The other rank that failed first in the ``number``-th failure, and its error."""
        others = [rank for rank in self._group if rank != Ranks().index]
        found = [(told, rank) for rank in others if (told := self.of(rank, number))]
        return (min(found)[1], min(found)[0][1]) if found else None

    def _watch(self, caller: int) -> None:
        number = 0
        with contextlib.suppress(Exception):  # the group has ended
            while not self._over.wait(_LOOK):
                found = self._first(number)
                self.left = next((r for r in self._group if shared_store().check([self._gone(r)])), None)
                if found is None:
                    continue
                if self._over.wait(GRACE):
                    return
                if self._told > number:  # the same error, or one that followed from it
                    number += 1
                    continue
                log.error("rank %d failed, with %s; whoever waits for it is told now", *found)
                if self._stays(caller):
                    text = f"rank {Ranks().index} ends: it waits for rank {found[0]}, which failed with {found[1]}"
                    sys.stderr.write(f"paperhooks: {text}\n")
                    sys.stderr.flush()
                    os._exit(1)
                return

    def _stays(self, caller: int) -> bool:
        """Whether a thread stays in one and the same collective for some seconds."""
        place = _waiting_place(caller)
        for _ in range(int(GRACE / _LOOK)):
            if place is None or self._over.wait(_LOOK) or _waiting_place(caller) != place:
                return False
        return True


def _waiting_place(thread: int) -> tuple[int, int] | None:
    """Where a thread stands that may wait for other processes in torch: equal as long as it stays; None elsewhere."""
    frame: Any = sys._current_frames().get(thread)
    file = "" if frame is None else frame.f_code.co_filename.replace(os.sep, "/")
    if not any(place in file for place in _COLLECTIVES):
        return None
    return id(frame), frame.f_lasti
