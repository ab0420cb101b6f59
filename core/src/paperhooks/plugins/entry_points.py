"""What the installed distributions offer as plugins, line by line.

``importlib.metadata.entry_points()`` reads all distributions at once, and raises for all when one of them holds a line
without ``=`` or bytes that are not UTF-8. Here each distribution and each line stands for itself.
"""

from __future__ import annotations

import codecs
import email
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from paperhooks.info import ENTRY_POINT_GROUP
from paperhooks.io.harmless import error_text, printable

__all__ = ["UNKNOWN", "EntryLine", "canonical", "given_lines", "installed_lines"]

#: Stands for a distribution whose metadata say no name.
UNKNOWN = "(unknown distribution)"
_TARGET = re.compile(r"[\w.]+\s*:\s*[\w.]+\s*(\[.*\]\s*)?")


@dataclass(frozen=True, slots=True)
class EntryLine:
    """An entry point and the distribution it comes from; ``fault`` says why it cannot be loaded."""

    name: str
    target: str
    distribution: str = UNKNOWN
    version: str = ""
    fault: str = ""


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def given_lines(entry_points: Iterable[importlib.metadata.EntryPoint]) -> Iterator[EntryLine]:
    """The lines of entry points that are there already."""
    for point in entry_points:
        name, version = ("", "") if point.dist is None else _name_and_version(point.dist)
        yield _line(f"{point.name} = {point.value}", name, version)


def installed_lines() -> Iterator[EntryLine]:
    """The lines of all installed distributions; of several of one name, those of the first on the path."""
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        text, fault = _text(distribution, "entry_points.txt")
        lines = list(_group(text))
        if not lines:
            continue
        name, version = _name_and_version(distribution)
        if name and canonical(name) in seen:
            continue
        seen.add(canonical(name))
        for line in lines:
            yield _line(line, name, version, fault)


def _text(distribution: importlib.metadata.Distribution, file: str) -> tuple[str, str]:
    """The text of a metadata file, as far as it can be read, and what is wrong with it."""
    try:
        return (distribution.read_text(file) or "").removeprefix("\ufeff"), ""
    except UnicodeDecodeError as error:
        encoding = "utf-16" if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"
        return error.object.decode(encoding, "replace"), f"its {file} is not UTF-8 text: {error_text(error)}"
    except Exception as error:
        return "", f"its {file} cannot be read: {error_text(error)}"


def _group(text: str) -> Iterator[str]:
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif line and not line.startswith("#") and section == ENTRY_POINT_GROUP:
            yield line


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """By the file itself: the attributes raise where a byte of it is wrong, or where it is missing."""
    for file in ("METADATA", "PKG-INFO"):
        fields = email.message_from_string(_text(distribution, file)[0])
        if fields["Name"]:
            return printable(fields["Name"]).strip(), printable(fields["Version"] or "").strip()
    return "", ""


def _line(line: str, distribution: str, version: str, fault: str = "") -> EntryLine:
    name, equals, target = (part.strip() for part in line.partition("="))
    if not fault and not (name and equals and _TARGET.fullmatch(target)):
        fault = f"the line {line[:200]!r} of its entry_points.txt is not of the form name = package.module:NAME"
    return EntryLine(printable(name), printable(target), distribution or UNKNOWN, version, printable(fault))
