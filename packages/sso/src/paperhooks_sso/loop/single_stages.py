"""Stages alone, on files: the filter of a file of pairs, and training on one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

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
        work.stage(held, "pairs", lambda: _taken(held, records))
        alarms = work.train(each, held)
        held.run.record(alarms=[asdict(alarm) for alarm in alarms], alpha=each.method.alpha)
        if report:
            write_round(held.run)
        held.run.finish()
        return policy.put(each.name)


def _taken(folder: RoundFolder, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The pairs as a stage of this folder, with the report of a file of which no more is known."""
    write_lines(folder.file("pairs"), records)
    lengths = {
        name: sum(len(record[f"{name}_ids"]) for record in records) / len(records) for name in ("chosen", "rejected")
    }
    return {
        "prompts": len(records), "kept": len(records), "dropped": {}, "cut": 0.0, "same": 0.0, "leaking": 0.0,
        "lengths": lengths, "sources": {}, "filter": None,
    }  # fmt: skip


def _pairs_file(path: str | Path) -> Path:
    """A file of pairs, or the one in the folder of a round."""
    found = local_path(path)
    return found / "pairs.jsonl" if found.is_dir() else found
