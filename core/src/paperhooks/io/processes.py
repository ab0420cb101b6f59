"""The processes that share a run: those of ``torch.distributed``, or of one launch that has not initialised it."""

from __future__ import annotations

import os
import sys
from typing import Any

from paperhooks.errors import DataError, PaperhooksError

__all__ = ["Ranks", "launched"]


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


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


class Ranks:
    """The processes of ``torch.distributed``, or this process alone when none is initialised."""

    def __init__(self, alone: bool = False) -> None:
        # A process that never loaded torch.distributed has not initialised it either.
        distributed = sys.modules.get("torch.distributed")
        joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
        self._distributed: Any = distributed if joined and not alone else None
        self.index = self._distributed.get_rank() if self._distributed else 0
        self.count = self._distributed.get_world_size() if self._distributed else 1

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.index == 0

    @property
    def shard(self) -> tuple[int, int] | None:
        """This process' share of the documents."""
        return (self.index, self.count) if self.count > 1 else None

    def meet(self, error: BaseException | None = None) -> None:
        """Wait for all; an error of one is raised by all, so that none waits for ever.

        Raises this process' own error, or PaperhooksError that names the rank and the error of another one.
        """
        told: list[str | None] = [None] * self.count
        if self._distributed is not None:
            self._distributed.all_gather_object(told, None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, message in enumerate(told):
            if message is not None:
                raise PaperhooksError(f"the evaluation failed on rank {rank}: {message}")
