"""Ranks that hold parts of one model, each at work of its own: they call it equally often, or wait for ever.

Before every call of the model they tell one another whether they still have work, and whether one has failed. A rank
that is done calls it for one token, whose result is thrown away, until all are done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import torch
from torch import nn

from paperhooks.errors import PaperhooksError
from paperhooks.io.processes import Ranks
from paperhooks.models.engines import fully_sharded, shared_store
from paperhooks.models.forward import view_of
from paperhooks.models.spread import spread_of
from paperhooks.models.view import ModelView
from paperhooks.models.wrappers import running_model

__all__ = ["in_step", "ranks_of"]

log = logging.getLogger("paperhooks.models")

#: Seconds that the other ranks have to fail likewise, before they are taken to wait for one that failed.
_GRACE: Final = 3.0
_PAUSE: Final = 0.02


def ranks_of(model: nn.Module) -> Ranks:
    """The processes of a launch as ``model`` is spread over them: a tensor-parallel group counts once."""
    spread = spread_of(running_model(model))
    return Ranks(
        replica=spread.replica, replicas=spread.replicas, leader=spread.leader, in_step=spread.in_step
    )  # fmt: skip


@contextmanager
def in_step(model: nn.Module) -> Iterator[None]:
    """Around work that calls ``model``, on every rank that holds a part of it (FSDP2, tensor parallelism).

    Inside, each rank calls it as often and with what it likes, or never. An error of one rank is raised by all at their
    next call, or at the end. Plain, replicated and offloaded models are left alone.

    :raises PaperhooksError: another rank failed, which is named.
    """
    view = view_of(model)
    spread = view.spread
    if not spread.in_step:
        yield
        return
    # Tensor-parallel groups do not wait for one another.
    rounds = _Rounds(None if "fsdp2" in spread.kinds else spread.tensor_mesh.get_group())
    with ExitStack() as stack:
        stack.enter_context(_whole_units(view))
        stack.callback(view.model.register_forward_pre_hook(rounds.begin, prepend=True).remove)
        stack.callback(view.model.register_forward_hook(rounds.end).remove)
        try:
            yield
            while rounds.others_work():
                _call(view.model)
        except Exception as error:
            rounds.fail(error)
            raise


class _Rounds:
    def __init__(self, group: Any) -> None:
        self.ranks, self.group, self.store = Ranks(), group, shared_store()
        self.members = torch.distributed.get_process_group_ranks(group)
        place = f"paperhooks/rounds/{','.join(map(str, self.members))}"
        self.place = f"{place}/{self.store.add(f'{place} of {self.ranks.index}', 1)}"
        self._done = self._calling = False
        self._heard: Exception | None = None

    def begin(self, *_: object) -> None:
        """A call of the model begins."""
        if not self._done:
            self._tell(True)
        self._calling = True

    def end(self, *_: object) -> None:
        """A call of the model has succeeded."""
        self._calling = False

    def others_work(self) -> bool:
        """Whether another rank begins a call; this one has no work left."""
        self._done = True
        return self._tell(False)

    def fail(self, error: Exception) -> None:
        """Tell the others of an error, unless it came from them: then nobody listens any more."""
        if isinstance(self._heard, PaperhooksError):
            return
        if self._calling or self._heard is not None:
            self._part(error)
        else:
            self.ranks.meet(error, group=self.group)

    def _tell(self, working: bool) -> bool:
        if self._heard is None:
            try:
                return self.ranks.meet(working=working, group=self.group)
            except Exception as error:
                self._heard = error
        raise self._heard

    def _part(self, error: Exception) -> None:
        """In the middle of a call the others wait for parts of this rank: they fail likewise, or it leaves them.

        Who fails because another one left has a note of that one's error.
        """
        told = f"rank {self.ranks.index} failed: {type(error).__name__}: {error}"
        with suppress(Exception):  # a session has left already, and must not have its error hidden
            first = self.store.compare_set(f"{self.place}/first", "", told).decode()
            if first != told:
                error.add_note(f"paperhooks: {first}")
            key, end = f"{self.place}/failed", time.monotonic() + _GRACE
            self.store.add(key, 1)
            while self.store.add(key, 0) < len(self.members):
                if time.monotonic() > end:
                    log.error("%s; it leaves its process groups, so that the others do not wait", told)
                    torch.distributed.destroy_process_group()
                    break
                time.sleep(_PAUSE)


def _call(model: nn.Module) -> None:
    token = torch.zeros(1, 1, dtype=torch.int64, device=getattr(model, "device", None))
    with torch.no_grad():
        model(input_ids=token, use_cache=False)


@contextmanager
def _whole_units(view: ModelView) -> Iterator[None]:
    """Units that not every call passes, as those of a vision tower, stay whole for a while: none is waited for then."""
    passed = {id(module) for module in view.decoder.modules()}
    for embeddings in ("get_input_embeddings", "get_output_embeddings"):
        passed.add(id(getattr(view.model, embeddings, lambda: None)()))
    units: list[Any] = [
        module for module in view.model.modules()
        if fully_sharded(module) and id(module) not in passed and all(m is not view.decoder for m in module.modules())
    ]  # fmt: skip
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()
