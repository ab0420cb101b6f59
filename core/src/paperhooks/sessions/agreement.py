"""What ranks that call one model in step agree upon: which methods they have attached.

They speak through the store of torch.distributed, at which nobody has to wait: a rank that goes on without a session,
or ends, cannot hang the others here. A collective of its own would wait for all of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from paperhooks.errors import PaperhooksError, PluginConflict
from paperhooks.io.processes import Ranks
from paperhooks.models.engines import shared_store
from paperhooks.models.failures import GRACE, Failures
from paperhooks.models.spread import Spread
from paperhooks.sessions.method_options import OptionTexts, unlike, words

__all__ = ["PATIENCE", "Agreement"]

log = logging.getLogger("paperhooks.session")

#: Seconds until a rank that has not come here is named in the log, until it is an error where it has attached nothing,
#: and until it is one where it has, and has not called its model yet.
PATIENCE: Final = [10.0, 60.0, 300.0]
_PAUSE: Final = 0.02
#: Where errors stand that left a session before its first call; and how many there are.
_EARLY: Final = "paperhooks/early failures"


class Agreement:
    """The part of a session in what the ranks of one model agree upon.

    A rank's n-th meeting is the others' n-th.

    :param methods: tells the options of the attached methods, in the order of attaching; asked where there is somebody
        to agree with.
    :param calls: how many calls of the model have begun in this session.
    """

    def __init__(self, methods: Callable[[], OptionTexts], calls: Callable[[], int]) -> None:
        self._tell, self._calls = methods, calls
        self._announced = False
        self._number = self._early = 0
        self._refused: dict[tuple[int, ...], str] = {}
        self._met: set[tuple[int, ...]] = set()
        self._failures = Failures("paperhooks/no meeting")
        self._in_step = False

    @cached_property
    def methods(self) -> OptionTexts:
        """The options of the attached methods."""
        return self._tell()

    @property
    def left(self) -> int | None:
        """A rank that has closed its session, as far as this one has noticed."""
        return self._failures.left

    @property
    def disturbed(self) -> bool:
        """Whether the next call needs another meeting: this rank's last one has failed, or another rank has left."""
        return self._failures.stands or self._failures.left is not None

    def announce(self) -> None:
        """A session opens on this rank: the others may wait longer for its first call."""
        if Ranks().count > 1:
            store, self._announced = shared_store(), True
            store.add(_attached(Ranks().index), 1)
            self._number, self._early = store.add(_opened(Ranks().index), 1), store.add(_EARLY, 0)

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
            failure = self._failures.of(self.left)
            raise PluginConflict(
                f"rank {self.left} has closed its session{f' with {failure.error}' if failure else ''}, and rank "
                f"{rank} goes on with {words(self.methods)}; close it on every rank, before the next call of the model"
            )
        if self._failures.stands:
            self._failures.go_on()
        if group in self._refused:
            raise PluginConflict(self._refused[group])
        if group in self._met:
            return
        store, self._in_step = shared_store(), spread.in_step
        base = _base(group, store.add(_count(group, rank), 1))
        store.set(f"{base}/{rank}", json.dumps(self.methods))
        try:
            for other in group:
                self._wait(store, base, other)
                there = json.loads(store.get(f"{base}/{other}"))
                if (both := unlike(there, self.methods)) is not None:
                    self._refused[group] = (
                        f"rank {other} has attached {both[0]}, and rank {rank} {both[1]}; ranks that share one model "
                        "attach the same methods with the same options, in the same order"
                    )
                    raise PluginConflict(self._refused[group])
        except _NotCome:
            # The other rank's next meeting is this one, if it comes: this rank's must not stand before it.
            store.add(_count(group, rank), -1)
            store.delete_key(f"{base}/{rank}")
            raise
        self._met.add(group)
        self._failures.stop()
        self._failures = Failures(base, group, self._calls)
        self._failures.watch()

    def _wait(self, store: Any, base: str, other: int) -> None:
        begun, rank, (named, without, given_up) = time.monotonic(), Ranks().index, PATIENCE
        warned = False
        while not store.check([f"{base}/{other}"]):
            waited = time.monotonic() - begun
            if not store.add(_attached(other), 0):
                given_up = without
            if waited > GRACE and (error := self._failed_early(store, other)):
                raise _NotCome(f"rank {other} failed before its first call of the model, with {error}")
            if waited > named and not warned:
                warned = True
                log.warning(
                    "rank %d has called no model with a session, and rank %d waits for it; attach the same methods on "
                    "every rank", other, rank,
                )  # fmt: skip
            if waited > given_up:
                raise PluginConflict(
                    f"rank {other} has not called its model with a session of paperhooks within {given_up:g} s, and "
                    f"rank {rank} has attached {words(self.methods)}; attach the same methods on every rank"
                )
            time.sleep(_PAUSE)

    def _failed_early(self, store: Any, other: int) -> str:
        """The error with which a rank has left its session without having come here: this very one, or one since."""
        for number in range(store.add(_EARLY, 0)):
            if not store.check([f"{_EARLY} {number}"]):
                continue  # it is being written
            rank, opened, error = json.loads(store.get(f"{_EARLY} {number}"))
            ours = opened == self._number or number >= self._early
            if rank == other and ours and opened == store.add(_opened(other), 0):  # it has opened no other one since
                return str(error)
        return ""

    def fail(self, error: BaseException, training: bool = True, *, final: bool = False) -> None:
        """This rank's call of the model raises ``error``: let the others learn of it, who may wait for this rank.

        An error that another rank's end has caused gets a note that names that rank.

        :param training: whether the call was in training mode with gradient; DDP's ranks wait for no other.
        :param final: whether it leaves the session.
        """
        if not self._announced or not (training or self._in_step):
            return
        if self._met:
            self._failures.tell(error, final=final)
        elif final:
            with contextlib.suppress(Exception):  # a store that is gone must not hide the error
                store, rank = shared_store(), Ranks().index
                told = [rank, store.add(_opened(rank), 0), f"{type(error).__name__}: {error}"]
                store.set(f"{_EARLY} {store.add(_EARLY, 1) - 1}", json.dumps(told))

    def end(self) -> None:
        """The session is closed: the others are told that, and nothing any more."""
        if self._announced:
            with contextlib.suppress(Exception):  # the group has ended
                shared_store().add(_attached(Ranks().index), -1)
        if self._met:
            self._failures.leave()


class _NotCome(PaperhooksError):
    """Another rank does not come to a meeting."""


def _count(group: tuple[int, ...], rank: int) -> str:
    return f"paperhooks/meetings {group} of {rank}"


def _attached(rank: int) -> str:
    """Where it stands how many sessions a rank has open."""
    return f"paperhooks/sessions of {rank}"


def _opened(rank: int) -> str:
    """Where it stands how many sessions a rank has opened so far."""
    return f"paperhooks/sessions so far of {rank}"


def _base(group: tuple[int, ...], number: int) -> str:
    return f"paperhooks/meeting {group} {number}"
