"""Two runs on one folder: one works, the other says who does; reading is never blocked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paperhooks
import pytest
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend, Request
from paperhooks.reports import RunFolder
from paperhooks.testing import Processes, tiny_text
from paperhooks_evaluation import Document, Parsed, rescore
from paperhooks_mathneuro import Statistics, collect
from paperhooks_miniplm import (
    MemoryRows,
    MiniPLM,
    Scores,
    Shards,
    byte_tokenizer,
    export,
    pack,
    score,
    select,
    write_shards,
)

ROWS = [[1 + (i * j) % 90 for j in range(2, 9)] for i in range(24)]
TEXTS = ["A sentence. Another one." for _ in range(9)]
BACKEND = CallableBackend(lambda request: "yes")
HOLDS = """
import sys, time
from paperhooks.io import FolderLock
lock = FolderLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


class Echo(paperhooks.Task):
    """Asks for nothing in particular."""

    version = "1"
    modes = ("official",)

    def documents(self, source: str) -> list[Any]:
        return [Document(f"d{i}", {}, {"n": i}) for i in range(4)]

    def request(self, document: Any) -> Any:
        return Request(messages=[{"role": "user", "content": [{"type": "text", "text": document.id}]}])

    def parse(self, document: Any, response: str, mode: str) -> Any:
        return Parsed(response)

    def score(self, document: Any, parsed: Any) -> float:
        return 1.0


def models() -> dict[str, Any]:
    return {"teacher": tiny_text(layers=2, seed=0), "reference": tiny_text(layers=2, seed=1)}


def exported(out: Path) -> None:
    source = MemoryRows(ROWS)
    chosen = select(source.lengths().astype("f4"), count=4)
    export(chosen, source, out, "shards")


WRITES: dict[str, Callable[[Path], object]] = {
    "score": lambda out: score(models()["teacher"], MemoryRows(ROWS), out, end=0, max_length=16, progress=False),
    "core score": lambda out: paperhooks.score(models(), MemoryRows(ROWS), MiniPLM(end=0), out=out),
    "select": lambda out: paperhooks.select(MiniPLM(end=0), corpus=MemoryRows(ROWS), ratio=0.5, out=out, **models()),
    "collect": lambda out: collect(models()["teacher"], ROWS, out=out, progress=False),
    "compress": lambda out: paperhooks.compress(
        models()["teacher"], "mathneuro", data={"target": ROWS[:12], "reference": ROWS[12:]}, out=out, ratio=0.1
    ),
    "evaluate": lambda out: paperhooks.evaluate(
        CallableBackend(lambda request: "yes"), None, Echo(), data="x", out=out
    ),
    "pack": lambda out: pack(TEXTS, byte_tokenizer(TEXTS), out, max_length=32),
    "export": exported,
    "shards": lambda out: write_shards(ROWS, out),
}
READS: dict[str, Callable[[Path], object]] = {
    "score": Scores.load,
    "select": lambda out: RunFolder.open(out, "select"),
    "collect": lambda out: Statistics.load(out / "statistics.safetensors"),
    "evaluate": lambda out: RunFolder.open(out, "evaluate"),
    "pack": lambda out: Shards(out).read([0]),
}


@pytest.fixture
def held() -> Iterator[Callable[[Path], int]]:
    """Lets another process hold a folder, and gives its number."""
    with Processes() as processes:

        def hold(folder: Path) -> int:
            child = processes.start("-c", HOLDS, folder)
            assert child.line() == "held"
            return child.process.pid

        yield hold


@pytest.mark.parametrize("operation", WRITES)
def test_the_second_run_is_told_who_works(tmp_path: Path, held: Callable[[Path], int], operation: str) -> None:
    pid = held(tmp_path / "out")
    with pytest.raises(DataError, match=rf"used by another run \(process {pid} on "):
        WRITES[operation](tmp_path / "out")


@pytest.mark.parametrize("operation", READS)
def test_reading_is_never_blocked(tmp_path: Path, held: Callable[[Path], int], operation: str) -> None:
    WRITES[operation](tmp_path / "out")
    held(tmp_path / "out")
    assert READS[operation](tmp_path / "out") is not None


def test_rescoring_is_writing(tmp_path: Path, held: Callable[[Path], int]) -> None:
    WRITES["evaluate"](tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    held(tmp_path / "out")
    with pytest.raises(DataError, match="used by another run"):
        rescore(tmp_path / "out", Echo())
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before
