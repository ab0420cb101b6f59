"""What ranks that call one model in step agree upon: which methods they have attached.

They speak through the store of torch.distributed, at which nobody has to wait: a rank that goes on without a session,
or ends, cannot hang the others here. A collective of its own would wait for all of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from paperhooks.errors import PaperhooksError, PluginConflict
from paperhooks.io.processes import Ranks
from paperhooks.models.engines import shared_store
from paperhooks.models.failures import GRACE, Failures
from paperhooks.models.spread import Spread

__all__ = ["PATIENCE", "Agreement"]

log = logging.getLogger("paperhooks.session")

#: Seconds until a rank that has not come here is named in the log, until it is an error where it has attached nothing,
#: and until it is one where it has, and has not called its model yet.
PATIENCE: Final = [10.0, 60.0, 300.0]
_PAUSE: Final = 0.02


class Agreement:
    """The part of a session in what the ranks of one model agree upon.

    A rank's n-th meeting is the others' n-th.

    :param methods: the attached methods by name, each with its options as a text.
    """

    def __init__(self, methods: Mapping[str, str]) -> None:
        self.methods = dict(methods)
        self._met: set[tuple[int, ...]] = set()
        self._failures = Failures("paperhooks/no meeting")
        self._in_step = False

    @property
    def left(self) -> int | None:
        """A rank that has closed its session, as far as this one has noticed."""
        return self._failures.left

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
        base = _base(store.add(_count(rank), 1))
        store.set(f"{base}/{rank}", json.dumps(self.methods))
        self._failures.stop()
        self._failures = Failures(base, group)
        self._failures.watch()
        for other in group:
            self._wait(store, base, other)
            there = json.loads(store.get(f"{base}/{other}"))
            if list(there.items()) != list(self.methods.items()):
                raise PluginConflict(
                    f"rank {other} has attached {_told(there)}, and rank {rank} {_told(self.methods)}; ranks that "
                    "share one model attach the same methods with the same options, in the same order"
                )

    def _wait(self, store: Any, base: str, other: int) -> None:
        begun, rank, (named, without, given_up) = time.monotonic(), Ranks().index, PATIENCE
        warned = False
        while not store.check([f"{base}/{other}"]):
            waited = time.monotonic() - begun
            if not store.add(_attached(other), 0):
                given_up = without
            if waited > GRACE and (found := self._failures.of(other)):
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

    def fail(self, error: BaseException, training: bool = True) -> None:
        """This rank's call of the model raises ``error``: let the others learn of it, who may wait for this rank.

        An error that another rank's end has caused gets a note that names that rank.

        :param training: whether the call was in training mode with gradient; DDP's ranks wait for no other.
        """
        if Ranks().count == 1 or not (training or self._in_step):
            return
        if not self._met:  # the others learn of it at their next meeting
            with contextlib.suppress(Exception):  # a store that is gone must not hide the error
                self._failures = Failures(_base(shared_store().add(_count(Ranks().index), 0) + 1))
        self._failures.tell(error)

    def end(self) -> None:
        """The session is closed: the others are told that, and nothing any more."""
        if self._met:
            self._failures.leave()


def _count(rank: int) -> str:
    return f"paperhooks/meetings of {rank}"


def _attached(rank: int) -> str:
    return f"paperhooks/sessions of {rank}"


def _base(number: int) -> str:
    return f"paperhooks/meeting {number}"


def _told(methods: Mapping[str, str]) -> str:
    return ", ".join(methods.values()) or "nothing"
