"""What a scored run writes: ``results.json``, ``scores.csv``, and the row of a leaderboard where a task defines one.

``results.json`` has the shape that lm-eval and lmms-eval write, and our own block.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.io import (
    atomic_path,
    csv_cell,
    csv_text,
    hash_file,
    hash_json,
    plain,
    read_json,
    read_records,
    write_json,
)
from paperhooks.reports import RunFolder

from paperhooks_evaluation.plan import COLUMNS
from paperhooks_evaluation.results import EvaluationResult
from paperhooks_evaluation.scoring import ModeResult
from paperhooks_evaluation.task import Metric, Record, Task

__all__ = [
    "CHECKED_FILES",
    "checked_file",
    "content_digest",
    "is_whole",
    "open_evaluation",
    "read_scores",
    "write_results",
]

#: Entries of results.json that say when the run was, and how long it took.
_PASSING: Final = ("date", "total_evaluation_time_seconds")
#: Files of a finished run whose SHA-256 stands in its result.json.
CHECKED_FILES: Final = ("documents.jsonl", "results.json", "scores.csv")

_Z: Final = 1.959964  # of a two-sided 95 % interval


def write_results(run: RunFolder, task: Task, result: EvaluationResult) -> None:
    """Write the files. Apart from ``date`` and time spent, the same responses give the same bytes."""
    content = _harness(run, task, result)
    content["paperhooks"] = _own(run, task, result)
    passing = round(time.time(), 3), str(run.result["timings"].get("evaluate", 0.0))
    content |= dict(zip(_PASSING, passing, strict=True))
    write_json(run.path / "results.json", _finite(plain(content)))
    _write_scores(run, task, result)
    whole = result.documents == result.original and not result.first.failures
    _write_leaderboard(run, task.leaderboard(result.summary) if whole else None)


def open_evaluation(path: str | Path) -> RunFolder:
    """The run in a folder, to be read; raises DataError unless it is an evaluation that came to its end."""
    run = RunFolder.open(path, "evaluate")
    if "files" not in run.result["results"]:
        raise DataError(f"{run.path} holds no finished evaluation; call evaluate again to finish it")
    return run


def is_whole(run: RunFolder) -> bool:
    """Whether the files of a finished run are those that it wrote."""
    try:
        return all(checked_file(run, name) for name in CHECKED_FILES)
    except DataError:
        return False


def content_digest(file: Path) -> str:
    """SHA-256 of a file of a run; of results.json, without what says when it was: equal runs have equal digests."""
    if file.suffix != ".json":
        return hash_file(file)
    content = read_json(file, "results of an evaluation")
    kept = (
        {key: value for key, value in content.items() if key not in _PASSING} if isinstance(content, dict) else content
    )
    return hash_json(kept)


def checked_file(run: RunFolder, name: str) -> Path:
    """A file of a finished run; raises DataError when it is not the one that the run wrote."""
    file = run.path / name
    try:
        found = content_digest(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if found != run.result["results"]["files"][name]:
        again = "rescore writes it again" if name != "documents.jsonl" else "put the run's own file back"
        raise DataError(f"{file} is not what the run wrote: it was cut or changed since; {again}")
    return file


def read_scores(run: RunFolder, mode: str) -> dict[str, dict[str, str]]:
    """The rows of a run's ``scores.csv`` in one mode by document id; raises DataError as :func:`checked_file` does."""
    rows = (row for _, row in read_records(checked_file(run, "scores.csv")) if row["mode"] == mode)
    return {row["id"]: row for row in ({key: csv_text(cell) for key, cell in each.items()} for each in rows)}


def _finite(value: Any) -> Any:
    """Plain data with None for what JSON has no number for, such as a ratio that is not defined."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _harness(run: RunFolder, task: Task, result: EvaluationResult) -> dict[str, Any]:
    """What lm-eval's own readers look for: a task for the whole and one for every group."""
    name, inputs = result.task, run.result["inputs"]
    results: dict[str, dict[str, Any]] = {}
    named = _short_names([metric for found in result.modes.values() for metric in found.summary.metrics])
    for mode, found in result.modes.items():
        for metric in found.summary.metrics:
            entry = f"{name}_{named[metric.part]}" if metric.part else name
            line = results.setdefault(entry, {"alias": f" - {metric.group}" if metric.group else name, "samples": 0})
            line["samples"] = max(line["samples"], metric.n)
            line[f"{metric.name},{mode}"] = metric.value
            line[f"{metric.name}_stderr,{mode}"] = _standard_error(metric)
    parts = [entry for entry in results if entry != name]
    config = {
        "task": name,
        "dataset_path": run.result["results"]["data"]["source"],
        "output_type": "generate_until",
        "num_fewshot": 0,
        "generation_kwargs": {"do_sample": False, **_told(inputs, ("max_new_tokens", "stop"))},
        "metadata": {"version": str(task.version)},
    }
    better = {metric.name: metric.higher_is_better for metric in result.summary.metrics}
    return {
        "results": results,
        "groups": {name: results[name]} if parts and name in results else {},
        "group_subtasks": {name: parts} if parts else {},
        "configs": {name: config},
        "versions": {name: str(task.version)},
        "n-shot": {name: 0},
        "higher_is_better": {name: better},
        "n-samples": {name: {"original": result.original, "effective": result.documents}},
        "config": _run_config(run),
    }


def _short_names(metrics: Sequence[Metric]) -> dict[str, str]:
    """Parts of the data to their names in the harness's form: the group alone where no other grouping has it."""
    parts = {metric.part: metric for metric in metrics}
    count = Counter(metric.group for metric in parts.values())
    return {part: one.group if count[one.group] == 1 else f"{one.grouping}_{one.group}" for part, one in parts.items()}


def _run_config(run: RunFolder) -> dict[str, Any]:
    about, inputs = run.result["results"]["about"], run.result["inputs"]
    return {
        "model": inputs.get("backend", "transformers"),
        "model_args": _told(about, ("class", "name", "revision")) | _told(inputs, ("dtype", "methods")),
        "model_sha": inputs.get("model"),
        "random_seed": run.result["seed"],
    }


def _told(source: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: source[name] for name in names if source.get(name) is not None}


def _standard_error(metric: Metric) -> float | str:
    if metric.value is None or metric.low is None or metric.high is None or metric.n < 2:
        return "N/A"
    if metric.interval == "wilson" and metric.scale == 1:
        return math.sqrt(metric.value * (1 - metric.value) / (metric.n - 1))
    return (metric.high - metric.low) / (2 * _Z) if metric.interval == "normal" else "N/A"


def _own(run: RunFolder, task: Task, result: EvaluationResult) -> dict[str, Any]:
    """All metrics of all modes with n and interval, and what to know about the responses behind them."""
    return {
        "task": result.task,
        "version": str(task.version),
        "fingerprint": task.fingerprint(),
        "options": plain(task.options()),
        "data": run.result["results"]["data"],
        "inputs": run.result["inputs"],
        "reasoning": run.result["results"]["reasoning"],
        "documents": result.documents,
        "answered": result.answered,
        "cost": dict(result.cost),
        "modes": {mode: {"scoring": plain(task.scoring(mode)), **_mode(found)} for mode, found in result.modes.items()},
    }


def _mode(found: ModeResult) -> dict[str, Any]:
    return {
        "metrics": [dataclasses.asdict(metric) for metric in found.summary.metrics],
        "counts": found.counts(),
        "failures": dict(found.failures),
        "extra": plain(found.summary.extra),
    }


def _write_scores(run: RunFolder, task: Task, result: EvaluationResult) -> None:
    # A value is JSON, in which half of a surrogate pair is written as it is escaped.
    with (
        atomic_path(run.path / "scores.csv") as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        documents = (record.document for found in result.modes.values() for record in found.records)
        groupings = list(dict.fromkeys(grouping for document in documents for grouping in document.groups))
        writer.writerow([*COLUMNS, *groupings])
        for mode, found in result.modes.items():
            writer.writerows(_line(task, mode, record, groupings) for record in found.records)


def _line(task: Task, mode: str, record: Record, groupings: Sequence[str]) -> list[Any]:
    document, parsed = record.document, record.parsed
    value = json.dumps(plain(parsed.value), ensure_ascii=False)
    score = repr(record.score)  # so that it reads back as the same number
    cells = (document.id, task.unit(document), mode, score, value, parsed.rule)
    groups = (csv_cell(document.groups.get(grouping, "")) for grouping in groupings)
    return [*map(csv_cell, cells), int(parsed.fallback), int(record.truncated), *groups]


def _write_leaderboard(run: RunFolder, row: Mapping[str, Any] | None) -> None:
    """Two files with one row; without one, as of a part of the data, those of an earlier scoring go."""
    files = [run.path / f"leaderboard.{ending}" for ending in ("json", "csv")]
    if row is None:
        for old in files:
            old.unlink(missing_ok=True)
        return
    write_json(files[0], _finite(plain(row)))
    with atomic_path(files[1]) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([map(csv_cell, row), map(csv_cell, row.values())])
