"""Which files of a folder belong to which config and split: as its README says, or as their names do."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, require

from paperhooks_evaluation.sources.folders import ImageFolder
from paperhooks_evaluation.sources.image_columns import EXTRA

log = logging.getLogger(__name__)

__all__ = ["ENDINGS", "config_files", "declared_patterns"]

#: Endings of files with rows, by preference: a folder is read in the first form that it has.
_FORMS: Final = tuple(
    tuple(ending + more for ending in form for more in ("", ".gz", ".zst"))
    for form in ((".parquet",), (".jsonl", ".ndjson", ".jsonlines"), (".csv", ".tsv"), (".json",))
)
ENDINGS: Final = tuple(ending for form in _FORMS for ending in form)
_SPLITS: Final = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
#: Folders that stand for no config.
_NO_CONFIG: Final = ("data", "default", *_SPLITS)

#: The name of one of several files: which, and of how many.
_SHARD: Final = re.compile(r"(?P<head>.*-)(?P<number>\d{5})-of-(?P<count>\d{5})(?!\d)")
#: How many files a message names.
_SHOWN: Final = 5

#: Config to split to files.
_Files = dict[str, dict[str, list[Path]]]


def config_files(folder: Path, split: str, configs: Sequence[str] = ()) -> dict[str, list[Path]]:
    """The files of a split by config, in the order of the README, or else of their names.

    A config of a folder without README is a folder inside it (``Design/test-00000-of-00001.parquet``); files that lie
    in the folder itself, or in ``data/``, are of the config ``""``. Where names tell no splits, all files are taken.

    :param configs: only these, which have to be there.
    :raises DataError: no file of this split, or of one of these configs.
    """
    found = _declared_files(folder) or _named_files(folder)
    if not found:
        raise DataError(f"{folder} has no files with rows; expected some that end in {', '.join(ENDINGS)}")
    if unknown := [name for name in configs if name not in found]:
        raise DataError(
            f"{folder} has no config {', '.join(unknown)}; it has {', '.join(filter(None, found)) or 'none'}"
        )
    asked = configs or (["default"] if "default" in found else list(found))
    wanted = {name: splits for name, splits in found.items() if name in asked}
    chosen = {name: files for name, splits in wanted.items() if (files := splits.get(split) or splits.get(""))}
    if not chosen:
        splits = sorted({name for each in wanted.values() for name in each})
        raise DataError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    if lacking := [name for files in chosen.values() for name in _lacking_shards(files)]:
        raise DataError(
            f"{folder} lacks {_named(lacking)}, which the names of other files count; download the data set again"
        )
    return chosen


def _lacking_shards(files: Sequence[Path]) -> list[str]:
    """Which files are missing: ``test-00001-of-00002`` where only the first one is there.

    A name may end in a hash of its own, and files may be counted from 1.
    """
    found: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if name := _SHARD.match(file.name):
            found.setdefault((file.parent, name["head"], int(name["count"])), set()).add(int(name["number"]))
    return [
        f"{head}{number:05}-of-{count:05}"
        for (_, head, count), numbers in sorted(found.items())
        if numbers != set(range(1, count + 1))
        for number in range(count)
        if number not in numbers
    ]


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def declared_patterns(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Config to split to patterns of files, as the YAML at the top of a README says; empty without it.

    :raises DataError: YAML that cannot be read.
    """
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    head = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    if head is None:
        return {}
    yaml = require("yaml", EXTRA, "to read the configs of a data set", called="pyyaml")
    try:
        content = yaml.safe_load(head[1])
    except yaml.YAMLError as error:
        raise DataError(f"{file} begins with YAML that cannot be read: {error}") from error
    configs = content.get("configs") if isinstance(content, Mapping) else None
    if not isinstance(configs, list):
        return {}
    return {
        str(one["config_name"]): _patterns(one) for one in configs if isinstance(one, Mapping) and "config_name" in one
    }


def _patterns(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Split to patterns; a config without splits has them under ``""``."""
    files, inner = config.get("data_files"), str(config.get("data_dir") or "")
    if files is None:
        return {"": [f"{inner}/**" if inner else "**"]}
    if isinstance(files, Mapping):
        files = [{"split": split, "path": path} for split, path in files.items()]
    found: dict[str, list[str]] = {}
    for each in _listed(files):
        split, paths = (str(each.get("split", "")), each.get("path")) if isinstance(each, Mapping) else ("", each)
        found.setdefault(split, []).extend(f"{inner}/{path}" if inner else str(path) for path in _listed(paths))
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _declared_files(folder: Path) -> _Files:
    inside = ImageFolder(folder)
    found: _Files = {}
    for name, splits in declared_patterns(folder).items():
        for split, patterns in splits.items():
            # A pattern that leads out of the folder finds files that it does not hold.
            matched = {path for each in patterns if not Path(each).is_absolute() for path in folder.glob(each)}
            files = _of_one_form([path for path in sorted(matched) if inside.holds(path)], folder)
            named = {split: files} if split else _by_split(files, folder)
            for key, some in named.items():
                if some:
                    found.setdefault(name, {}).setdefault(key, []).extend(some)
    return found


def _named_files(folder: Path) -> _Files:
    inside = ImageFolder(folder)
    files = _of_one_form([path for path in sorted(folder.rglob("*")) if inside.holds(path)], folder)
    found: _Files = {}
    for split, some in _by_split(files, folder).items():
        for file in some:
            first, *rest = file.relative_to(folder).parts
            config = first if rest and first.lower() not in _NO_CONFIG else ""
            found.setdefault(config, {}).setdefault(split, []).append(file)
    return found


def _of_one_form(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Those of the first form that occurs, without hidden ones."""
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    by_form = [[path for path in shown if path.name.lower().endswith(form)] for form in _FORMS]
    first = next(filter(None, by_form), [])
    beside = [path for form in by_form[:-1] for path in form if form is not first]  # JSON is what settings are in, too
    if first and beside:
        names = _named([str(path.relative_to(folder)) for path in beside])
        log.warning("%s: %s is read, and files of another form are not: %s", folder, first[0].name, names)
    return first


def _by_split(files: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """By the split that a name says (``test-00000-of-00001``, ``test/0000``); under ``""`` where none says one."""
    told = {file: _split(file.relative_to(folder)) for file in files}
    if not any(told.values()):
        return {"": list(files)} if files else {}
    found: dict[str, list[Path]] = {}
    for file, split in told.items():
        if split:
            found.setdefault(split, []).append(file)
        else:
            log.warning("%s is left out: its name tells no split, and those of other files do", file)
    return found


def _split(path: Path) -> str:
    words = re.split(r"[^a-z]+", path.name.lower()) + [part.lower() for part in reversed(path.parts[:-1])]
    return next((word for word in words if word in _SPLITS), "")
