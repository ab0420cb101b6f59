"""The command ``paperhooks``.

Exit codes: 0 fine, 1 a problem was found, 2 usage. Errors of paperhooks are one readable message, with ``-v`` the whole
traceback. Needs the extra ``paperhooks[cli]``.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from paperhooks.errors import MissingExtra, PaperhooksError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always ends by raising SystemExit with the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from paperhooks.cli.app import build_app
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        _fail(MissingExtra(str(error.name), "paperhooks[cli]", "for the command line"), given)
    try:
        build_app()(given, prog_name="paperhooks")
    except (PaperhooksError, ValueError) as error:  # methods raise ValueError for an option that does not fit
        _fail(error, given)


def _fail(error: Exception, arguments: Sequence[str]) -> None:
    if {"-v", "--verbose"} & set(arguments):
        sys.stderr.write("".join(traceback.format_exception(error)))
    else:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        sys.stderr.write(f"error: {error}{notes}\n")
    raise SystemExit(1)
