"""Run folders and the blocks that reports are made of.

A run folder holds ``result.json`` (inputs, hashes, versions, seeds, timings, results), figures as SVG and PNG,
``report.md`` and a self-contained ``report.html``. It is append-only and resumable: opening a folder with the inputs it
was made from goes on, opening it with other inputs is refused with the first difference named. While a run is in it, no
other one can be started there; whoever reads it is not kept from doing so.

>>> with RunFolder("runs/one") as run:  # doctest: +SKIP
...     run.start("demo", inputs={"n": 8}, seed=0)
...     with run.timed("measure"):
...         run.record(speed=1.5)
...     run.report("One run", [Heading("Speed"), Table(("n", "speed"), [(8, 1.5)])])
...     run.finish()
>>> RunFolder.open("runs/one").result["results"]  # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import DataError
from paperhooks.io.files import (
    dotted,
    local_path,
    now,
    plain,
    read_json,
    remove_leftovers,
    versions,
    write_json,
    write_text,
)
from paperhooks.io.hashing import hash_json
from paperhooks.io.locks import LOCK_FILE, FolderLock
from paperhooks.reports.blocks import Block

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["RunFolder"]

#: What a change of ``result.json`` by another hand is seen by.
_HASHED: Final = ("inputs", "results")


class RunFolder:
    """The folder of one run. Creating the object touches nothing; :meth:`start` makes or resumes the run.

    From :meth:`start` to :meth:`finish`, or to the end of a ``with`` block, the folder is held.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path)
        self.result: dict[str, Any] = {}
        self._made = False
        self._writes = True
        self._lock = FolderLock(self.path)

    @classmethod
    def open(cls, path: str | Path, kind: str | None = None) -> RunFolder:
        """The run that a folder holds, to be read; it may be under way.

        :raises DataError: there is none, or none of this ``kind``, or a damaged one.
        """
        run = cls(path)
        found = run._read()
        if found is None or (kind is not None and found.get("kind") != kind):
            there = "no run" if found is None else f"a run of {found.get('kind')!r}"
            raise DataError(f"{run.path} holds {there}; expected one{f' of {kind!r}' if kind else ''}")
        run.result = found
        return run

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the folder back, finished or not; the end of a ``with`` block does so.

        A run that failed before it had left anything does not claim the folder.
        """
        if self._made and self._lock.held and not self.finished and self._is_bare():
            self.result_file.unlink(missing_ok=True)
        self._lock.release()

    def _is_bare(self) -> bool:
        return not self.result.get("results") and {f.name for f in self.path.glob("*")} <= {"result.json", LOCK_FILE}

    def confirm(self) -> None:
        """Raise DataError where the folder was removed or replaced since :meth:`start`."""
        self._lock.confirm()

    @property
    def result_file(self) -> Path:
        """``result.json``."""
        return self.path / "result.json"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.result.get("status") == "finished"

    def start(
        self, kind: str, *, inputs: Mapping[str, Any], seed: int | None = None, launch: str = "", writes: bool = True
    ) -> bool:
        """Begin a run, or go on with the one in the folder; returns True when it goes on.

        ``inputs`` is everything that determines the result; ``launch`` names processes that share the folder on purpose
        (see :class:`paperhooks.io.FolderLock`). Of processes that do one run together all but one start it with
        ``writes=False``, after that one: what they record or draw is written nowhere. Raises DataError when the folder
        holds a run of another kind, seed or inputs, naming the first difference, or a damaged ``result.json``, or is
        used by another process.
        """
        self._refuse_foreign_file()
        wanted = {"kind": kind, "seed": seed, "inputs": plain(inputs)}
        self._lock.launch, self._writes = launch, writes
        if not self._lock.held and self._lock.acquire():
            remove_leftovers(self.path)
        existing = self._read()
        if existing is not None:
            try:
                _refuse_difference(self.path, existing, wanted)
            except DataError:
                self.release()
                raise
            self.result = existing
            return True
        self.result = {"schema": 1, "status": "running", **wanted}
        self.result |= {"started": now(), "finished": None, "versions": versions(), "timings": {}, "results": {}}
        self._write()
        self._made = True
        return False

    def record(self, **results: Any) -> None:
        """Put results into ``result.json``, replacing those of the same name."""
        self.result["results"] |= plain(results)
        self._write()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to ``timings[name]``, also when it fails."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.result["timings"].get(name, 0.0) + time.perf_counter() - begin
            self.result["timings"][name] = round(seconds, 6)
            self._write()

    def finish(self) -> None:
        """Mark the run as finished, and give the folder back."""
        self.result |= {"status": "finished", "finished": now()}
        self._write()
        self.release()

    def figure(self, name: str, figure: MatplotlibFigure) -> tuple[Path, Path]:
        """Save a matplotlib figure as ``name.svg`` and ``name.png``; returns both paths."""
        from paperhooks.reports.figures import save_figure

        base = self.path / name
        return save_figure(figure, base) if self._writes else (base.with_suffix(".svg"), base.with_suffix(".png"))

    def report(self, title: str, blocks: Sequence[Block]) -> Path:
        """Write ``report.md`` and ``report.html``; returns the path of the latter.

        Raises DataError for a figure or image that is not in the folder.
        """
        from paperhooks.reports.render import render_html, render_markdown

        if not self._writes:
            return self.path / "report.html"
        write_text(self.path / "report.md", render_markdown(title, blocks, self.path))
        html = self.path / "report.html"
        write_text(html, render_html(title, blocks, self.path, self.result))
        return html

    def _read(self) -> dict[str, Any] | None:
        if not self.result_file.exists():
            return None
        found = read_json(self.result_file, "result of paperhooks, so move it away or use another folder")
        if not isinstance(found, dict) or found.get("schema") != 1 or not isinstance(found.get("inputs"), dict):
            raise DataError(f"{self.result_file} is not a result of paperhooks; use another folder")
        for part in _HASHED:
            if found.get(f"{part}_hash") != hash_json(found.get(part)):
                raise DataError(f"{self.result_file} was changed after it was written: its {part} are others")
        return found

    def _refuse_foreign_file(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file; the run needs a folder")

    def _write(self) -> None:
        if not self._writes:
            return
        if self._lock.held:
            self._lock.confirm()
        self.result |= {f"{part}_hash": hash_json(self.result[part]) for part in _HASHED}
        write_json(self.result_file, self.result)


def _refuse_difference(path: Path, existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = _flat(existing)
    for key, value in _flat(wanted).items():
        if found.get(key) != value:
            raise DataError(
                f"{path} holds a run with {key} = {found.get(key)!r}, not {value!r}; use another folder, "
                "or the same inputs to go on with it"
            )
    extra = [key for key in found if key.startswith("inputs.") and key not in _flat(wanted)]
    if extra:
        raise DataError(
            f"{path} holds a run with {extra[0]} = {found[extra[0]]!r}, which is not given now; use another folder"
        )


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": run.get("kind"), "seed": run.get("seed"), **dict(dotted(run["inputs"], "inputs."))}
