"""Text that every machine has: the docstrings of Python's standard library, its help topics, and licence texts.

Order and content are fixed for one installation of Python; nothing is downloaded and no module is imported.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOMAINS", "Passage", "documents"]

DOMAINS: tuple[str, ...] = ("docstrings", "topics", "licences")
_LICENCES = Path("/usr/share/common-licenses")
_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"})


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text with its domain (one of ``DOMAINS``) and the name of where it comes from."""

    text: str
    domain: str
    source: str


def documents(min_chars: int = 200, domain: str | None = None) -> Iterator[Passage]:
    """Yield documents in a fixed order: docstrings by module, help topics by name, then licences.

    ``docstrings`` (all docstrings of one module) and ``topics`` come with Python and hold more than a megabyte;
    ``licences`` are there on Debian and its relatives.

    :param min_chars: leave out shorter documents.
    :param domain: only this domain; None means all.
    :raises ValueError: an unknown domain.
    """
    if domain is not None and domain not in DOMAINS:
        raise ValueError(f"there is no domain {domain!r}; use one of {', '.join(DOMAINS)}, or None for all")
    readers = {"docstrings": _docstrings, "topics": _topics, "licences": _licences}
    for name in DOMAINS if domain is None else (domain,):
        for source, text in readers[name]():
            if len(text) >= min_chars:
                yield Passage(text, name, source)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _docstrings() -> Iterator[tuple[str, str]]:
    root = _library()
    for path in _modules(root):
        tree = _parse(path)
        if tree is not None:
            name = path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
            yield name, "\n\n".join(_collect(tree))


def _modules(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED)  # pruned here: installed packages are not the library
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules hold escapes that newer parsers warn about
            return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return None  # the library carries templates and samples that are not meant to parse


def _collect(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _topics() -> Iterator[tuple[str, str]]:
    path = _library() / "pydoc_data" / "topics.py"
    tree = _parse(path) if path.is_file() else None
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Dict):
            topics = ast.literal_eval(node)
            yield from sorted((name, text) for name, text in topics.items() if isinstance(text, str))
            return


def _licences() -> Iterator[tuple[str, str]]:
    if not _LICENCES.is_dir():
        return
    for path in sorted(_LICENCES.iterdir()):
        if path.is_file() and not path.is_symlink():
            yield path.name, path.read_text(encoding="utf-8", errors="replace")
