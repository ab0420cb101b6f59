"""The command ``paperhooks``.

Exit codes: 0 fine, 1 a problem was found, 2 usage, 130 stopped by Ctrl-C. Every error is one readable line, with the
list in it below; with ``--traceback`` (or ``-v``) the traceback comes before it. Needs the extra ``paperhooks[cli]``.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import require
from paperhooks.io.harmless import printable, redacted

__all__ = ["main"]

_WHOLE: Final = "--traceback"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always ends by raising SystemExit with the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # where it is no terminal, pipe or file
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # an encoding is no reason to fail
    whole = bool({_WHOLE, "-v", "--verbose"} & set(given))
    command: Any = None
    words = [word for word in given if word != _WHOLE]  # wherever it is typed
    try:
        typer = require("typer", "paperhooks[cli]", "for the command line")
        require("rich", "paperhooks[cli]", "for the command line")
        from paperhooks.cli.app import build_app

        command = typer.main.get_command(build_app())
        ended = command.main(words, prog_name="paperhooks", standalone_mode=False)
    except Exception as error:
        ended = _failed(error, _typed_options(command, words), whole)
    except SystemExit:
        raise
    except BaseException as error:  # Ctrl-C, as it is or as the application hands it on
        ended = _stopped(error, command, words)
    raise SystemExit(ended if isinstance(ended, int) else 0)


def _stopped(error: BaseException, command: Any, words: Sequence[str]) -> int:
    """Ctrl-C; what was running may have said in notes of the error what is done, and its folder shows it."""
    outs = [each for each in _parameters(command, words) if each.name == "out"]
    said = ["stopped", *getattr(error, "__notes__", ())]
    for given in (word for word, before in zip(words[1:], words, strict=False) if outs and before in outs[0].opts):
        said += _kept(Path(given))
    if any("goes on" in (each.help or "") for each in outs):
        said.append("the same command goes on where this one stopped")
    sys.stderr.write(printable("; ".join(said)) + "\n")
    return 130


def _kept(folder: Path) -> list[str]:
    """How much of an interrupted run a folder holds: units of scoring and collecting, answers of an evaluation."""
    with contextlib.suppress(OSError):
        units = sum(1 for _ in folder.glob("**/units/*.safetensors"))
        answers = sum(file.read_bytes().count(b"\n") for file in folder.glob("samples*.jsonl"))
        counts = [f"{count} {what}" for count, what in ((units, "units"), (answers, "answers")) if count]
        return [f"{' and '.join(counts)} are kept in {folder}"] if counts else []
    return []


def _failed(error: Any, options: Mapping[str, str], whole: bool) -> int:
    if whole:
        sys.stderr.write(printable(redacted("".join(traceback.format_exception(error))), lines=True))
    try:
        from paperhooks.cli.output import error_line, usage_line
    except ImportError:  # without typer or rich
        sys.stderr.write(f"error: {error}\n")
        return 1
    if not hasattr(error, "exit_code"):
        sys.stderr.write(f"error: {error_line(error, options)}\n")
        return 1
    if type(error).__name__ != "NoArgsIsHelpError":  # then the help has been printed
        sys.stderr.write(f"error: {usage_line(error, options)}\n")
    return int(error.exit_code)


def _parameters(command: Any, words: Sequence[str]) -> list[Any]:
    """Those of the command that the words lead to."""
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return list(getattr(command, "params", ()))


def _typed_options(command: Any, words: Sequence[str]) -> dict[str, str]:
    """Python's names of the command's options, to what is typed for them."""
    options = ((each.name, max(each.opts, key=len)) for each in _parameters(command, words))
    return {name: option for name, option in options if option.startswith("--")}
