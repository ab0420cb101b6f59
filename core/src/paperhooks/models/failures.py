"""Errors of ranks that wait for one another in the middle of a call: the others are told, and nobody waits for ever.

They speak through the store of torch.distributed, at which nobody has to wait; a collective would wait for all of them.

A rank that fails may handle its error and go on, which is nobody else's business; or it leaves for good. So the others
are told in the log, and none is ended but one that stands in a call of the model which needs the failed rank: at once
where that one has left, and after a minute where it has gone nowhere since.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final, NamedTuple

from paperhooks.io.processes import Ranks
from paperhooks.models.engines import shared_store

__all__ = ["GRACE", "Failures", "RankFailure"]

log = logging.getLogger("paperhooks.models")

#: Seconds that a rank has to fail likewise when another one has failed, before it is taken to wait for that.
GRACE: Final = 3.0
#: Seconds until a rank counts as gone that has failed, has not left, and has called the model no more.
_HANDLED: Final = 60.0
_PAUSE: Final = 0.02
#: How often a rank looks whether another one has failed, in seconds.
_LOOK: Final = 0.5
#: The attribute of an error that has the places where the other ranks were told of it.
_TOLD: Final = "told_by_paperhooks"
#: Where torch's own Python code stands while a collective runs: a call of one, a wrapper's, or the backward pass.
_COLLECTIVES: Final = tuple(f"/torch/{place}" for place in ("distributed", "nn/parallel", "autograd", "_ops.py"))


class RankFailure(NamedTuple):
    """A rank's failure: when, in which of its calls of the model, with which error, and whether it left for good."""

    when: float
    call: int
    error: str
    final: bool


class Failures:
    """What ranks that wait for one another tell of their errors.

    :param place: where they tell it in the store, the same on all of them. :param group: these ranks. :param calls:
        how many calls of the model this rank has begun; a rank's n-th call belongs to the others' n-th.
    """

    def __init__(self, place: str, group: Sequence[int] = (), calls: Callable[[], int] = lambda: 0) -> None:
        self.group, self.calls = tuple(group), calls
        self._place = place
        self._mine: RankFailure | None = None
        #: Whether this rank has failed and not gone on since.
        self.stands = False
        self._over = threading.Event()
        #: A rank that has left for good, as far as this one has noticed.
        self.left: int | None = None

    def watch(self, *, everywhere: bool = False) -> None:
        """Look from a thread of its own whether another rank has failed that this one, which calls here, waits for.

        A collective cannot be interrupted, and torch gives it up after half an hour: so this process ends then, as
        torch's own watchdog ends it.

        :param everywhere: whether a collective outside of the model's calls needs the other ranks as well.
        """
        watch = _Watch(weakref.ref(self), self._over, threading.get_ident(), everywhere)
        threading.Thread(target=watch.run, name="paperhooks-failures", daemon=True).start()

    def tell(self, error: BaseException, *, final: bool = False) -> None:
        """This rank fails with ``error``; one that another rank's end has caused gets a note that names that rank.

        :param final: whether this rank calls the model with the others no more.
        """
        places = getattr(error, _TOLD, ())
        if self._place in places and not final:
            return
        if self._place not in places:
            setattr(error, _TOLD, (*places, self._place))
            self.explain(error)
            self._mine = RankFailure(time.time(), self.calls(), f"{type(error).__name__}: {error}", final)
        elif self._mine is not None:
            self._mine = self._mine._replace(final=final)
        self.stands = True
        self._set(self._mine)

    def go_on(self) -> None:
        """This rank calls the model again: its last failure was handled."""
        self.stands = False
        self._set(None)

    def explain(self, error: BaseException) -> None:
        """Note on ``error`` which other rank has failed before, in the same call or for good."""
        with contextlib.suppress(Exception):  # a store that is gone must not hide the error
            found = [(told, rank) for rank in self._others() if (told := self.of(rank)) and self._concerns(told)]
            told, rank = min(found)
            note = f"paperhooks: rank {rank} failed before, with {told.error}"
            if not told.error.endswith(f": {error}") and note not in getattr(error, "__notes__", ()):
                error.add_note(note)

    def lonely(self) -> bool:
        """Whether this rank's failure stays one that not all ranks have in this call; waits for them a while."""
        end = time.monotonic() + GRACE
        with contextlib.suppress(Exception):  # the store is gone, and so are they
            while not all(map(self._alike, (self.of(rank) for rank in self._others()))):
                if time.monotonic() > end:
                    return True
                time.sleep(_PAUSE)
        return False

    def of(self, rank: int) -> RankFailure | None:
        """A rank's last failure; None where it has not failed, or has gone on since."""
        store, key = shared_store(), self._key("failure", rank)
        told = json.loads(store.get(key)) if store.check([key]) else None
        return None if told is None else RankFailure(*told)

    def needed(self) -> tuple[int, RankFailure] | None:
        """The rank that failed first, with an error that this rank does not have; looks who has left, too."""
        store, others = shared_store(), self._others()
        self.left = next((rank for rank in others if store.check([self._key("left", rank)])), None)
        found = [(told, rank) for rank in others if (told := self.of(rank)) and not self._alike(told)]
        return (min(found)[1], min(found)[0]) if found else None

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()

    def leave(self) -> None:
        """Watch no more, and tell the others that this rank calls the model with them no more."""
        self.stop()
        with contextlib.suppress(Exception):  # the group has ended
            shared_store().set(self._key("left", Ranks().index), "")

    def _others(self) -> list[int]:
        return [rank for rank in self.group if rank != Ranks().index]

    def _concerns(self, told: RankFailure) -> bool:
        return told.final or told.call == self.calls()

    def _alike(self, told: RankFailure | None) -> bool:
        """Whether this rank has failed in the same call."""
        return told is not None and self._mine is not None and told.call == self._mine.call

    def _key(self, what: str, rank: int) -> str:
        return f"{self._place}/{what} {rank}"

    def _set(self, failure: RankFailure | None) -> None:
        with contextlib.suppress(Exception):  # a store that is gone must not hide the error
            shared_store().set(self._key("failure", Ranks().index), json.dumps(failure))


class _Watch:
    """The thread that looks after the other ranks; it ends with what it serves."""

    def __init__(
        self, served: weakref.ref[Failures], over: threading.Event, caller: int, everywhere: bool
    ) -> None:  # fmt: skip
        self.served, self.over, self.caller, self.everywhere = served, over, caller, everywhere
        self.told: set[tuple[int, float]] = set()
        self.seen = self.since = 0.0
        self.failure: tuple[int, RankFailure] | None = None
        self.place: tuple[int, int] | None = None

    def run(self) -> None:
        with contextlib.suppress(Exception):  # the group has ended
            while not self.over.wait(_LOOK):
                failures = self.served()
                if failures is None:
                    return
                self._look(failures)
                del failures

    def _look(self, failures: Failures) -> None:
        now, found = time.monotonic(), failures.needed()
        if found is None or self.failure is None or found[1].when != self.failure[1].when:
            self.seen = now
        place = None if found is None else _waiting_place(self.caller, self.everywhere)
        if place is None or place != self.place or self.failure is None:
            self.since = now
        self.failure, self.place = found, place
        if found is None or now - self.seen < GRACE:
            return
        rank, failure = found
        if (rank, failure.when) not in self.told:
            self.told.add((rank, failure.when))
            log.error("rank %d failed in its call %d of the model, with %s", rank, failure.call, failure.error)
        patience = GRACE if failure.final else _HANDLED
        if place is not None and now - self.since >= patience and (failure.final or failure.call == failures.calls()):
            text = f"rank {Ranks().index} ends: it waits for rank {rank}, which failed with {failure.error}"
            sys.stderr.write(f"paperhooks: {text}\n")
            sys.stderr.flush()
            os._exit(1)


def _waiting_place(thread: int, everywhere: bool) -> tuple[int, int] | None:
    """Where a thread stands that may wait for other processes in torch: equal as long as it stays; None elsewhere.

    Inside of a call of a module or of a backward pass only, unless ``everywhere``.
    """
    frame: Any = sys._current_frames().get(thread)
    if frame is None or not any(place in _file(frame) for place in _COLLECTIVES):
        return None
    return (id(frame), frame.f_lasti) if everywhere or _in_call(frame) else None


def _in_call(frame: FrameType | None) -> bool:
    """Names of functions are all that is read: variables may change under the reader."""
    while isinstance(frame, FrameType):
        if frame.f_code.co_name == "_call_impl" or "/torch/autograd" in _file(frame):
            return True
        frame = frame.f_back
    return False


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename.replace(os.sep, "/")
