"""What a method keeps for every row of a cache, and a cache that may only be used with the method that filled it.

Rows of a cache are reordered by beam search, repeated for several answers, selected when some are finished; its length
is cut back when drafts are refused. State kept beside the cache would then belong to other rows, without any error. A
:class:`RowState` lives on the cache and follows: the cache's own methods are wrapped on the instance, so that whoever
calls them moves the state too.

Letters: B rows of the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from paperhooks.compat import CACHE_CHANGES, token_count
from paperhooks.errors import DataError, UnsupportedGeneration
from paperhooks.tokens.compat import in_backward

__all__ = [
    "Attendance",
    "Ending",
    "RowState",
    "attend",
    "bound_owners",
    "cache_states",
    "left_alone",
    "noted_states",
    "row_states",
]

#: The attributes of a cache under which core keeps things; a copy of the cache carries them along.
_STATES, _ROWS = "paperhooks_state", "paperhooks_rows"


class Ending(Protocol):
    """What tells whether the session of a forward is closed."""

    closed: bool


class Attendance:
    """Whether one forward with methods attached is under way, and whose state it has asked for.

    A forward that an interrupt has ended cannot say so; its session's end does.
    """

    __slots__ = ("_open", "_session", "served")

    def __init__(self, session: Ending | None = None) -> None:
        self._session = session
        self._open = True
        self.served: set[str] = set()

    @property
    def open(self) -> bool:
        """Whether the forward is under way, in a session that is not closed."""
        return self._open and not (self._session is not None and self._session.closed)

    def end(self) -> None:
        """The forward is over."""
        self._open = False


@dataclass(slots=True)
class _Entry:
    """Tensors [B, ...] that hold from token ``stop`` on, and come from tokens ``start`` to ``stop``.

    ``cut`` is the shortest length between the two that the cache has had since.
    """

    start: int
    stop: int
    tensors: dict[str, Tensor]
    cut: int | None = None


class RowState:
    """Tensors [B, ...] of one method, one row a row of the cache. They follow every change of its rows and length.

    Made by :meth:`paperhooks.Call.row_state`. ``needed`` says what goes wrong when the cache is used without the
    method; while the state holds anything, such a use is refused with that sentence.
    """

    def __init__(self, owner: str, needed: str = "") -> None:
        self.owner = owner
        self.needed = needed
        self._entries: list[_Entry] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def note(self, start: int, stop: int, **tensors: Tensor) -> None:
        """Keep ``tensors`` [B, ...] as what holds behind token ``stop``.

        :param start: where the tokens begin that they come from, such as an image's: a cache that is cut back to
            ``start`` or before forgets them, and one cut between ``start`` and ``stop`` is refused from then on.
        """
        self._entries.append(_Entry(start, stop, tensors))

    def at(self, length: Any, rows: int) -> dict[str, Tensor] | None:
        """What holds behind ``length`` cached tokens, or None.

        :param length: an int; a tensor (preallocated caches) stands for the newest entry.
        :param rows: B of this forward.
        :raises DataError: the cache was cut inside the tokens that an entry comes from, or its rows were changed by
            other means than its own methods.
        """
        if isinstance(length, int):
            self._entries = [entry for entry in self._entries if entry.start < length]
        if not self._entries:
            return None
        entry = self._entries[-1]
        if isinstance(length, int) and length < entry.stop:
            entry.cut = length
        if entry.cut is not None:
            raise DataError(
                f"{self.owner}: the cache was cut back to {entry.cut} tokens, into an image that ends at {entry.stop}; "
                f"cut it behind the image, or to {entry.start} tokens or fewer, or start anew"
            )
        for tensor in entry.tensors.values():
            if tensor.shape[0] != rows:
                raise DataError(
                    f"{self.owner}: the cache was filled with {tensor.shape[0]} rows and is used with {rows}; change "
                    "its rows with its own methods (reorder_cache, batch_select_indices, batch_repeat_interleave), so "
                    "that what is kept for each row can follow"
                )
        return entry.tensors

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put ``change(tensor)`` in the place of every tensor."""
        for entry in self._entries:
            entry.tensors = {name: change(tensor) for name, tensor in entry.tensors.items()}

    def cut(self, length: int) -> None:
        """The cache holds only ``length`` tokens now."""
        self._entries = [entry for entry in self._entries if entry.start < length]
        for entry in self._entries:
            if length < entry.stop:
                entry.cut = length


def cache_states(cache: Any) -> dict[str, dict[str, Any]]:
    """What methods and core keep on a cache object, by owner; put there empty at the first use."""
    states: dict[str, dict[str, Any]] | None = getattr(cache, _STATES, None)
    if states is None:
        states = {}
        setattr(cache, _STATES, states)
    return states


def noted_states(cache: Any) -> dict[str, dict[str, Any]]:
    """What :func:`cache_states` gives, without putting anything on a cache that has nothing yet (or on None)."""
    return getattr(cache, _STATES, None) or {}


@dataclass(slots=True)
class _Rows:
    """The row states of a cache and who uses it now. A shallow copy of a cache shares them, as it shares the layers."""

    states: dict[str, RowState]
    attendance: Attendance | None = None


def row_states(cache: Any) -> dict[str, RowState]:
    """The row states on a cache, by owner; the first use makes the cache tell them what happens to its rows."""
    rows: _Rows | None = getattr(cache, _ROWS, None)
    if rows is None:
        rows = _Rows({})
        setattr(cache, _ROWS, rows)
        for name in CACHE_CHANGES:
            if hasattr(cache, name):
                setattr(cache, name, _Followed(cache, name, cache.__dict__.get(name)))
        cache.update = _Attended(cache, cache.__dict__.get("update"))
    return rows.states


def bound_owners(cache: Any) -> list[str]:
    """Whose method a forward over this cache needs."""
    rows: _Rows | None = getattr(cache, _ROWS, None)
    return [] if rows is None else [owner for owner, state in rows.states.items() if state and state.needed]


def attend(cache: Any, attendance: Attendance) -> None:
    """Note on a cache that holds row states that a forward with methods attached uses it now."""
    rows: _Rows | None = getattr(cache, _ROWS, None)
    if rows is not None:
        rows.attendance = attendance


class _OnCache:
    """Stands in for one method of a cache instance; a copy of the cache carries a copy of it."""

    def __init__(self, cache: Any, name: str, inner: Callable[..., Any] | None) -> None:
        self.cache = cache
        self.name = name
        self.inner = inner

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the method does without paperhooks."""
        if self.inner is not None:
            return self.inner(*args, **kwargs)
        return getattr(type(self.cache), self.name)(self.cache, *args, **kwargs)


class _Followed(_OnCache):
    """A method that changes rows or length, and tells the row states."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.call(*args, **kwargs)
        states = list(row_states(self.cache).values())
        if self.name in ("crop", "reset"):
            length = 0 if self.name == "reset" else int(token_count(self.cache))
            for state in states:
                state.cut(length)
            return result
        value = next(iter((*args, *kwargs.values())))
        for state in states:
            state.change_rows(_row_change(self.name, value))
        return result


def _row_change(name: str, value: Any) -> Callable[[Tensor], Tensor]:
    if name == "batch_repeat_interleave":
        return lambda x: x.repeat_interleave(value, dim=0)
    chosen = torch.as_tensor(value)  # numbers or, as the cache's layers take them too, a bool for every row
    return lambda x: x[chosen.to(x.device)]


class _Attended(_OnCache):
    """``update`` of a cache that must not be used without the methods it was filled under."""

    def __init__(self, cache: Any, inner: Callable[..., Any] | None) -> None:
        super().__init__(cache, "update", inner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        attendance = getattr(self.cache, _ROWS).attendance
        if (attendance is None or not attendance.open) and (owners := bound_owners(self.cache)):
            if in_backward():
                return self._again(*args, **kwargs)
            raise left_alone(self.cache, owners)
        return self.call(*args, **kwargs)

    def _again(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """In a layer that a checkpoint computes again: the first call has filled the cache, and saw what it put in."""
        held = int(token_count(self.cache, layer_idx))
        if held != key_states.shape[-2]:
            raise UnsupportedGeneration(
                f"layer {layer_idx} is under a checkpoint and reads a cache that was filled before ({held} tokens, of "
                f"which this call brought {key_states.shape[-2]}); call the model with use_cache=False"
            )
        return key_states, value_states


def left_alone(cache: Any, owners: list[str]) -> UnsupportedGeneration:
    """The error for a cache that is used without the methods ``owners``."""
    reasons = "; ".join(row_states(cache)[owner].needed for owner in owners)
    return UnsupportedGeneration(
        f"this cache was filled while {', '.join(owners)} was attached, and is used without: {reasons}. Go on inside "
        "the session, attach the method again with the same options, or fill a new cache"
    )
