"""Work that is killed at random moments and started again: ``python kill_program.py OPERATION KILLS SEED FOLDER``.

Everything is imported and made once; each run is a fork of this process, so that a kill costs a run and no start-up.
Prints a line of JSON for each kill: when it came, and in what the products differ from those of an undisturbed run.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paperhooks
import torch
from paperhooks.generation import CallableBackend, Request
from paperhooks.testing import tiny_text
from paperhooks_evaluation import Document, Metric, Parsed, Task
from paperhooks_mathneuro import collect
from paperhooks_miniplm import (
    MemoryRows,
    MiniPLM,
    Shards,
    byte_tokenizer,
    diff,
    export,
    pack,
    score,
    select,
    write_shards,
)

#: Entries of JSON that say when and where a run took place.
PASSING = {"started", "finished", "created", "timings", "seconds", "sha256", "host", "pid"}
PASSING |= {"date", "total_evaluation_time_seconds"}
ROWS = [[1 + (i * j) % 90 for j in range(2, 9 + i % 5)] for i in range(160)]


class Echo(Task):
    """Asks for a number back."""

    version = "1"
    modes = ("official",)

    def documents(self, source: str) -> list[Document]:
        return [Document(f"d{i}", {"kind": "even" if i % 2 else "odd"}, {"n": i}) for i in range(48)]

    def request(self, document: Document) -> Request:
        return Request(messages=[{"role": "user", "content": [{"type": "text", "text": str(document.data["n"])}]}])

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        return Parsed(response)

    def score(self, document: Document, parsed: Parsed) -> float:
        return float(parsed.value == str(document.data["n"]))

    def metrics(self, records: Any) -> list[Metric]:
        return [Metric("accuracy", sum(one.score for one in records) / len(records))]


def work(operation: str, folder: Path) -> Callable[[Path], None]:
    """A function that does an operation in a folder; ``folder`` is for what it needs."""
    torch.set_num_threads(1)
    teacher, reference = tiny_text(layers=2, seed=0), tiny_text(layers=2, seed=1)
    if operation == "score":
        return lambda out: score(teacher, MemoryRows(ROWS), out, end=0, max_length=32, unit_rows=8, progress=False)
    if operation == "select":
        models = {"teacher": teacher, "reference": reference}
        rows = MemoryRows(ROWS[:96])
        method = MiniPLM(end=0, max_length=32)
        return lambda out: paperhooks.select(method, corpus=rows, ratio=0.5, out=out, models=models, unit_rows=16)
    if operation in ("export", "pack"):
        write_shards(ROWS * 20, folder / "corpus", rows_per_shard=400)
        source = Shards(folder / "corpus")
        values = torch.rand(len(source), generator=torch.Generator().manual_seed(0)).numpy()
        chosen = select(values, ratio=0.7)
        if operation == "export":
            return lambda out: export(chosen, source, out, "shards", rows_per_shard=300)
        texts = [f"Text {i} is about {i * 7}. It ends here." for i in range(600)]
        tokenizer = byte_tokenizer(texts)
        (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return lambda out: pack(str(folder / "texts.jsonl"), tokenizer, out, max_length=32, rows_per_shard=100)
    if operation == "collect":
        return lambda out: collect(teacher, ROWS * 3, out=out, batch_size=2, progress=False)
    if operation == "compress":
        data = {"target": ROWS[:80], "reference": ROWS[80:]}
        options = {"ratio": 0.05, "scale": 0.0}

        def compress(out: Path) -> None:
            paperhooks.compress(tiny_text(layers=2, seed=0), "mathneuro", data=data, out=out, **options)

        return compress
    if operation == "diff":
        for name, model in (("teacher", teacher), ("reference", reference)):
            score(model, MemoryRows(ROWS), folder / name, end=0, max_length=32, progress=False)
        return lambda out: diff(folder / "teacher", folder / "reference").save(out / "difference")
    if operation == "evaluate":

        def answer(request: Request) -> str:
            time.sleep(0.01)
            return request.text.strip().removeprefix("user: ")

        backend = CallableBackend(answer)
        return lambda out: paperhooks.evaluate(backend, None, Echo(), data="x", out=out, batch_size=4)
    raise SystemExit(f"there is no operation {operation!r}")


def forked(action: Callable[[Path], None], out: Path, kill_after: float | None = None) -> tuple[int, float]:
    """Exit status and seconds of the action in a fork, which is killed after some seconds where these are given."""
    begin = time.monotonic()
    child = os.fork()
    if not child:
        try:
            action(out)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    if kill_after is not None:
        time.sleep(max(0.0, kill_after - (time.monotonic() - begin)))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begin


def products(folder: Path) -> dict[str, Any]:
    """What lies in a folder, by name, without what says when and where."""
    return {str(file.relative_to(folder)): _content(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _content(file: Path) -> Any:
    raw = file.read_bytes()
    if file.suffix == ".json":
        return _lasting(json.loads(raw))
    if file.suffix == ".jsonl":
        return [_lasting(json.loads(line)) for line in raw.decode().split("\n") if line]
    if file.suffix in (".html", ".md"):
        text = raw.decode().replace(str(file.parent), "")
        return re.sub(
            r"\d{4}-\d\d-\d\dT[\d:+]+|\b\d+(\.\d+)?(e-?\d+)? ?s\b|\"?(seconds|started|finished)\"?.*", "", text
        )
    return raw


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def main(operation: str, kills: int, seed: int, folder: Path) -> None:
    """Kill and start again so many times."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    (folder / "needs").mkdir(parents=True)
    action = work(operation, folder / "needs")
    status, seconds = forked(action, folder / "undisturbed")
    if status:
        raise SystemExit(f"{operation} failed undisturbed")
    wanted, draw = products(folder / "undisturbed"), random.Random(seed)
    for number in range(kills):
        out, moment = folder / f"run-{number}", draw.uniform(0, seconds)
        killed, _ = forked(action, out, moment)
        there = len(list(out.rglob("*"))) if out.exists() else 0
        status, _ = forked(action, out)
        found = products(out) if out.exists() else {}
        odd = sorted(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        line = {"operation": operation, "moment": round(moment / seconds, 3), "killed": killed, "there": there}
        print(json.dumps({**line, "status": status, "differ": odd}), flush=True)
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
