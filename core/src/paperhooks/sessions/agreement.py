"""What ranks that call one model in step tell one another: which methods they have attached, and who has failed.

They speak through the store of torch.distributed, at which nobody has to wait: a rank that goes on without a session,
or ends, cannot hang the others here. A collective of its own would wait for all of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from paperhooks.errors import PaperhooksError, PluginConflict
from paperhooks.io.processes import Ranks
from paperhooks.models.engines import shared_store
from paperhooks.models.spread import Spread
from paperhooks.sessions.threads import waiting_place

__all__ = ["PATIENCE", "Agreement"]

log = logging.getLogger("paperhooks.session")

#: Seconds until a rank that has not come here is named in the log, until it is an error where it has attached nothing,
#: and until it is one where it has, and has not called its model yet.
PATIENCE: Final = [10.0, 60.0, 300.0]
#: Seconds that a rank has to fail likewise when another one has failed, before it is taken to wait for that.
_GRACE: Final = 3.0
_PAUSE: Final = 0.02
#: Marks an error that the other ranks were told of.
_TOLD: Final = "told_by_paperhooks"
#: How often a rank looks whether another one has failed, in seconds.
_LOOK: Final = 0.5


class Agreement:
    """The part of a session in what the ranks of one model agree upon.

    A rank's n-th meeting is the others' n-th.

    :param methods: the attached methods by name, each with its options as a text.
    """

    def __init__(self, methods: Mapping[str, str]) -> None:
        self.methods = dict(methods)
        self._group: tuple[int, ...] = ()
        self._met: set[tuple[int, ...]] = set()
        self._base = ""
        self._failures = 0
        self._in_step = False
        self._over = threading.Event()
        #: A rank that has closed its session, as far as this one has noticed.
        self.left: int | None = None

    def announce(self) -> None:
        """A session opens on this rank: the others may wait longer for its first call."""
        if Ranks().count > 1:
            shared_store().add(_attached(Ranks().index), 1)

    def meet(self, spread: Spread, training: bool) -> None:
        """Compare the methods of all ranks whose calls wait for one another; once a session and a group of ranks.

        :param training: whether the call is in training mode with gradient: DDP's ranks wait for one another then only.
        :raises PluginConflict: another rank has attached other methods or options, or none.
        :raises PaperhooksError: another rank has failed before it came here.
        """
        group = spread.group if training or spread.in_step else ()
        if len(group) < 2:
            return
        rank = Ranks().index
        if self.left is not None:
            raise PluginConflict(
                f"rank {self.left} has closed its session, and rank {rank} goes on with {_told(self.methods)}; close "
                "it on every rank, before the next call of the model"
            )
        if group in self._met:
            return
        self._met.add(group)
        store, self._in_step = shared_store(), spread.in_step
        self._base, self._group = _base(store.add(_count(rank), 1)), group
        store.set(f"{self._base}/{rank}", json.dumps(self.methods))
        if len(self._met) == 1:
            self._begin()
        for other in group:
            self._wait(store, other)
            there = json.loads(store.get(f"{self._base}/{other}"))
            if list(there.items()) != list(self.methods.items()):
                raise PluginConflict(
                    f"rank {other} has attached {_told(there)}, and rank {rank} {_told(self.methods)}; ranks that "
                    "share one model attach the same methods with the same options, in the same order"
                )

    def _begin(self) -> None:
        """Watch the other ranks from a thread of its own."""
        name, caller = "paperhooks-agreement", threading.get_ident()
        threading.Thread(target=self._watch, args=(caller,), name=name, daemon=True).start()

    def _wait(self, store: Any, other: int) -> None:
        begun, rank, (named, without, given_up) = time.monotonic(), Ranks().index, PATIENCE
        warned = False
        while not store.check([f"{self._base}/{other}"]):
            waited = time.monotonic() - begun
            if not store.add(_attached(other), 0):
                given_up = without
            if waited > _GRACE and (found := self._failed(store, other, 0)):
                raise PaperhooksError(f"rank {other} failed before its first call of the model, with {found[1]}")
            if waited > named and not warned:
                warned = True
                log.warning(
                    "rank %d has called no model with a session, and rank %d waits for it; attach the same methods on "
                    "every rank", other, rank,
                )  # fmt: skip
            if waited > given_up:
                raise PluginConflict(
                    f"rank {other} has not called its model with a session of paperhooks within {given_up:g} s, and "
                    f"rank {rank} has attached {_told(self.methods)}; attach the same methods on every rank"
                )
            time.sleep(_PAUSE)

    # -- failures ----------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException, training: bool = True) -> None:
        """This rank's call of the model raises ``error``: let the others learn of it, who may wait for this rank.

        An error that another rank's end has caused gets a note that names that rank.

        :param training: whether the call was in training mode with gradient; DDP's ranks wait for no other.
        """
        if Ranks().count == 1 or getattr(error, _TOLD, False) or not (training or self._in_step):
            return
        setattr(error, _TOLD, True)
        rank = Ranks().index
        self.explain(error)
        with contextlib.suppress(Exception):  # a store that is gone must not hide the error
            store = shared_store()
            base = self._base or _base(store.add(_count(rank), 0) + 1)
            told = json.dumps([time.time(), f"{type(error).__name__}: {error}"])
            store.set(f"{base}/failed {self._failures}/{rank}", told)
        self._failures += 1

    def explain(self, error: BaseException) -> None:
        """Note on ``error`` which other rank has failed before with another one, if one has."""
        with contextlib.suppress(Exception):
            found = self._first(shared_store(), self._failures) if self._group else None
            if found is not None and not found[1].endswith(f": {error}"):
                note = f"paperhooks: rank {found[0]} failed before, with {found[1]}"
                if note not in getattr(error, "__notes__", ()):
                    error.add_note(note)

    def end(self) -> None:
        """The session is closed: the others are told that, and nothing any more."""
        self._over.set()
        if self._group:
            with contextlib.suppress(Exception):  # the group has ended
                shared_store().set(f"{self._base}/closed {Ranks().index}", "")

    def _first(self, store: Any, number: int) -> tuple[int, str] | None:
        """The other rank that failed first in the ``number``-th failure, and its error."""
        others = [rank for rank in self._group if rank != Ranks().index]
        found = [(told, rank) for rank in others if (told := self._failed(store, rank, number))]
        return (min(found)[1], min(found)[0][1]) if found else None

    def _failed(self, store: Any, rank: int, number: int) -> tuple[float, str] | None:
        """When and with which error a rank has failed."""
        key = f"{self._base}/failed {number}/{rank}"
        if not store.check([key]):
            return None
        when, error = json.loads(store.get(key))
        return float(when), str(error)

    def _watch(self, caller: int) -> None:
        """Look whether another rank has failed and this one, whose calls come from thread ``caller``, has not.

        It may wait for that rank in a collective, which nothing can interrupt and which torch gives up after half an
        hour: then this process ends, as torch's own watchdog ends it.
        """
        number = 0
        with contextlib.suppress(Exception):  # the group has ended
            while not self._over.wait(_LOOK):
                found = self._first(shared_store(), number)
                gone = [r for r in self._group if shared_store().check([f"{self._base}/closed {r}"])]
                self.left = gone[0] if gone else None
                if found is None:
                    continue
                if self._over.wait(_GRACE):
                    return
                if self._failures > number:  # the same error, or one that followed from it
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
        place = waiting_place(caller)
        for _ in range(int(_GRACE / _LOOK)):
            if place is None or self._over.wait(_LOOK) or waiting_place(caller) != place:
                return False
        return True


def _count(rank: int) -> str:
    return f"paperhooks/meetings of {rank}"


def _attached(rank: int) -> str:
    return f"paperhooks/sessions of {rank}"


def _base(number: int) -> str:
    return f"paperhooks/meeting {number}"


def _told(methods: Mapping[str, str]) -> str:
    return ", ".join(methods.values()) or "nothing"
