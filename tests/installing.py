"""What a line of ``pip install`` brings, by the metadata of this repository's packages and of what is installed."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import PACKAGES, ROOT

__all__ = ["brought", "install_lines", "lay_out", "named"]

FIRST_PARTY = {canonicalize_name(package.name): package for package in PACKAGES}
LINE = re.compile(r"^    (pip install .*)$", re.MULTILINE)


def install_lines(text: str) -> list[str]:
    """The commands that stand before the first Python block of a page."""
    return LINE.findall(text.partition("```python")[0])


def named(line: str) -> list[Requirement]:
    """The requirements of a command; a folder of this repository is the distribution made from it."""
    words = shlex.split(line.partition("&&")[0])[2:]
    return [_requirement(word) for word in words if word != "-e"]


def _requirement(word: str) -> Requirement:
    path, bracket, extras = word.partition("[")
    folders = {package.folder: package.name for package in PACKAGES}
    return Requirement(folders.get((ROOT / path).resolve(), path) + bracket + extras)


def brought(requirements: Iterable[Requirement]) -> set[str]:
    """The names of all distributions that come with some requirements and their extras."""
    seen: set[tuple[str, str]] = set()
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {known for other, known in seen if other == name}:
            seen.add((name, extra))
            queue += _needed(name, extra)
    return {name for name, _ in seen}


def _needed(name: str, extra: str) -> list[Requirement]:
    """What a distribution needs, or one of its extras; nothing for one that is not installed here."""
    if name in FIRST_PARTY:
        project = FIRST_PARTY[name].project
        lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    else:
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            lines = []
    found = map(Requirement, lines)
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra})]


def lay_out(names: Iterable[str], folder: Path) -> list[Path]:
    """Links in a folder to what these distributions have installed; returns what an interpreter needs as its path.

    With ``python -S`` and that path nothing else can be imported.
    """
    sources = [FIRST_PARTY[name].folder / "src" for name in names if name in FIRST_PARTY]
    for name in names:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(distribution.locate_file(top)))
    return [*sources, folder]
