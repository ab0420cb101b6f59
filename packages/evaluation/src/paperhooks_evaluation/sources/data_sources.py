"""Rows of a data source with the places of their images, in any form that data of tasks have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.io import local_path, read_records

from paperhooks_evaluation.sources.configs import ENDINGS, config_files, declared_patterns
from paperhooks_evaluation.sources.folders import ImageFolder
from paperhooks_evaluation.sources.hub import HubName, downloaded, hub_name
from paperhooks_evaluation.sources.image_columns import column_names, image_columns
from paperhooks_evaluation.sources.places import placed_picture

__all__ = ["DataSource", "StoredRow", "holds_tables"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row, whose images are not read.

    :param where: what to call it in messages.
    :param data: the columns that were asked for, without images.
    :param places: column to the place of an image (see :func:`placed_picture`); a row lacks those that it has not.
    :param digests: column to SHA-256 of the image's bytes, where digests were asked for.
    :param missing: column to the name of a file that is not there.
    """

    where: str
    data: Mapping[str, Any]
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSource:
    """A folder, a file, or a data set of the hub; the rows of one split.

    Parquet, JSON Lines, CSV and JSON are read, in the folder itself or by config, as a README or folders tell. A data
    set of the hub is downloaded as it is, and then is a folder like any other.

    :param source: a folder, a file, or ``owner/name``, ``owner/name@revision``, ``owner/name@revision:config:split``.
    :param split, revision: where the source says none.
    :param configs: only these; by default the one that the source names, or ``default``, or all.
    """

    source: str
    split: str = "test"
    revision: str = ""
    configs: tuple[str, ...] = ()

    @cached_property
    def hub(self) -> HubName | None:
        """What the source says, with what stands in for what it does not say; None for a folder or file here."""
        found = hub_name(self.source)
        if found is None:
            return None
        return HubName(found.name, found.revision or self.revision, found.config, found.split or self.split)

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """The files with rows by config; those of the hub are downloaded.

        :raises DataError: there is no such source, config or split.
        """
        if self.hub:
            configs = self.configs or ((self.hub.config,) if self.hub.config else ())
            return config_files(self.folder, self.hub.split, configs)
        path = local_path(self.source)
        return {"": [path]} if path.is_file() else config_files(self.folder, self.split, self.configs)

    @cached_property
    def folder(self) -> Path:
        """Where names of files are looked up: the folder itself, that of a file, that of a download.

        :raises DataError: there is none.
        """
        if self.hub:
            return self._downloaded(self.hub)
        path = local_path(self.source)
        if not path.exists():
            raise DataError(
                f"{self.source} is neither a folder or file here nor the name of a hub data set (owner/name)"
            )
        return path if path.is_dir() else path.parent

    @property
    def commit(self) -> str:
        """The commit of the hub that the data are of, whatever branch or tag names it; ``""`` for a folder or file."""
        name = self.folder.name if self.hub else ""  # a download lies in snapshots/COMMIT
        return name if _COMMIT.fullmatch(name) else ""

    def _downloaded(self, hub: HubName) -> Path:
        """The folder with what is wanted: of other configs nothing is downloaded where the README tells them apart."""
        configs = self.configs or ((hub.config,) if hub.config else ())
        every = [f"*{ending}" for ending in ENDINGS]
        try:
            declared = declared_patterns(downloaded(hub.name, hub.revision, ["README.md"]))
            wanted = [
                pattern for name, splits in declared.items() if name in (configs or declared)
                for split, patterns in splits.items() if split in ("", hub.split) for pattern in patterns
            ]  # fmt: skip
            return downloaded(hub.name, hub.revision, ["README.md", *(wanted or every)])
        except DataError as error:
            raise DataError(
                f"{self.source} is no folder here and its split {hub.split!r} cannot be loaded as a data set: {error}"
            ) from error

    def require(self, columns: Sequence[str]) -> None:
        """Raise DataError where a file with rows in Parquet lacks one of the columns."""
        for file in (file for files in self.files.values() for file in files if is_table(file)):
            known = column_names(file)
            if missing := [name for name in columns if name not in known]:
                raise DataError(f"{self.source} has no column {', '.join(missing)}; it has {', '.join(known)}")

    def rows(self, columns: Sequence[str], images: Sequence[str] = (), *, digests: bool = False) -> Iterator[StoredRow]:
        """The rows in the order of configs and files.

        :param columns: what is read of a row. :param images: columns of images, which are not read. Rows need not have
            them.
        :param digests: whether SHA-256 of the images' bytes is wanted, for which they are read once, and not decoded.
        :raises DataError: a file that cannot be read. :raises MissingExtra: Parquet without pyarrow.
        """
        inside = ImageFolder(self.folder)
        for file in (file for files in self.files.values() for file in files):
            if is_table(file):
                yield from _table_rows(file, inside, columns, images, digests)
                continue
            for where, row in read_records(file):
                if not isinstance(row, Mapping):
                    raise DataError(f"{where}: is a {type(row).__name__}; expected an object")
                data = {name: row[name] for name in columns if name in row}
                yield _named_images(StoredRow(where, data), row, images, inside, digests)


def holds_tables(source: str) -> bool:
    """Whether a source is a data set's name on the hub, a Parquet file, or a folder of these."""
    path = Path(source)
    if path.is_dir():
        return any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))
    return is_table(path) if path.exists() else hub_name(source) is not None


def is_table(file: Path) -> bool:
    """Whether a file is one of Parquet, by its name."""
    return file.suffix.lower() == ".parquet"


def _table_rows(
    file: Path, inside: ImageFolder, columns: Sequence[str], images: Sequence[str], digests: bool
) -> Iterator[StoredRow]:
    known = column_names(file)
    read = [name for name in columns if name in known]
    if not read:  # without one of its columns the reader would read all of them
        raise DataError(f"{file} has none of the columns {', '.join(columns)}; it has {', '.join(known)}")
    held = image_columns(file, [name for name in images if name in known], digests=digests)
    for number, ((where, data), found) in enumerate(zip(read_records(file, columns=read), held, strict=True)):
        row = StoredRow(where, data)
        for name, image in found.items():
            if image is None:
                continue
            if digests and not image.digest:  # it has no bytes of its own
                _named_images(row, {name: image.name}, [name], inside, digests)
            else:
                row.digests[name] = image.digest
                row.places[name] = {
                    "table": str(file), "row": number, "column": name, "folder": str(inside.folder)
                }  # fmt: skip
        yield row


def _named_images(
    row: StoredRow, names: Mapping[str, Any], columns: Sequence[str], inside: ImageFolder, digests: bool
) -> StoredRow:
    """The row with the images whose files are named, by a text or by ``{"path": text}``."""
    for column in columns:
        value = names.get(column)
        name = value.get("path") if isinstance(value, Mapping) else value
        if name is None or name == "":
            continue
        found = inside.find(name) if isinstance(name, str) else None
        if found is None:
            row.missing[column] = str(name)
            continue
        row.places[column] = {"picture": str(found)}
        if digests:
            row.digests[column] = placed_picture(row.places[column]).digest
    return row
