"""What a corpus in parts costs beside a bare loop, by each engine, and what a worker reads before its first row.

- ``empty``: rows of 1,025 ids in units of 8,192, with the model taken out. The bare loop reads row groups as Arrow
  columns, makes arrays and writes Parquet. Beside it: ``score`` on the same parts, a unit after another in this process
  (``here``), datatrove and Ray with one worker each. CPU time of this process and all below it, a row.
- ``model``: SmolLM2-135M on ``--model-rows`` rows (2,000) of ``--model-ids`` ids (9): CPU time of one worker against
  ``score``, and wall-clock time of two workers against one (on an idle machine with two cores).
- ``first``: bytes that a worker reads of a corpus before its first row, as a share of the corpus.
- ``waits``: the share of a run that ``score`` spends outside of scoring when a unit of 512 rows takes as long as on a
  GPU that scores 2,000 rows a second; what is read ahead in the meantime does not count.

Every run is measured from its first unit's file on, so that neither starting processes nor loading a model counts.

    python packages/miniplm/benchmarks/parts.py [--only empty,model,first,waits] [--rows 131072] [--quick]

Sides take turns; ratios are medians over rounds, with their range. The engines have to be installed (nox -s engines
makes such an environment), or their figures are left out. The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any, Final

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from paperhooks.logprobs import LogLikelihood, RowScores, row_pieces
from paperhooks.models import check_ids
from paperhooks.testing import tiny_llama
from paperhooks_miniplm import ScoringRun, ScoringSpec, score, write_parts
from paperhooks_miniplm.scoring import Scorer
from paperhooks_testbed import documents, load_smollm2

VOCABULARY: Final = 49_152
ENGINES: Final = tuple(name for name in ("datatrove", "ray") if importlib.util.find_spec(name))


class NoModel(LogLikelihood):
    """Looks at ids, and cuts rows, and no more."""

    def score(self, rows: Any, *, first: int = 0, **_: Any) -> RowScores:
        """Of each row a one."""
        check_ids("a row", np.concatenate(rows), self.vocabulary)
        pieces, _owners, cut = row_pieces(rows, self.max_length, self.over_long)
        return RowScores(np.ones(len(pieces)), np.full(len(pieces), 1024), cut)


class SlowModel(NoModel):
    """Takes as long as a GPU that scores 2,000 rows a second, and no core meanwhile."""

    def score(self, rows: Any, *, first: int = 0, **_: Any) -> RowScores:
        """Of each row a one."""
        time.sleep(len(rows) / 2000)
        return NoModel.score(self, rows, first=first)


@contextmanager
def scored_by(score: Callable[..., RowScores]) -> Iterator[None]:
    """Every likelihood scores so while the block lasts."""
    plain = LogLikelihood.score
    LogLikelihood.score = score  # type: ignore[method-assign]
    try:
        yield
    finally:
        LogLikelihood.score = plain  # type: ignore[method-assign]


@dataclass(frozen=True)
class EmptySpec(ScoringSpec):
    """As a spec, of a model that is not run."""

    def open(self, device: str = "cpu") -> Scorer:
        """With the settings of the true one."""
        known = ScoringSpec.open(self, device).likelihood
        return Scorer(NoModel(known.model, known.end, known.max_length), "none")


class Watch(Thread):
    """Notes all the time how many CPU seconds this process and all below it have taken, but for the noting."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = Event()
        self._seconds: dict[tuple[int, float], float] = {}
        self.notes: list[tuple[float, float]] = []

    def run(self) -> None:
        """Until it is left."""
        while not self._over.wait(0.05):
            self._note()

    def _note(self) -> None:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                used = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = used.user + used.system
            except psutil.NoSuchProcess:  # what it had taken stands
                continue
        self.notes.append((time.time(), sum(self._seconds.values()) - time.thread_time()))

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def between(self, begin: float, end: float) -> float:
        """CPU seconds between two moments."""
        moments, seconds = zip(*self.notes, strict=True)
        first, last = np.interp([begin, end], moments, seconds)
        return float(last - first)


def measured(work: Callable[[], object], files: Callable[[], Iterable[Path]]) -> tuple[float, float]:
    """Seconds of a CPU and of the clock from the first file of a run on, a file.

    :param files: those that the run leaves, one a unit.
    """
    with Watch() as watch:
        work()
        time.sleep(0.2)
    times = sorted(file.stat().st_mtime for file in files())
    units = len(times) - 1
    return watch.between(times[0], times[-1]) / units, (times[-1] - times[0]) / units


def random_rows(count: int, length: int) -> list[Any]:
    """Rows of random ids."""
    return list(np.random.default_rng(0).integers(3, VOCABULARY, (count, length), dtype=np.int64))


def bare_loop(parts: Path, out: Path) -> None:
    """Row groups as Arrow columns, arrays, Parquet, and nothing else."""
    out.mkdir()
    number = 0
    for name in sorted(parts.glob("part-*.parquet")):
        file = pq.ParquetFile(name)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["row", "input_ids", "n_bytes"])
            lists = table["input_ids"].combine_chunks()
            count = len(np.diff(lists.offsets.to_numpy()))
            columns = {"nll": np.ones(count), "count": np.full(count, 1024), "cut": np.zeros(count, bool)}
            found = pa.table({"row": table["row"], "n_bytes": table["n_bytes"], **columns})
            pq.write_table(found, out / f"bare-{number:06d}.parquet", compression="zstd")
            number += 1


def by_engine(name: str, run: ScoringRun, workers: int) -> None:
    """Score a run by an engine, or here."""
    if name == "datatrove":
        from paperhooks_miniplm.on_datatrove import score_on_datatrove

        score_on_datatrove(run, workers)
    elif name == "ray":
        import ray
        from paperhooks_miniplm.on_ray import score_on_ray

        ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False)
        try:
            score_on_ray(run, workers)
        finally:
            ray.shutdown()
    else:
        for number in run.missing():
            run.score(number)


def scored(out: Path) -> Callable[[], Iterable[Path]]:
    """The files that a run leaves in a folder, wherever they lie there."""
    return lambda: [*out.glob("scores-*.parquet"), *out.glob("bare-*.parquet"), *out.glob("units/*.safetensors")]


def empty(place: Path, rows: int, rounds: int) -> dict[str, float]:
    """The figures without a model."""
    model = tiny_llama(vocab_size=VOCABULARY, max_position_embeddings=2048)
    model.save_pretrained(place / "model")
    unit = min(8192, rows // 8)
    parts = write_parts(random_rows(rows, 1025), place / "parts", unit_rows=unit)
    spec = EmptySpec(str(place / "model"), end=2)
    counter, found = iter(range(10**6)), dict[str, list[float]]()

    def plain(out: Path) -> None:
        with scored_by(NoModel.score):
            score(model, parts, out, end=2, unit_rows=unit, progress=False)

    def ways(out: Path, name: str) -> Callable[[], object]:
        if name == "bare":
            return lambda: bare_loop(place / "parts", out)
        if name == "score":
            return lambda: plain(out)
        run = ScoringRun.begin(spec, parts, out)
        return lambda: by_engine(name, run, 1)

    for _ in range(rounds):
        for name in ("bare", "score", "here", *ENGINES):
            out = place / f"{name}{next(counter)}"
            found.setdefault(name, []).append(measured(ways(out, name), scored(out))[0])
    return _ratios(found, "bare") | {f"{name}_us_a_row": 1e6 * median(values) / unit for name, values in found.items()}


def _ratios(found: dict[str, list[float]], base: str) -> dict[str, float]:
    parts = [_ratio(name, values, found[base]) for name, values in found.items() if name != base]
    return {key: value for part in parts for key, value in part.items()}


def _ratio(name: str, one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    ratios = [mine / theirs for mine, theirs in zip(one, other, strict=True)]
    return {f"{name}_ratio": median(ratios), f"{name}_low": min(ratios), f"{name}_high": max(ratios)}


def of_model(place: Path, rows: int, length: int, rounds: int) -> dict[str, float]:
    """The figures with SmolLM2."""
    model, tokenizer = load_smollm2()[:2]
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    ids = [each for passage in documents() for each in tokenizer(passage.text)["input_ids"]]
    ids = (ids * (rows * length // len(ids) + 1))[: rows * length]
    unit = max(1, rows // 16)
    parts = write_parts(list(np.array(ids).reshape(rows, length)), place / "parts", unit_rows=unit)
    spec = ScoringSpec(str(place / "model"), max_length=length - 1)
    counter, cpu, clock = iter(range(10**6)), dict[str, list[float]](), dict[str, list[float]]()
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_length": length - 1, "unit_rows": unit, "progress": False}

    def ways(out: Path, name: str, workers: int) -> Callable[[], object]:
        if name == "score":
            return lambda: score(model, parts, out, **options)
        run = ScoringRun.begin(spec, parts, out)
        return lambda: by_engine(name, run, workers)

    for _ in range(rounds):
        for name, workers in (("score", 1), ("here", 1), *((name, workers) for name in ENGINES for workers in (1, 2))):
            out = place / f"{name}{next(counter)}"
            one, two = measured(ways(out, name, workers), scored(out))
            if workers == 1:
                cpu.setdefault(name, []).append(one)
            clock.setdefault(f"{name}_{workers}", []).append(two)
    found = _ratios(cpu, "score")
    for name in ENGINES:
        found |= _ratio(f"{name}_two_workers", clock[f"{name}_2"], clock[f"{name}_1"])
    return found | {f"{name}_seconds_a_unit": median(values) for name, values in clock.items()}


def first_row(place: Path, rows: int) -> dict[str, float]:
    """What a worker reads before its first row: index and footer."""
    parts = write_parts(random_rows(rows, 1025), place / "parts", unit_rows=256, part_units=8)
    size = sum(file.stat().st_size for file in (place / "parts").iterdir())
    read = (place / "parts" / "parts.json").stat().st_size
    with parts.storage.open("part-000000.parquet") as handle:
        plain, bytes_read = handle.read, []
        handle.read = lambda *some: bytes_read.append(plain(*some)) or bytes_read[-1]  # type: ignore[method-assign]
        pq.ParquetFile(handle)
    return {"corpus_bytes": size, "read_share": (read + sum(map(len, bytes_read))) / size}


def waits(place: Path, rows: int) -> dict[str, float]:
    """The share of time outside of scoring, and of units one after another."""
    model = tiny_llama(vocab_size=VOCABULARY, max_position_embeddings=2048)
    parts = write_parts(random_rows(rows, 1025), place / "parts", unit_rows=512)
    inside = [0.0]

    def timed(self: Any, rows: Any, **named: Any) -> RowScores:
        begin = time.perf_counter()
        found = SlowModel.score(self, rows, **named)
        inside[0] += time.perf_counter() - begin
        return found

    with scored_by(timed):
        begin = time.perf_counter()
        score(model, parts, place / "out", end=2, unit_rows=512, progress=False)
        seconds = time.perf_counter() - begin
    return {"outside_share": 1 - inside[0] / seconds, "seconds": seconds}


def main() -> None:
    """Print figures; the last line is JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="empty,model,first,waits")
    options.add_argument("--rows", type=int, default=131_072)
    options.add_argument("--model-rows", type=int, default=2_000)
    options.add_argument("--model-ids", type=int, default=9)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--quick", action="store_true")
    given = options.parse_args()
    rows, rounds = (2_048, 1) if given.quick else (given.rows, given.rounds)
    torch.set_num_threads(1)
    works: dict[str, Callable[[Path], dict[str, float]]] = {
        "empty": lambda place: empty(place, rows, rounds),
        "model": lambda place: of_model(place, 64 if given.quick else given.model_rows, given.model_ids, rounds),
        "first": lambda place: first_row(place, rows),
        "waits": lambda place: waits(place, rows // 8),
    }
    found: dict[str, Any] = {}
    for name in given.only.split(","):
        with TemporaryDirectory() as folder:
            found[name] = works[name](Path(folder))
        print(name, json.dumps(found[name], indent=2), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
