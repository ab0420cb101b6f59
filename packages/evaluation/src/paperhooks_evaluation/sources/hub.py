"""Data sets of the hub: their names, and the folder that a download of one is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paperhooks.errors import DataError, require
from paperhooks.io import error_text

__all__ = ["HubName", "downloaded", "hub_name"]

_NAME: Final = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^:@\s]+))?(?::(?P<config>[^:]*)(?::(?P<split>[^:]+))?)?"
)


@dataclass(frozen=True, slots=True)
class HubName:
    """``owner/name``, with ``@revision``, ``:config`` and ``:split`` where they are given."""

    name: str
    revision: str = ""
    config: str = ""
    split: str = ""


def hub_name(source: str) -> HubName | None:
    """What a text says as the name of a data set of the hub; None for one of another form, or a path that is there."""
    found = _NAME.fullmatch(source)
    if found is None or Path(source).exists():
        return None
    return HubName(**{key: value or "" for key, value in found.groupdict().items()})


def downloaded(name: str, revision: str, patterns: Sequence[str]) -> Path:
    """The folder of a data set's files, which are downloaded unless they are there already.

    With HF_HUB_OFFLINE set nothing is asked of the hub: the folder is that of an earlier download.

    :param revision: a branch, tag or commit; ``""`` for the newest. :param patterns: which files.
    :raises DataError: it is neither there nor can be downloaded. :raises MissingExtra: without huggingface_hub.
    """
    hub = require("huggingface_hub", "paperhooks", "to read data sets of the hub")
    try:
        folder = hub.snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=list(patterns)
        )
    except Exception as error:  # what a client of the network raises: those of HTTP are no OSError in all versions
        raise DataError(f"the data set {name} cannot be downloaded: {error_text(error)}") from error
    return Path(folder)
