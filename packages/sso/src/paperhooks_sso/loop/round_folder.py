"""The folder of a round, with what each of its stages has left, and whether that is still what it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from paperhooks import DataError
from paperhooks.io import hash_file
from paperhooks.reports import RunFolder

__all__ = ["KIND", "STAGES", "RoundFolder"]

KIND: Final = "sso-round"
#: The stages in their order, and the file that each leaves; None where there is none to be read by the next.
STAGES: Final[Mapping[str, str | None]] = {
    "prompts": "asked.jsonl",
    "samples": None,  # a log with the times of its rows; asking reads it again
    "pairs": "pairs.jsonl",
    "references": None,
    "before": "before.jsonl",
    "train": "steps.jsonl",
    "after": "after.jsonl",
}


class RoundFolder:
    """A folder that is held while the block runs; see :class:`paperhooks.reports.RunFolder`.

    :param path: where it lies.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, RunFolder(path)

    def __enter__(self) -> RoundFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.run.release()

    def start(self, inputs: Mapping[str, Any], seed: int) -> None:
        """Begin, or go on; raises DataError where the round has other inputs, naming the first that differs."""
        self.run.start(KIND, inputs=inputs, seed=seed)

    @classmethod
    def open(cls, path: Path) -> RoundFolder:
        """The round that a folder holds, to be read; raises DataError where there is none."""
        found = cls(path)
        found.run = RunFolder.open(path, KIND)
        return found

    def done(self, stage: str) -> dict[str, Any] | None:
        """What a stage has said, or None where it is still to come.

        :raises DataError: its file was changed since.
        """
        told: dict[str, Any] | None = self.run.result["results"].get(stage)
        name = STAGES[stage]
        if told is None or name is None:
            return told
        file = self.path / name
        if not file.is_file() or hash_file(file) != told["sha256"]:
            what = "was changed" if file.is_file() else "was taken away"
            raise DataError(f"{file} {what} after it was written; put it back, or use another folder")
        return told

    def stage(self, stage: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What a stage says: made now, or told from when it was done."""
        told = self.done(stage)
        if told is None:
            with self.run.timed(stage):
                told = dict(make())
            name = STAGES[stage]
            told |= {} if name is None else {"sha256": hash_file(self.path / name)}
            self.run.record(**{stage: told})
        return told

    def file(self, stage: str) -> Path:
        """The file that a stage leaves."""
        return self.path / str(STAGES[stage])

    @property
    def checkpoint(self) -> Path:
        """The folder with the trained model."""
        return self.path / "checkpoint"

    @property
    def finished(self) -> list[str]:
        """The stages that are done."""
        return [name for name in STAGES if name in self.run.result["results"]]
