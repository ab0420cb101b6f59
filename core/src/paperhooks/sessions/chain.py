"""The frozen chains of hooks that run for every token, and the flags of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Chain", "Flags", "Owner"]


class Chain:
    """The frozen implementations of one chained hook at one place: a fold over plain functions."""

    __slots__ = ("functions", "hook", "names")

    def __init__(self, hook: str, names: tuple[str, ...], functions: tuple[Function, ...]) -> None:
        self.hook = hook
        self.names = names
        self.functions = functions

    def __bool__(self) -> bool:
        return bool(self.functions)

    def blame(self, exc: Exception, done: int, where: str) -> None:
        """Say in a note which hook of which method raised at which place."""
        exc.add_note(f"paperhooks: raised in {self.hook} of {self.names[done]!r} {where}")


class Flags:
    """What a session's hooks tell it.

    fired, arrived, checked
        Whether any hook inside the forward ran, whether state reached a layer, and whether it was looked at how a layer
        is called.
    trained, asked, warned
        Whether the model was called in training mode with gradient, whether loss hooks were ever asked, and whether it
        was said that they were not.
    inside
        Threads in whose decoder a forward is under way, and how many.
    calls
        How many calls of the model have begun.
    closing, closed
        The session is being closed: calls that begin now run without it; and it is closed.
    """

    __slots__ = ("arrived", "asked", "calls", "checked", "closed", "closing", "fired", "inside", "trained", "warned")

    def __init__(self) -> None:
        self.fired = False
        self.arrived = False
        self.checked = False
        self.trained = False
        self.asked = False
        self.warned = False
        self.closing = False
        self.closed = False
        self.calls = 0
        self.inside: dict[int, int] = {}


Function = Callable[..., Any]


class Owner(Protocol):
    """What a torch hook knows of the session that put it on the model."""

    def close(self) -> None:
        """Undo everything."""

    @property
    def disturbed(self) -> bool:
        """Whether this rank's last call has failed, or another rank of the model has closed its session."""

    def meet(self, training: bool) -> None:
        """The model is called for the first time since it was spread otherwise, with or without training."""
