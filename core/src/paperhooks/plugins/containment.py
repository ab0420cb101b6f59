"""Running code of plugins so that it cannot end the program, write into its output, or keep it waiting unnamed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

from paperhooks.errors import PluginBroken
from paperhooks.io.harmless import error_text

__all__ = ["SLOW", "contained"]

logger = logging.getLogger(__name__)

#: Seconds after which code that is still running is named.
SLOW: Final = 3.0


@contextlib.contextmanager
def contained(what: str) -> Iterator[None]:
    """A block that runs code of a plugin; ``what`` says what it does, for messages.

    What it prints goes to stderr, so that the output of a command stays what it is. Ctrl-C passes, also where the code
    swallows it.

    :raises PluginBroken: for SystemExit, GeneratorExit and others that are no Exception, and for a KeyboardInterrupt
        that nobody's Ctrl-C has caused. Exceptions are passed on.
    """
    timer = threading.Timer(SLOW, logger.warning, ("%s takes long; still waiting for it", what))
    timer.daemon = True
    timer.start()
    with _presses() as pressed:
        try:
            with _DIVERSION, _places():
                yield
        except BaseException as error:
            if isinstance(error, Exception) or (isinstance(error, KeyboardInterrupt) and pressed is None):
                raise
            raise PluginBroken(f"{what} raised {error_text(error)}") from error
        finally:
            timer.cancel()
            if pressed:
                raise KeyboardInterrupt


@contextlib.contextmanager
def _places() -> Iterator[None]:
    """Puts the working folder and the places of modules back where the code has changed them."""
    folder, path = os.getcwd(), list(sys.path)
    try:
        yield
    finally:
        if not set(path) <= set(sys.path):
            sys.path[:] = path
        with contextlib.suppress(OSError):
            if os.getcwd() != folder:
                os.chdir(folder)


class _Diversion:
    """Standard output goes to standard error, Python's and that of native code and of processes that are started.

    Blocks may be inside one another and run in several threads; the last one that ends gives the output back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before: Any = None
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth > 1:
                return
            self._before, sys.stdout = sys.stdout, sys.stderr
            try:
                self._before.flush()
                self._descriptor = os.dup(1)
                os.dup2(2, 1)
            except (AttributeError, OSError, ValueError):  # a program without these streams
                self._restore_descriptor()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                sys.stdout, self._before = self._before, None
                self._restore_descriptor()

    def _restore_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.dup2(descriptor, 1)
            os.close(descriptor)


_DIVERSION: Final = _Diversion()


@contextlib.contextmanager
def _presses() -> Iterator[list[int] | None]:
    """Presses of Ctrl-C while the block runs; None where somebody else's handler takes them."""
    default = signal.default_int_handler
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
        yield []
        return
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield None
        return
    seen: list[int] = []

    def press(number: int, frame: Any) -> None:
        seen.append(number)
        default(number, frame)

    signal.signal(signal.SIGINT, press)
    try:
        yield seen
    finally:
        if signal.getsignal(signal.SIGINT) is press:
            signal.signal(signal.SIGINT, default)
