"""A third party's plugin project from the templates in ``authoring/project``.

The templates are ``string.Template`` files; ``$$`` stands for a dollar sign. Path parts called ``PACKAGE`` become the
import name.
"""

from __future__ import annotations

import importlib.resources
import keyword
import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from paperhooks.errors import DataError
from paperhooks.info import HOOK_API
from paperhooks.io.files import write_text

__all__ = ["create_project"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def create_project(name: str, parent: str | Path = ".") -> Path:
    """Write a plugin project called ``paperhooks-NAME`` under ``parent`` and return its folder.

    Raises DataError when the name is not kebab-case, or when the folder is already there.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise DataError(f"the plugin name {name!r} must be kebab-case, such as 'my-method'")
    folder = Path(parent) / f"paperhooks-{name}"
    if folder.exists():
        raise DataError(f"{folder} is already there; choose another name or folder")
    values = _values(name)
    for parts, source in _templates():
        path = folder.joinpath(*(values["package"] if part == "PACKAGE" else part for part in parts))
        write_text(path, Template(source.read_text(encoding="utf-8")).substitute(values))
    return folder


def _values(name: str) -> dict[str, str]:
    import paperhooks

    major = int(paperhooks.__version__.partition(".")[0])
    return {
        "name": name,
        "package": f"paperhooks_{name.replace('-', '_')}",
        "distribution": f"paperhooks-{name}",
        "title": "".join(part.capitalize() for part in name.split("-")),
        "api": str(HOOK_API),
        "core": f"paperhooks>={paperhooks.__version__},<{max(major + 1, 2)}",
    }


def _templates() -> Iterator[tuple[tuple[str, ...], Traversable]]:
    root = importlib.resources.files("paperhooks").joinpath("authoring/project")
    yield from _walk(root, ())


def _walk(folder: Traversable, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Traversable]]:
    for child in sorted(folder.iterdir(), key=lambda item: item.name):
        if child.is_dir():
            yield from _walk(child, (*parts, child.name))
        elif child.name.endswith(".tmpl"):
            yield (*parts, child.name.removesuffix(".tmpl")), child
