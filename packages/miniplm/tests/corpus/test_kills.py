"""SIGKILL at any moment, then the same call again: the files are those of a run that nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from paperhooks import DataError
from paperhooks_miniplm import Shards, convert, export, open_rows, pack, select
from paperhooks_miniplm.corpus import ShardWriter
from paperhooks_miniplm.corpus.stage import Stage

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

TIMES = ("created", "versions", "sha256")


def packed(out: Path) -> None:
    pack(golden.CORPUS, golden.tokenizer(), out, max_length=64, rows_per_shard=400)


def exported(out: Path) -> None:
    source = Shards(golden.SHARDS)
    export(select(np.arange(len(source), dtype=np.float32), ratio=0.5), source, out, "shards", rows_per_shard=300)


def converted(out: Path) -> None:
    convert(golden.SHARDS, golden.tokenizer(), golden.tokenizer("tok_b"), max_length=64).write(out, rows_per_shard=400)


def lines(out: Path) -> None:
    source = open_rows(golden.SHARDS)
    out.mkdir(exist_ok=True)
    for format in ("jsonl", "parquet"):
        export(select(np.arange(len(source), dtype=np.float32), ratio=0.5), source, out / f"rows.{format}", format)


def content(folder: Path) -> dict[str, object]:
    """All files, without times."""
    found: dict[str, object] = {file.name: file.read_bytes() for file in folder.iterdir()}
    if (file := folder / "corpus.json").exists():
        found[file.name] = {k: v for k, v in json.loads(file.read_text()).items() if k not in TIMES}
    return found


def killed(run: Callable[[Path], None], out: Path, owner: type | object, name: str, calls: int) -> None:
    """Run it in a process that ends with SIGKILL when something is called for the last of so many times."""
    child = os.fork()
    if child == 0:
        real, left = getattr(owner, name), [calls]

        def counted(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(owner, name, counted)
        try:
            run(out)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("run", [packed, exported, converted])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [(ShardWriter, "add", 500), (Stage, "commit", 1), (os, "replace", -1), (os, "replace", -3), (Path, "rmdir", 1)],
    ids=["rows", "before the mark", "last move", "moves", "after the moves"],
)
def test_a_killed_writer_and_the_same_again(tmp_path: Path, monkeypatch, run, owner, name: str, calls: int) -> None:
    moves = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *arguments: (moves.append(arguments), replace(*arguments))[1])
    run(tmp_path / "whole")
    monkeypatch.undo()
    killed(run, tmp_path / "out", owner, name, calls if calls > 0 else len(moves) + 1 + calls)
    with contextlib.nullcontext() if name == "rmdir" else pytest.raises(DataError, match=r"data_0\.idx"):
        Shards(tmp_path / "out")
    for _ in range(2):  # the second time there is nothing to do
        run(tmp_path / "out")
        assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_killed_copy_and_the_same_again(tmp_path: Path) -> None:
    lines(tmp_path / "whole")
    killed(lines, tmp_path / "out", os, "replace", 2)
    assert (tmp_path / "out" / "rows.jsonl").exists()
    for _ in range(2):
        lines(tmp_path / "out")
        assert content(tmp_path / "out") == content(tmp_path / "whole")
    for format in ("jsonl", "parquet"):
        (tmp_path / "out" / f"rows.{format}").write_text("mine")
        source = open_rows(golden.SHARDS)
        with pytest.raises(DataError, match="exists already with other content"):
            export(
                select(np.zeros(len(source), np.float32), count=3), source, tmp_path / "out" / f"rows.{format}", format
            )
        assert (tmp_path / "out" / f"rows.{format}").read_text() == "mine"
