"""Undoing: last in first out, whoever else wrote in between, and again where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import nn

__all__ = ["InstanceAttribute", "UndoStack"]

_MISSING: Final = object()


class UndoStack:
    """Labelled callbacks that are run last in first out.

    An entry leaves the stack after it has run, so an interrupt (KeyboardInterrupt, SystemExit) at any moment leaves
    everything that is not undone yet; :meth:`unwind` then goes on, and runs the entry it was interrupted in once more.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[str, Callable[[], object]]] = []
        self.errors: list[Exception] = []

    def push(self, label: str, undo: Callable[[], object]) -> None:
        """Put an entry on top."""
        self._entries.append((label, undo))

    def unwind(self) -> None:
        """Run all entries. What they raise is gathered in ``errors``, with a note that has the label."""
        while self._entries:
            label, undo = self._entries[-1]
            try:
                undo()
            except Exception as exc:
                exc.add_note(f"paperhooks: raised while undoing: {label}")
                self.errors.append(exc)
            self._entries.pop()


class InstanceAttribute:
    """An attribute set on a model instance, and taken back as far as it is still ours.

    ``value.active`` becomes False where somebody has wrapped the value and keeps it.
    """

    def __init__(self, model: nn.Module, name: str, value: Any) -> None:
        self.model = model
        self.name = name
        self.value = value
        self.before = model.__dict__.get(name, _MISSING)
        #: What stays behind, as a sentence; empty when nothing does.
        self.left = ""

    def set(self) -> None:
        """Put the value there."""
        self.model.__dict__[self.name] = self.value

    def undo(self) -> None:
        """Put back what was there before, unless somebody else has written since."""
        now = self.model.__dict__.get(self.name, _MISSING)
        if now is self.before:  # undone already
            return
        if now is not self.value:
            if hasattr(self.value, "active"):
                self.value.active = False
            self.left = self._leftover(now)
        elif self.before is _MISSING:
            self.model.__dict__.pop(self.name, None)
        else:
            self.model.__dict__[self.name] = self.before

    def _leftover(self, now: object) -> str:
        found = "deleted" if now is _MISSING else f"replaced by {getattr(now, '__qualname__', type(now).__name__)}"
        if now is _MISSING and self.before is _MISSING:
            return ""
        return (
            f"model.{self.name} was {found} while attached, and is left as it is; if it calls what was there before, "
            f"that passes calls on unchanged now. Take it off yourself to have the old model.{self.name}"
        )
