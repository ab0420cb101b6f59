"""What ranks that call one model in step tell one another: which methods they have attached, and who has failed.

They speak through the store of torch.distributed, at which nobody has to wait: a rank that goes on without a session,
or ends, cannot hang the others here. A collective of its own would wait for all of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from paperhooks.errors import PluginConflict
from paperhooks.io.processes import Ranks
from paperhooks.models.engines import leave_groups, shared_store
from paperhooks.models.spread import Spread

__all__ = ["PATIENCE", "Agreement"]

log = logging.getLogger("paperhooks.session")

#: Seconds until a rank that has shown no session is named in the log, and until it is an error.
PATIENCE: Final = [10.0, 300.0]
#: Seconds that the other ranks have to fail likewise, before they are taken to wait for this one.
_GRACE: Final = 3.0
_PAUSE: Final = 0.02
#: How often a rank looks whether another one has failed, in seconds.
_LOOK: Final = 0.5


class Agreement:
    """The part of a session in what the ranks of one model agree upon.

    :param methods: the attached methods by name, each with its options as a text.
    """

    def __init__(self, methods: Mapping[str, str]) -> None:
        self.methods = dict(methods)
        self._group: tuple[int, ...] = ()
        self._met: set[tuple[int, ...]] = set()
        self._base = ""
        self._over = threading.Event()
        self._failed = False

    def meet(self, spread: Spread, training: bool) -> None:
        """Compare the methods of all ranks whose calls wait for one another; once a session and a group of ranks.

        :param training: whether the call is in training mode with gradient: DDP's ranks wait for one another then only.
        :raises PluginConflict: another rank has attached other methods or options, or none.
        """
        group = spread.group if training or spread.in_step else ()
        if len(group) < 2 or group in self._met:
            return
        self._met.add(group)
        rank, store = Ranks().index, shared_store()
        place = f"paperhooks/{','.join(map(str, group))}"
        number = store.add(f"{place}/sessions of {rank}", 1)  # a rank's n-th session meets the others' n-th
        self._base, self._group = f"{place}/{number}", group
        store.set(f"{self._base}/{rank}", json.dumps(self.methods))
        self._watch()
        for other in group:
            self._wait(store, f"{self._base}/{other}", other)
            there = json.loads(store.get(f"{self._base}/{other}"))
            if there != self.methods:
                raise PluginConflict(
                    f"rank {other} has attached {_told(there)}, and rank {rank} {_told(self.methods)}; ranks that "
                    "share one model attach the same methods with the same options, in the same order"
                )

    def _wait(self, store: Any, key: str, other: int) -> None:
        begun, (named, given_up) = time.monotonic(), PATIENCE
        warned = False
        while not store.check([key]):
            waited = time.monotonic() - begun
            if waited > named and not warned:
                warned = True
                log.warning(
                    "rank %d has not called its model with a session yet, and rank %d waits for it since %.0f s",
                    other, Ranks().index, waited,
                )  # fmt: skip
            if waited > given_up:
                raise PluginConflict(
                    f"rank {other} has not called its model with a session of paperhooks within {given_up:g} s, and "
                    f"rank {Ranks().index} has attached {_told(self.methods)}; attach the same methods on every rank"
                )
            time.sleep(_PAUSE)

    # -- failures ----------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """This rank's call of the model raises ``error``: let the others learn of it, who may wait for this rank.

        Where they do not fail likewise within seconds, this rank leaves its process groups, which ends their waiting.
        An error that another rank's leaving has caused gets a note that names that rank.
        """
        if not self._group or self._failed:
            return
        self._failed = True
        self._over.set()
        with contextlib.suppress(Exception):  # a store that is gone must not hide the error
            if self.explain(error):
                return
            store, rank = shared_store(), Ranks().index
            store.set(f"{self._base}/failed {rank}", f"{type(error).__name__}: {error}")
            store.set(f"{self._base}/failed", str(rank))
            others = [f"{self._base}/failed {other}" for other in self._group if other != rank]
            if not _within(_GRACE, lambda: store.check(others)):
                log.error("rank %d leaves its process groups after an error, so that the others do not wait", rank)
                leave_groups()

    def explain(self, error: BaseException) -> bool:
        """Note on ``error`` which other rank has failed before, if one has; returns whether one has."""
        if not self._group:
            return False
        found = self._first()
        if found is None or found[0] == Ranks().index:
            return False
        note = f"paperhooks: rank {found[0]} failed before, with {found[1]}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return True

    def end(self) -> None:
        """The session is closed: nobody is told anything any more."""
        self._over.set()

    def _first(self) -> tuple[int, str] | None:
        """The rank that failed first, and its error."""
        with contextlib.suppress(Exception):
            store = shared_store()
            if store.check([f"{self._base}/failed"]):
                rank = int(store.get(f"{self._base}/failed"))
                return rank, store.get(f"{self._base}/failed {rank}").decode()
        return None

    def _watch(self) -> None:
        """Say in the log as soon as another rank has failed: this one may hear of it by a broken connection only."""

        def look() -> None:
            while not self._over.wait(_LOOK):
                if (found := self._first()) is not None:
                    log.error("rank %d failed, with %s; calls that wait for it will end with an error", *found)
                    return

        threading.Thread(target=look, name="paperhooks-agreement", daemon=True).start()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("what a session agrees upon belongs to its process")


def _told(methods: Mapping[str, str]) -> str:
    return ", ".join(methods.values()) or "nothing"


def _within(limit: float, there: Callable[[], bool]) -> bool:
    end = time.monotonic() + limit
    while not there():
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)
    return True
