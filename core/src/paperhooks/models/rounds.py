"""Ranks that hold parts of one model, each at work of its own: they call it equally often, or wait for ever.

Before every call of the model they tell one another whether they still have work, and whether one has failed. A rank
that is done calls it for one token, whose result is thrown away, until all are done. Ranks that hold one replica
together by tensor parallelism have the same work: before a call they compare what they give the model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import torch
from torch import nn

from paperhooks.compat import is_cache, token_count
from paperhooks.errors import PaperhooksError
from paperhooks.io.hashing import hash_json, tensor_digest
from paperhooks.io.processes import Ranks
from paperhooks.models.engines import fully_sharded, is_spread, shared_store
from paperhooks.models.failures import Failures
from paperhooks.models.forward import view_of
from paperhooks.models.spread import spread_of
from paperhooks.models.view import ModelView
from paperhooks.models.wrappers import running_model

__all__ = ["in_step", "ranks_of"]

log = logging.getLogger("paperhooks.models")

#: What a rank tells the others that it is about to do.
_CALL: Final = "calls the model"
_DONE: Final = "has no work left"
_GIVE: Final = "waits for what the others give"
_AGAIN: Final = "had too little memory, and asks again for less"


def ranks_of(model: nn.Module) -> Ranks:
    """The processes of a launch as ``model`` is spread over them: a tensor-parallel group counts once."""
    spread = spread_of(running_model(model))
    return Ranks(
        replica=spread.replica, replicas=spread.replicas, leader=spread.leader, in_step=spread.in_step
    )  # fmt: skip


class Company:
    """The ranks that hold parts of one model, between their calls of it: here, this process has it alone."""

    @property
    def waits(self) -> bool:
        """Whether a call of the model has failed in its middle, where the others wait for parts of this rank."""
        return False

    def give(self, value: Any) -> list[Any]:
        """What the ranks of this replica give, in their order; all of them give, between the same calls."""
        return [value]

    def again(self) -> None:
        """This rank had too little memory for what it was about to do with the model, and does less.

        The other ranks of its replica get a MemoryError at their next call.
        """


@contextmanager
def in_step(model: nn.Module) -> Iterator[Company]:
    """Around work that calls ``model``, on every rank that holds a part of it (FSDP2, tensor parallelism).

    Inside, each replica calls it as often and with what it likes, or never; the ranks of one tensor-parallel group call
    it alike. An error of one rank is raised by all at their next call, or at the end. Plain, replicated and offloaded
    models are left alone.

    :return: of the context: the ranks' :class:`Company`.
    :raises PaperhooksError: another rank failed, which is named; or ranks of one tensor-parallel group call the model
        with different inputs, or one of them does not call it.
    """
    view = view_of(model)
    spread = view.spread
    if not spread.in_step:
        yield Company()
        return
    together = None if spread.tensor_mesh is None else spread.tensor_mesh.get_group()
    rounds = _Rounds(together, sharded="fsdp2" in spread.kinds)
    with ExitStack() as stack:
        stack.enter_context(_whole_units(view))
        stack.callback(view.model.register_forward_pre_hook(rounds.begin, prepend=True, with_kwargs=True).remove)
        stack.callback(view.model.register_forward_hook(rounds.end).remove)
        rounds.failures.watch(everywhere=True)
        stack.callback(rounds.failures.stop)
        try:
            yield rounds
            while rounds.others_work():
                _call(view.model)
        except GeneratorExit:
            raise
        except BaseException as error:
            rounds.fail(error)
            raise


class _Rounds(Company):
    """:param together: the tensor-parallel group, or None. :param sharded: whether all processes wait for all."""

    def __init__(self, together: Any, *, sharded: bool) -> None:
        self.ranks, self.together, self.sharded = Ranks(), together, sharded
        self.replica = Ranks(alone=together is None)
        # Without FSDP2, tensor-parallel groups do not wait for one another.
        members = torch.distributed.get_process_group_ranks(None if sharded else together)
        place = f"paperhooks/rounds/{','.join(map(str, members))}"
        self._calls = 0
        place = f"{place}/{shared_store().add(f'{place} of {self.ranks.index}', 1)}"
        self.failures = Failures(place, members, lambda: self._calls)
        self._done = self._calling = False
        self._heard: BaseException | None = None
        self._withdrawn = False

    @property
    def waits(self) -> bool:
        return self._calling or self._heard is not None

    def begin(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the model begins.

        :raises PaperhooksError: the one before it failed in its middle, where the others wait for this rank.
        """
        if self._calling:
            raise PaperhooksError(
                f"rank {self.ranks.index} calls the model again after a call that failed in its middle, where the "
                "other ranks wait for it; let the error end the work on this rank"
            )
        self._calls += 1
        if not self._done:
            self._tell(_CALL, None if self.together is None else _inputs(args, kwargs))
        self._calling = True

    def end(self, *_: object) -> None:
        """A call of the model has succeeded."""
        self._calling = False

    def give(self, value: Any) -> list[Any]:
        return self._tell(_GIVE, value)[0]

    def again(self) -> None:
        if not self._withdrawn:
            self._tell(_AGAIN)
        self._withdrawn = False

    def others_work(self) -> bool:
        """Whether another rank begins a call; this one has no work left."""
        self._done = True
        return self._tell(_DONE)[1]

    def fail(self, error: BaseException) -> None:
        """Tell the others of an error, unless it came from them: then nobody listens any more."""
        if isinstance(self._heard, PaperhooksError):
            return
        if self.waits:
            self._part(error)
        else:
            self._tell("", error=error)

    def _tell(self, act: str, value: Any = None, error: BaseException | None = None) -> tuple[list[Any], bool]:
        """What the ranks of this replica give, and whether any rank begins a call."""
        if self._heard is not None:
            raise self._heard
        try:
            return self._told(act, value, error)
        except MemoryError:
            self._withdrawn = True
            raise
        except BaseException as raised:
            self._heard = raised
            raise

    def _told(self, act: str, value: Any, error: BaseException | None) -> tuple[list[Any], bool]:
        try:
            told = self.replica.gathered((act, value), error, group=self.together)
            _check_alike(told)
        except Exception as raised:
            # All ranks of this replica have it now, and other replicas wait for them.
            if self.sharded and (raised is error or isinstance(raised, PaperhooksError)):
                self.ranks.meet(raised)
            raise
        working = act == _CALL
        if self.sharded and act not in (_GIVE, _AGAIN):
            working = self.ranks.meet(working=working)
        return [given for _, given in told.values()], working

    def _part(self, error: BaseException) -> None:
        """In the middle of a call the others wait for parts of this rank: they fail likewise, or it leaves them.

        What they wait for must not be paired with what this rank gives later on, in the same groups.
        """
        self.failures.tell(error, final=True)
        if self.failures.lonely():
            log.error("rank %d failed in the middle of a call; it leaves its process groups", self.ranks.index)
            with suppress(Exception):  # it has left already
                torch.distributed.destroy_process_group()


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the model is called with: name, what it is in words, and a digest of what it holds."""
    named = {**{f"argument {place}": value for place, value in enumerate(args)}, **kwargs}
    return [(name, *_told(value)) for name, value in sorted(named.items()) if value is not None]


def _told(value: Any) -> tuple[str, str]:
    if isinstance(value, torch.Tensor):
        return str(list(value.shape)), tensor_digest(value)
    if is_cache(value):
        return f"of {int(token_count(value))} tokens", ""
    if isinstance(value, Mapping):
        value = sorted(value.items(), key=str)
    if isinstance(value, tuple | list):
        parts = [_told(item) for item in value]
        return f"of {len(parts)} parts", hash_json(parts)
    return (f"= {value!r}", "") if isinstance(value, bool | int | float | str) else ("", "")


def _check_alike(told: dict[int, tuple[str, Any]]) -> None:
    """Whether ranks of one tensor-parallel group are about to do the same.

    :param told: by rank, what it does, and with what.
    :raises PaperhooksError: names a rank that does not.
    :raises MemoryError: on all that are about to call the model, where one had too little memory.
    """
    acts = [act for act, _ in told.values()]
    if set(acts) == {_CALL, _AGAIN}:
        if told[Ranks().index][0] == _CALL:
            raise MemoryError(f"out of memory on rank {list(told)[acts.index(_AGAIN)]}")
        return
    (first, (act, value)), *others = told.items()
    for rank, (its_act, its_value) in others:
        if its_act != act:
            what = f"rank {rank} {its_act} and rank {first} {act}"
        elif act == _CALL and its_value != value:
            each = [[f"{name} {text}".strip() for name, text, _ in one] for one in (its_value, value)]
            what = f"rank {rank} calls the model with other inputs than rank {first} ({', '.join(each[0])}"
            what += ")" if each[0] == each[1] else f"; {', '.join(each[1])})"
        else:
            continue
        raise PaperhooksError(
            f"{what}, though they hold one model together by tensor parallelism; give both the same data and settings"
        )


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
    # torch does not tell what was chosen for a unit; one that is whole now was told to stay so after its forward.
    given_up = [unit for unit in units if all(map(is_spread, unit.parameters()))]
    for unit in given_up:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in given_up:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()
