"""Running code of plugins so that it cannot end the program, write into its output, or keep it waiting unnamed."""

from __future__ import annotations

import contextlib
import logging
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
            with contextlib.redirect_stdout(sys.stderr):
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
def _presses() -> Iterator[list[int] | None]:
    """Presses of Ctrl-C while the block runs; None where somebody else's handler takes them."""
    default = signal.default_int_handler
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
