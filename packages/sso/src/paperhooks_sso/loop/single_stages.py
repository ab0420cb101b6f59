"""Stages alone, on files: the filter of a file of pairs, and training on one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from paperhooks import DataError
from paperhooks.errors import require
from paperhooks.io import hash_file, local_path
from paperhooks.models import find_tokenizer

from paperhooks_sso.data import (
    ChatFormat,
    FilterReport,
    answer_means,
    encoded_prompt,
    filter_pairs,
    read_lines,
    write_lines,
)
from paperhooks_sso.loop.options import LoopOptions, Pace
from paperhooks_sso.loop.policy import Policy
from paperhooks_sso.loop.round_folder import RoundFolder
from paperhooks_sso.loop.round_work import RoundWork
from paperhooks_sso.loop.rounds import START, Round
from paperhooks_sso.probes import AlarmLimits
from paperhooks_sso.report import write_round

__all__ = ["filter_file", "train_file"]

_ANSWERS: Final = ("chosen", "rejected", "ordinary")


def filter_file(model: Any, pairs: str | Path, out: str | Path, *, pace: Pace | None = None) -> FilterReport:
    """Write those pairs of a file that the filter keeps (section 4.1, step 6) to another one; returns its report.

    :param model: the one that has sampled them.
    """
    records = read_lines(_pairs_file(pairs))
    means = answer_means(model, records, end=False, batch_tokens=(pace or Pace()).batch_tokens)
    kept, report = filter_pairs(means)
    write_lines(local_path(out), (records[at] for at in kept))
    return report


def train_file(
    model: Any,
    pairs: str | Path,
    *,
    tokenizer: Any = None,
    out: str | Path,
    pace: Pace | None = None,
    limits: AlarmLimits | None = None,
    report: bool = True,
    **options: Any,
) -> Any:
    """One epoch over the pairs of a file, compared with the given model as it is; called again, it goes on.

    The folder gets the columns of the reference, the checkpoint, probes before and after, and a report. With the
    preset "v2" it is the generator that is trained.

    :param model: stays as it is. :param options: see :class:`LoopOptions`, of which those for training count.
    :return: a trained copy of the model. :raises DataError: no pairs, or a folder of other pairs, model or options.
    """
    file, folder = _pairs_file(pairs), local_path(out)
    chosen = LoopOptions(**options)
    if report:
        require("matplotlib", "paperhooks-sso[plots]", "to draw the figures of reports; report=False does without")
    records = read_lines(file)
    first: dict[str, int] = {}
    for at, record in enumerate(records):
        pair = encoded_prompt(record, f"{file}, record {at}")
        if pair.id in first:
            raise DataError(
                f"{file}, record {at} has the id {pair.id!r} of record {first[pair.id]}; give each pair an id of its "
                "own, such as with the name of its round before it"
            )
        first[pair.id] = at
    if not records:
        raise DataError(f"{file} holds no pair, so there is nothing to train on")
    chat = ChatFormat(tokenizer or find_tokenizer(model), chosen.chat_options, chosen.template)
    with RoundFolder(folder) as held:
        policy = Policy(model, folder.parent)
        policy.check_trained()
        work = RoundWork(policy, chat, chosen, pace or Pace(), limits or AlarmLimits(gap_kept=None, margin_fall=None))
        each = Round(folder.name, 1, START, START, chosen.methods()[0])
        inputs = {**work.inputs(each), "prompts": hash_file(file)}
        held.start(inputs, chosen.seed)
        work.stage(held, "pairs", lambda: _taken(held, records, chat.end_of_turn))
        alarms = work.train(each, held)
        held.run.record(alarms=[asdict(alarm) for alarm in alarms], alpha=each.method.alpha)
        if report:
            write_round(held.run)
        held.run.finish()
        return policy.put(each.name)


def _taken(folder: RoundFolder, records: list[dict[str, Any]], end: Sequence[int]) -> dict[str, Any]:
    """The pairs as a stage of this folder, with a report of what the records tell: of prompts that gave no pair, and of
    shares that only those who sampled know, there is nothing in it.

    :param end: ids of the end of a turn, which are not counted.
    """
    write_lines(folder.file("pairs"), records)
    lengths = {name: [length for each in records if (length := _length(each, name, end))] for name in _ANSWERS}
    finish = [own for each in records if (own := _finish(each))]
    # Of some records only it would be a share of others than the pairs.
    known = len(finish) == len(records)
    return {
        "kept": len(records),
        **({"cut": fmean("length" in each.values() for each in finish)} if known else {}),
        "lengths": {name: fmean(own) for name, own in lengths.items() if own},
        "sources": dict(Counter(source for each in records for source in _listed(each.get("source")))),
    }


def _length(record: Mapping[str, Any], name: str, end: Sequence[int]) -> int:
    """Tokens of an answer without the end of its turn; 0 where there is none."""
    ids, finish = record.get(f"{name}_ids") or (), _finish(record).get(name)
    if finish == "length":
        return len(ids)
    if tuple(ids[-len(end) :]) == tuple(end):
        return len(ids) - len(end)
    # A model may end its turn with another token than its template does.
    return len(ids) - 1 if finish == "eos" and ids else len(ids)


def _finish(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """How answers ended, by name; of files of another hand perhaps nothing."""
    found = record.get("finish")
    return found if isinstance(found, Mapping) else {}


def _listed(value: Any) -> list[str]:
    return list(map(str, value)) if isinstance(value, list) else []


def _pairs_file(path: str | Path) -> Path:
    """A file of pairs, or the one in the folder of a round."""
    found = local_path(path)
    return found / "pairs.jsonl" if found.is_dir() else found
