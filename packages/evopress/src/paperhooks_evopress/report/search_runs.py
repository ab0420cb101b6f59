"""What the folder of a search holds, to be shown, exported and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from paperhooks import Artefact, DataError, ModelView
from paperhooks.io import model_digest, plain, read_json
from paperhooks.models import data_digest
from paperhooks.reports import RunFolder

from paperhooks_evopress.history import Generation
from paperhooks_evopress.spaces import Target

__all__ = ["SearchRun"]

_METHOD: Final = "paperhooks_evopress.method:EvoPress"


@dataclass(frozen=True, eq=False)
class SearchRun:
    """A search that is finished, or under way.

    path
        Its folder.
    result
        The content of ``result.json``.
    """

    path: Path
    result: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> SearchRun:
        """Read a folder.

        :raises DataError: no run of EvoPress, or a damaged one.
        """
        run = RunFolder.open(folder, "compress")
        method = run.result["inputs"].get("method", {}).get("class")
        if method != _METHOD:
            raise DataError(f"{run.path} holds a run of {method!r}; expected the folder of a search by EvoPress")
        return cls(run.path, run.result)

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.result["status"] == "finished")

    @property
    def database(self) -> Path:
        """The folder of the values of levels."""
        return self.path / "database"

    @property
    def options(self) -> dict[str, Any]:
        """Of the search."""
        return dict(self.result["inputs"]["method"]["options"])

    @property
    def methods(self) -> str:
        """Who offered levels, in words."""
        given = [
            f"{each['class'].rpartition(':')[2]} {each['options'] or ''}".strip()
            for each in self.result["inputs"]["levels_from"]
        ]
        return "; ".join(given) or "those of the target"

    @cached_property
    def artefact(self) -> Artefact:
        """Of the winner.

        :raises DataError: the search is not finished.
        """
        if not self.finished:
            raise DataError(f"the search in {self.path} is not finished; run the same command again to go on with it")
        return Artefact.load(self.path)

    @property
    def told(self) -> Mapping[str, Any]:
        """What the artefact says of the search."""
        return self.artefact.data

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """Module name to method, label, cost and options of its level."""
        return dict(self.told["levels"])

    @property
    def seconds(self) -> float:
        """How long it took."""
        return float(self.result["timings"].get("compress", 0.0))

    @cached_property
    def history(self) -> list[Generation]:
        """Its generations so far."""
        file = self.path / "search.json"
        if not file.exists():
            return []
        state = read_json(file, "state of a search")
        try:
            return [Generation.from_json(each) for each in state["history"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{file} is no state of a search of this version: {error}") from error

    def check(self, view: ModelView, target: Target, data: Any, options: Mapping[str, Any]) -> None:
        """Raise DataError for a search of another target, model or text, or with other options."""
        inputs = self.result["inputs"]
        found = {
            "target": (str(Target.of(inputs["target"])), str(target)),
            "model": (inputs["model"], plain(model_digest(view.model))),
            "data": (inputs["data"], plain(data_digest(data))),
            **{name: (self.options.get(name), plain(value)) for name, value in options.items()},
        }
        for name, (there, here) in found.items():
            if there != here:
                words = f"{name} {there!r}, not {here!r}" if name not in ("model", "data") else f"another {name}"
                raise DataError(f"the search in {self.path} was made with {words}; compare like with like")
