"""Disks that are full and places that cannot be written, and JSON that is none: named, and the old product stays."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paperhooks import Artefact
from paperhooks.data import Selection
from paperhooks.errors import PaperhooksError
from paperhooks.io import write_json
from paperhooks.reports import Paragraph, RunFolder
from paperhooks.testing import tiny_text
from paperhooks_mathneuro import collect
from paperhooks_miniplm import Difference, MemoryRows, Scores, Shards, export
from test_two_runs import ROWS, WRITES

MANY = MemoryRows(ROWS * 100)
CHOSEN = Selection(np.arange(2000), 2400, 0.0, {}, np.zeros(2000, dtype=np.float32))
NOISE = np.random.default_rng(0).random(4000)
VALUES = NOISE.astype(np.float32)


def statistics(file: Path) -> object:
    return collect(tiny_text(layers=2), ROWS, progress=False).save(file)


def reported(file: Path) -> None:
    with RunFolder(file.parent / "run") as run:
        run.start("test", inputs={})
        run.report("Long", [Paragraph(f"{number} words") for number in range(3000)])


#: What writes more than a small disk holds, and the name of the file that it writes.
LARGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "json": ("a.json", lambda file: write_json(file, VALUES.tolist())),
    "difference": ("a.safetensors", lambda file: Difference(VALUES, NOISE, NOISE).save(file)),
    "selection": ("a.safetensors", CHOSEN.save),
    "artefact": ("a.safetensors", lambda file: Artefact("m", kind="k", tensors={"x": _tensor()}).save(file)),
    "statistics": ("a.safetensors", statistics),
    "rows as lines": ("a.jsonl", lambda file: export(CHOSEN, MANY, file, "jsonl")),
    "rows as parquet": ("a.parquet", lambda file: export(CHOSEN, MANY, file, "parquet")),
    "rows as shards": ("shards", lambda file: export(CHOSEN, MANY, file, "shards")),
    "report": ("report", reported),
    "score": ("scores", WRITES["score"]),
    "collect": ("collected", WRITES["collect"]),
    "compress": ("compressed", WRITES["compress"]),
    "pack": ("packed", WRITES["pack"]),
}


def _tensor() -> Any:
    import torch

    return torch.from_numpy(NOISE)


def limited(action: Callable[[], object], size: int) -> tuple[str, str]:
    """Kind and text of the error of an action, in a process whose files may not grow beyond a size."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        told = ["nothing", ""]
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            action()
        except PaperhooksError as error:
            told = ["PaperhooksError", str(error)]
        except BaseException as error:
            told = [type(error).__name__, str(error)]
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(child, 0)
    kind, text = json.loads(raw)
    return kind, text


@pytest.mark.parametrize("what", LARGE)
def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path, what: str) -> None:
    name, write = LARGE[what]
    kind, text = limited(lambda: write(tmp_path / name), 1000)
    assert kind == "PaperhooksError", text
    assert str(tmp_path) in text
    assert not [file.name for file in tmp_path.rglob("*") if file.name.endswith(".part")]


@pytest.mark.parametrize("what", ["json", "difference", "selection", "artefact", "statistics"])
def test_the_old_product_stays(tmp_path: Path, what: str) -> None:
    name, write = LARGE[what]
    (tmp_path / name).write_bytes(b"old")
    assert limited(lambda: write(tmp_path / name), 1000)[0] == "PaperhooksError"
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(name, b"old")]


@pytest.mark.parametrize("operation", WRITES)
def test_places_that_cannot_be_written_are_named(tmp_path: Path, operation: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PaperhooksError, match="file"):
        WRITES[operation](tmp_path / "file" / "out")
    with pytest.raises(PaperhooksError, match="file"):
        WRITES[operation](tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b"1" * 5000, b'{"schema": 1, "inputs": [1]}', b"\xff\xfe{", b"{", b"[]"]
)
@pytest.mark.parametrize("name", ["result.json", "manifest.json", "corpus.json"])
def test_json_that_is_none_is_an_error_that_names_the_file(tmp_path: Path, raw: bytes, name: str) -> None:
    from paperhooks_miniplm import write_shards

    write_shards(ROWS, tmp_path)
    (tmp_path / name).write_bytes(raw)
    read: dict[str, Callable[[Path], object]] = {
        "result.json": RunFolder.open, "manifest.json": Scores.load, "corpus.json": lambda at: Shards(at).fingerprint(),
    }  # fmt: skip
    with pytest.raises(PaperhooksError, match=name.replace(".", r"\.")):
        read[name](tmp_path)
    assert (tmp_path / name).read_bytes() == raw
