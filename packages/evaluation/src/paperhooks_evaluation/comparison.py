"""Two runs of a task, paired document by document: what changed, by how much, and whether that is more than luck."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paperhooks.errors import DataError, counted, did_you_mean
from paperhooks.io import hash_file, plain, read_json, write_json
from paperhooks.reports import Block, Heading, Paragraph, RunFolder, Table, bootstrap_interval, holm, mcnemar

from paperhooks_evaluation.differences import InputDifference, check_allowed, differences
from paperhooks_evaluation.plan import COLUMNS
from paperhooks_evaluation.report import figure_blocks
from paperhooks_evaluation.result_files import checked_file, open_evaluation, read_scores
from paperhooks_evaluation.samples import document_hash, read_documents
from paperhooks_evaluation.task import FigureSpec, part_text

__all__ = ["Comparison", "PairedDifference", "compare"]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean scores of the documents both runs have, over all (``group`` and ``grouping`` empty) or one group.

    :param delta, low, high: b - a with its 95 % interval: percentile bootstrap over units (see ``Task.unit``), paired.
    :param better, worse: documents with a higher and with a lower score in b.
    :param p: exact McNemar p of ``better`` against ``worse``; for scores other than 0 and 1 this is the sign test.
    :param corrected_p: the same, corrected by Holm's method for the groups of its grouping.
    """

    grouping: str
    group: str
    n: int
    a: float
    b: float
    delta: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    corrected_p: float

    @property
    def part(self) -> str:
        """The part of the data in one text: ``"subset=CA"``, or ``""`` for all."""
        return part_text(self.grouping, self.group)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of :func:`compare`.

    :param overall, groups: paired differences of the scores; groups of every grouping.
    :param metrics: metric, part of the data, value in a, value in b: what the task itself reports, such as F1.
    :param only_a, only_b, changed: documents of one run alone, and documents whose content differs (two languages,
        say); the latter are paired.
    :param differences: every input that the runs do not share.
    """

    task: str
    mode: str
    overall: PairedDifference
    groups: Sequence[PairedDifference]
    metrics: Sequence[tuple[str, str, float | None, float | None]]
    only_a: int
    only_b: int
    changed: int
    differences: Sequence[InputDifference]

    def __str__(self) -> str:
        one = self.overall
        return (
            f"{self.task} ({self.mode}): {one.a:.4g} -> {one.b:.4g}, difference {one.delta:+.4g} "
            f"[{one.low:+.4g}, {one.high:+.4g}], n = {one.n}, {one.better} better, {one.worse} worse, p = {one.p:.3g}"
            f"{f', left out {self.only_a + self.only_b} that one run alone has' * (self.only_a + self.only_b > 0)}"
        )


@dataclass(frozen=True, slots=True)
class _Page:
    """What the caller wants of the report."""

    labels: tuple[str, str]
    figures: Sequence[FigureSpec]


@dataclass(frozen=True, slots=True)
class _Scored:
    """One run: its own block of results.json, its scores in one mode, and the hashes of its documents."""

    path: Path
    block: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, str]]
    hashes: Mapping[str, str]


def compare(
    run_a: str | Path,
    run_b: str | Path,
    metric: str | None = None,
    *,
    mode: str | None = None,
    out: str | Path | None = None,
    allow: Collection[str] = (),
    seed: int = 0,
    resamples: int = 2000,
    labels: tuple[str, str] = ("a", "b"),
    figures: Callable[[Comparison], Sequence[FigureSpec]] | None = None,
) -> Comparison:
    """Compare two finished runs, paired by document.

    Runs that differ in more than what answers (model, methods, backend) are refused unless that is allowed by name: in
    layout, limits, stop strings, the task, its version or options, how responses were scored, or what the documents
    say.

    :param metric: show only this one of the task's metrics; all without it. Intervals and tests are about the
        documents' scores.
    :param mode: the mode in which both were scored; the first one of run a without it.
    :param out: A folder for ``comparison.json`` and a report.
    :param allow: names of inputs that may differ, such as ``["language"]``; the message names them.
    :param seed, resamples: of the bootstrap.
    :param labels: what the report calls the two runs. :param figures: draws figures for it.
    :raises RunsDiffer: runs that differ in what is not allowed.
    :raises DataError: folders without results, and runs without a common document.
    """
    opened_a, opened_b = open_evaluation(run_a), open_evaluation(run_b)
    block_a, block_b = _block(opened_a), _block(opened_b)
    chosen = _chosen_mode(mode, block_a, block_b)
    a = _Scored(opened_a.path, block_a, read_scores(opened_a, chosen), _document_hashes(opened_a))
    b = _Scored(opened_b.path, block_b, read_scores(opened_b, chosen), _document_hashes(opened_b))
    found, known = _differences(opened_a, opened_b, a, b, chosen)
    check_allowed(found, allow, known, f"{run_a} and {run_b}")
    result = _compared(a, b, chosen, metric, found, seed, resamples)
    if out is not None:
        page = _Page(labels, figures(result) if figures else ())
        _write(RunFolder(out), a, b, result, seed, resamples, page)
    return result


def _block(run: RunFolder) -> Mapping[str, Any]:
    block: Mapping[str, Any] = read_json(checked_file(run, "results.json"))["paperhooks"]
    return block


def _chosen_mode(mode: str | None, *blocks: Mapping[str, Any]) -> str:
    common = [str(name) for name in blocks[0]["modes"] if all(name in block["modes"] for block in blocks)]
    if not common:
        raise DataError("the runs were scored in no common mode; score one of them again with paperhooks.rescore")
    if mode is not None and mode not in common:
        raise DataError(f"the runs were not both scored in the mode {mode!r}; {did_you_mean(mode, common)}")
    return common[0] if mode is None else mode


def _differences(
    opened_a: RunFolder, opened_b: RunFolder, a: _Scored, b: _Scored, mode: str
) -> tuple[list[InputDifference], list[str]]:
    """Every input that differs, with how responses were scored and what the documents say; and the names of all."""
    scoring_a, scoring_b = (one.block["modes"][mode]["scoring"] for one in (a, b))
    further = {name: (scoring_a.get(name), scoring_b.get(name)) for name in [*scoring_a, *scoring_b]}
    further["keep_reasoning"] = a.block["reasoning"]["kept"], b.block["reasoning"]["kept"]
    changed = sum(a.hashes.get(key) != b.hashes.get(key) for key in a.rows if key in b.rows)
    further["documents"] = (f"{changed} of the common ids", "say something else") if changed else (0, 0)
    found, known = differences(opened_a.result["inputs"], opened_b.result["inputs"], further)
    seeds = opened_a.result["seed"], opened_b.result["seed"]
    if set(a.rows) != set(b.rows):
        found.append(InputDifference("asked", _asked(a, b), _asked(b, a), comparable=True))
    if seeds[0] != seeds[1]:
        found.append(InputDifference("run_seed", str(seeds[0]), str(seeds[1]), comparable=True))
    return found, [*known, "asked", "run_seed"]


def _asked(one: _Scored, other: _Scored) -> str:
    alone = len(one.rows.keys() - other.rows.keys())
    return f"{counted(len(one.rows), 'document')}{f', {alone} of them alone' if alone else ''}"


def _compared(
    a: _Scored, b: _Scored, mode: str, metric: str | None, found: Sequence[InputDifference], seed: int, resamples: int
) -> Comparison:
    common = [key for key in a.rows if key in b.rows]
    if not common:
        raise DataError(f"{a.path} and {b.path} have no scored document in common{_apart(a, b)}")

    def difference(grouping: str, group: str, keys: Sequence[str]) -> PairedDifference:
        return _difference(grouping, group, [(a.rows[key], b.rows[key]) for key in keys], seed, resamples)

    lines: list[PairedDifference] = []
    columns = [*a.rows[common[0]], *b.rows[common[0]]]
    for grouping in dict.fromkeys(name for name in columns if name not in COLUMNS):
        groups: dict[str, list[str]] = {}
        for key in common:  # one of two languages may know of a grouping that the other has no use for
            groups.setdefault(a.rows[key].get(grouping) or b.rows[key].get(grouping, ""), []).append(key)
        own = [difference(grouping, group, groups[group]) for group in sorted(groups) if group]
        corrected = holm([one.p for one in own])
        lines += [dataclasses.replace(one, corrected_p=p) for one, p in zip(own, corrected, strict=True)]
    return Comparison(
        task=a.block["task"],
        mode=mode,
        overall=difference("", "", common),
        groups=lines,
        metrics=_metrics(a.block, b.block, mode, metric),
        only_a=len(a.rows) - len(common),
        only_b=len(b.rows) - len(common),
        changed=sum(a.hashes.get(key) != b.hashes.get(key) for key in common),
        differences=found,
    )


def _apart(a: _Scored, b: _Scored) -> str:
    """The groups of both runs, of the first grouping of which they share none."""
    for grouping in (name for name in next(iter(a.rows.values()), {}) if name not in COLUMNS):
        of_a, of_b = ({row.get(grouping, "") for row in one.rows.values()} for one in (a, b))
        if of_a.isdisjoint(of_b):
            return f": {grouping} is {', '.join(sorted(of_a))} in the one and {', '.join(sorted(of_b))} in the other"
    return ""


def _document_hashes(run: RunFolder) -> dict[str, str]:
    documents = read_documents(checked_file(run, "documents.jsonl"))
    return {document.id: document_hash(document) for document in documents}


def _difference(
    grouping: str, group: str, pairs: Sequence[tuple[Mapping[str, str], Mapping[str, str]]], seed: int, resamples: int
) -> PairedDifference:
    units: dict[str, tuple[float, float, int]] = {}
    better = worse = 0
    for row_a, row_b in pairs:
        score_a, score_b = float(row_a["score"]), float(row_b["score"])
        better += score_b > score_a
        worse += score_b < score_a
        total_a, total_b, n = units.get(row_a["unit"], (0.0, 0.0, 0))
        units[row_a["unit"]] = total_a + score_a, total_b + score_b, n + 1
    clusters = np.array(list(units.values()))  # [units, 3]: sums of both runs, number of documents
    low, high = bootstrap_interval(_mean_delta, clusters, seed=seed, resamples=resamples)
    n = len(pairs)
    a, b, _ = (float(total) / n for total in clusters.sum(0))
    p = mcnemar(worse, better)
    return PairedDifference(grouping, group, n, a, b, _mean_delta(clusters), low, high, better, worse, p, p)


def _mean_delta(clusters: np.ndarray[Any, Any]) -> float:
    a, b, n = clusters.sum(0)
    return float((b - a) / n)


def _metrics(
    a: Mapping[str, Any], b: Mapping[str, Any], mode: str, metric: str | None
) -> list[tuple[str, str, float | None, float | None]]:
    found_a, found_b = (
        {(one["name"], part_text(one["grouping"], one["group"])): one["value"] for one in lines}
        for lines in (block["modes"][mode]["metrics"] for block in (a, b))
    )
    names = {name for name, _ in found_a}
    if metric is not None and metric not in names:
        raise DataError(f"the runs have no metric {metric!r}; {did_you_mean(metric, names)}")
    return [(*key, found_a[key], found_b.get(key)) for key in found_a if metric in (None, key[0])]


def _write(run: RunFolder, a: _Scored, b: _Scored, result: Comparison, seed: int, resamples: int, page: _Page) -> None:
    inputs = {
        "task": result.task,
        "mode": result.mode,
        "metrics": sorted({name for name, *_ in result.metrics}),
        "scores_a": hash_file(a.path / "scores.csv"),
        "scores_b": hash_file(b.path / "scores.csv"),
        "resamples": resamples,
    }
    content = {"run_a": str(a.path), "run_b": str(b.path), **dataclasses.asdict(result)}
    with run:
        run.start("compare", inputs=inputs, seed=seed)
        write_json(run.path / "comparison.json", content)
        run.record(comparison=plain(content))
        titles = [str(one.block["task"]) for one in (a, b)]
        title = result.task if titles[0] == titles[1] else " and ".join(titles)
        run.report(f"Comparison: {title}", [*_blocks(a, b, result, page.labels), *figure_blocks(run, page.figures)])
        run.finish()


def _blocks(a: _Scored, b: _Scored, result: Comparison, labels: tuple[str, str]) -> list[Block]:
    first, second = labels
    lines = [result.overall, *result.groups]
    rows = [
        (d.part or "all", d.n, d.a, d.b, d.delta, d.low, d.high, d.better, d.worse, d.p, d.corrected_p) for d in lines
    ]
    header = ("group", "n", *labels, f"{second} - {first}", "low", "high", "better", "worse", "p", "corrected p")
    caption = (
        "95 % intervals: paired bootstrap. p: exact McNemar test, two-sided; corrected by Holm's method for the groups "
        "of a grouping."
    )
    metrics = [
        (name, group or "all", x, y, None if x is None or y is None else y - x) for name, group, x, y in result.metrics
    ]
    alone = (
        f"Left out: {counted(result.only_a, 'document')} that only {first} has, {result.only_b} that only {second} has."
    )
    changed = f" {result.changed} of the paired documents differ in content." if result.changed else ""
    inputs = [(one.name, one.a, one.b, "" if one.comparable else "allowed") for one in result.differences]
    told: Table | Paragraph = (
        Table(("input", *labels, ""), inputs) if inputs else Paragraph("All inputs are the same.")
    )  # fmt: skip
    return [
        Paragraph(f"{first}: {a.path}\n{second}: {b.path}\nMode: {result.mode}. {alone}{changed}"),
        Heading("What differs"),
        told,
        Heading("Scores, paired by document"),
        Table(header, rows, caption),
        Heading("Metrics of the task"),
        Table(("metric", "group", *labels, f"{second} - {first}"), metrics),
    ]
