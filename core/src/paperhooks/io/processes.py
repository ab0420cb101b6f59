"""The processes that share a run: those of ``torch.distributed``, or of one launch that has not initialised it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

from paperhooks.errors import DataError, PaperhooksError

__all__ = ["Ranks", "joined", "launched"]

T = TypeVar("T")

_PATIENCE: Final = timedelta(days=1)


def launched(*, one_machine: bool = True) -> tuple[int, int]:
    """This process' index and how many there are: of torch.distributed, else of RANK and WORLD_SIZE, else 0, 1.

    :param one_machine: refuse a launch that spans several machines.
    :raises DataError: such a launch, or an environment that says what cannot be.
    """
    ranks = Ranks()
    if ranks.count > 1:
        index, count = ranks.index, ranks.count
    else:
        index, count = _environment("RANK", 0), _environment("WORLD_SIZE", 1)
    if not 0 <= index < count:
        raise DataError(f"RANK is {index} and WORLD_SIZE {count}; expected 0 <= RANK < WORLD_SIZE")
    here = _environment("LOCAL_WORLD_SIZE", count)
    if one_machine and here < count:
        raise DataError(
            f"{count} processes were launched, {here} of them on this machine; a folder of work serves the processes "
            "of one machine: start them on one, or give each machine a part of the corpus and a folder of its own"
        )
    return index, count


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of a launch as a group of torch.distributed while the block lasts, where they are none yet.

    The group passes plain objects alone, on the CPU, and its processes wait for one another for a day.

    :raises DataError: an environment that says what cannot be, or lacks where the processes meet.
    """
    index, count = launched(one_machine=False)
    if count < 2 or Ranks().count > 1:
        yield Ranks()
        return
    from torch import distributed

    try:
        distributed.init_process_group("gloo", timeout=_PATIENCE)
    except ValueError as error:  # MASTER_ADDR and the like
        raise DataError(
            f"RANK is {index} and WORLD_SIZE {count}, and these processes cannot meet: {error}; start them with "
            "torchrun, or unset WORLD_SIZE for one process alone"
        ) from error
    try:
        yield Ranks()
    finally:
        distributed.destroy_process_group()


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


class Ranks:
    """The processes of ``torch.distributed``, or this process alone when none is initialised.

    They share work by replicas of a model. By default each process is one; of what several of them hold together, as by
    tensor parallelism, all do the same work, and one writes it down.

    :param alone: know of no other process.
    :param replica, replicas: this process' replica, and how many there are.
    :param leader: whether this process speaks for its replica.
    :param in_step: whether processes that hold parts of one model must call it equally often.
    """

    def __init__(
        self, alone: bool = False, *, replica: int | None = None, replicas: int | None = None, leader: bool = True,
        in_step: bool = False,
    ) -> None:  # fmt: skip
        # A process that never loaded torch.distributed has not initialised it either.
        distributed = sys.modules.get("torch.distributed")
        joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
        self._distributed: Any = distributed if joined and not alone else None
        self.index = self._distributed.get_rank() if self._distributed else 0
        self.count = self._distributed.get_world_size() if self._distributed else 1
        self.replica = self.index if replica is None else replica
        self.replicas = self.count if replicas is None else replicas
        self.leader, self.in_step = leader, in_step

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.index == 0

    @property
    def shard(self) -> tuple[int, int] | None:
        """The share of the work that this process' replica does; None for all of it."""
        return (self.replica, self.replicas) if self.replicas > 1 else None

    def agreed(self, step: Callable[[], T]) -> T:
        """The result of a step that all take together: an error of one ends it for all, as in :meth:`meet`."""
        try:
            result = step()
        except Exception as error:
            self.meet(error)
            raise
        self.meet()
        return result

    def meet(self, error: BaseException | None = None, *, working: bool = False, group: Any = None) -> bool:
        """Wait for all; an error of one is raised by all, so that none waits for ever.

        :param working: whether this process goes on with work that the others take part in. :param group: of
            torch.distributed; all processes without one.
        :return: whether any of them does.
        :raises PaperhooksError: another process failed; its rank and its error are named. This process' own error is
            raised as it is.
        """
        return any(self.gathered(working, error, group=group).values())

    def gathered(self, value: Any, error: BaseException | None = None, *, group: Any = None) -> dict[int, Any]:
        """What each process of the group gives, by rank in the group's order; all wait for all, as in :meth:`meet`.

        :raises PaperhooksError: see :meth:`meet`.
        """
        told = [(value, "" if error is None else f"{type(error).__name__}: {error}")]
        members = [self.index]
        if self._distributed is not None:
            try:
                members = self._distributed.get_process_group_ranks(group)
                given, told = told[0], [told[0]] * len(members)
                self._distributed.all_gather_object(told, given, group=group)
            except Exception:
                if error is None:
                    raise  # else: a process that failed may have left the group already
        if error is not None:
            raise error
        for rank, (_, message) in zip(members, told, strict=True):
            if message:
                raise PaperhooksError(f"rank {rank} failed: {message}")
        return {rank: given for rank, (given, _) in zip(members, told, strict=True)}
