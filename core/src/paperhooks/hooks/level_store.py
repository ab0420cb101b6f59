"""Prepared levels in a folder: made once, a module at a time, and read where they lie instead of being held in memory.

A folder of units (:class:`paperhooks.io.UnitStore`): one file for each module, with the packed values of all of its
levels. An interrupted preparation goes on with the modules that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from paperhooks.hooks.level import Level
from paperhooks.io.files import plain
from paperhooks.io.hashing import hash_json, model_digest
from paperhooks.io.units import UnitStore, read_manifest
from paperhooks.weights.packed_forms import Packed, read_packed

__all__ = ["LevelStore"]

_KIND: Final = "prepared levels"


class LevelStore:
    """The folder in which the prepared levels of a model lie.

    :param offers: module name to its levels. :param decides: what else the values depend on, as plain data.
    """

    def __init__(
        self, folder: str | Path, offers: Mapping[str, Sequence[Level]], decides: Mapping[str, Any]
    ) -> None:  # fmt: skip
        self._units = UnitStore(folder, _KIND)
        self._offers = offers
        self._decides = decides

    @classmethod
    def reader(cls, folder: str | Path) -> LevelStore:
        """A folder whose levels were prepared, for reading alone; raises DataError where there is none."""
        store = cls(folder, {}, {})
        store._units.manifest = read_manifest(folder, _KIND)
        return store

    @contextmanager
    def begin(self, model: nn.Module) -> Iterator[LevelStore]:
        """Hold the folder for the levels of ``model``, which has its own weights.

        :raises DataError: it holds those of another model, of other levels or of other settings, and says which.
        """
        told = {
            name: [[each.method, each.label, dict(each.cost), dict(each.options)] for each in levels]
            for name, levels in self._offers.items()
        }
        decides = {**self._decides, "levels": hash_json(plain(told))}
        with self._units.begin(decides, costly=lambda: {"model": model_digest(model)}):
            yield self

    def read(self, name: str) -> dict[str, dict[str, Packed]] | None:
        """Label to the packed values of a module's parameters, mapped from the file; None where they are not there."""
        found = self._units.read(name)
        if found is None:
            return None
        header, tensors = found
        made: dict[str, dict[str, Packed]] = {}
        for number, level in enumerate(header["levels"]):
            made[level["label"]] = {}
            for parameter, told in level["parameters"].items():
                head = f"{number}/{parameter}/"
                parts = {key.removeprefix(head): each for key, each in tensors.items() if key.startswith(head)}
                made[level["label"]][parameter] = read_packed(told["form"], parts, told["settings"])
        return made

    def write(self, name: str, made: Mapping[str, Mapping[str, Packed]]) -> None:
        """Keep the packed values of all levels of a module, by their labels."""
        tensors: dict[str, Tensor] = {}
        header: list[dict[str, Any]] = []
        for number, (label, values) in enumerate(made.items()):
            told = {p: {"form": packed.form, "settings": packed.settings()} for p, packed in values.items()}
            header.append({"label": label, "parameters": told})
            for parameter, packed in values.items():
                tensors |= {f"{number}/{parameter}/{part}": each for part, each in packed.tensors().items()}
        self._units.write(name, tensors, {"levels": header})
