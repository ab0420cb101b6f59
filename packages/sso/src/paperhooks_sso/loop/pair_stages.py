"""The stages between sampling and training: pairs, their filter, columns of the reference, probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any, Final

from paperhooks.generation import Response
from paperhooks.io import AppendLog, write_text
from paperhooks.logprobs import reference_columns

from paperhooks_sso.algorithm import GROUPS, Group
from paperhooks_sso.data import (
    HARMFUL,
    ChatFormat,
    GuidedPrompt,
    answer_means,
    encoded_prompt,
    filter_pairs,
    make_pairs,
    read_lines,
    reference_rows,
    write_lines,
)
from paperhooks_sso.loop.options import LoopOptions, Pace
from paperhooks_sso.loop.round_folder import RoundFolder
from paperhooks_sso.probes import probe_values

__all__ = ["probe", "read_pairs", "write_pairs", "write_references"]

#: Pairs whose means are computed and written down together.
_UNIT: Final = 32
_REFERENCES: Final = "reference.jsonl"
_NOTICE: Final = "HARMFUL.txt"


def write_pairs(
    folder: RoundFolder,
    replies: Mapping[str, Response],
    chat: ChatFormat,
    roles: Sequence[str],
    options: LoopOptions,
    total: int,
    score: Callable[[Sequence[Any]], list[dict[str, float]]] | None = None,
) -> dict[str, Any]:
    """Make pairs of replies, filter them where that is wanted, write ``pairs.jsonl``; returns the report.

    :param total: prompts that there were. :param score: the means of some pairs, for the filter.
    """
    prompts = [GuidedPrompt.from_record(each) for each in read_lines(folder.file("prompts"), "prompts")]
    records, report = make_pairs(
        prompts, replies, chat, total=total, roles=roles, keep_cut=options.keep_cut, drop_leaks=options.drop_leaks
    )
    told: dict[str, Any] = {**asdict(report), "filter": None}
    if options.filter and score is not None:
        means = _means(folder.path / "means.jsonl", records, score)
        kept, filtered = filter_pairs(means)
        told["dropped"] = {**told["dropped"], "filtered": len(records) - len(kept)}
        records = [records[at] for at in kept]
        told |= {"filter": asdict(filtered), "kept": len(records)}
    write_text(folder.path / _NOTICE, f"{HARMFUL}\n")
    write_lines(folder.file("pairs"), records)
    return told


def write_references(
    folder: RoundFolder, model: Any, chat: ChatFormat, pace: Pace, groups: Sequence[Group]
) -> dict[str, Any]:
    """Sums of the reference for the rows of these groups of every pair, in ``reference.jsonl``."""
    pairs = map(encoded_prompt, read_lines(folder.file("pairs")))
    examples = {pair.id: reference_rows(pair, groups) for pair in pairs}
    found = reference_columns(
        model, examples, folder.path / _REFERENCES, template=chat.digest, batch_tokens=pace.batch_tokens,
        progress=pace.progress,
    )  # fmt: skip
    return {"pairs": len(found)}


def read_pairs(folder: RoundFolder, groups: Sequence[Group] = ()) -> list[dict[str, Any]]:
    """The pairs of a round, with the sums of their reference as the column ``reference``: NaN for the rows of other
    groups than these, whose sums were written; without any, no such column."""
    records = read_lines(folder.file("pairs"))
    if not groups:
        return records
    sums = {row["id"]: row["sums"] for row in AppendLog(folder.path / _REFERENCES, ("id", "sums")).read()}
    places = {group: 2 * at for at, group in enumerate(groups)}

    def six(own: Sequence[float]) -> list[float]:
        there = [own[places[group] : places[group] + 2] if group in places else (nan, nan) for group in GROUPS]
        return [value for pair in there for value in pair]

    return [{**record, "reference": six(sums[record["id"]])} for record in records]


def probe(folder: RoundFolder, stage: str, model: Any, pace: Pace) -> dict[str, Any]:
    """Means of the first pairs under a model, in ``before.jsonl`` or ``after.jsonl``; returns probes over them."""
    records = read_lines(folder.file("pairs"))[: pace.probe_pairs]
    means = answer_means(model, records, batch_tokens=pace.batch_tokens)
    rows = [{"id": record["id"], **own} for record, own in zip(records, means, strict=True)]
    write_lines(folder.file(stage), rows)
    return {"pairs": len(rows), "probes": probe_values(means)}


def _means(
    file: Path, records: Sequence[Mapping[str, Any]], score: Callable[[Sequence[Any]], list[dict[str, float]]]
) -> list[dict[str, float]]:
    """Means of all pairs, of which those that are in the file are not computed again."""
    log = AppendLog(file, ("id", "means"))
    known = {row["id"]: row["means"] for row in log.read()}
    try:
        for unit in _units(records):
            if any(each["id"] not in known for each in unit):
                made = {each["id"]: own for each, own in zip(unit, score(unit), strict=True)}
                log.append({"id": key, "means": own} for key, own in made.items() if key not in known)
                known |= {key: own for key, own in made.items() if key not in known}
    finally:
        log.close()
    return [known[each["id"]] for each in records]


def _units(records: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    rest = iter(records)
    while unit := list(islice(rest, _UNIT)):
        yield unit
