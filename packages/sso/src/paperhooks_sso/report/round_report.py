"""The report of one round: prompts to pairs, training, probes, and some pairs to read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import counted
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table

from paperhooks_sso.data import HARMFUL, read_lines
from paperhooks_sso.probes import PROBES, weights_of
from paperhooks_sso.report.curves import funnel_figure, step_figure, weight_figure

__all__ = ["LOG_PROBABILITIES", "MARGINS", "groups_named", "still_to_come", "write_round"]

#: What lines are called, to what they are logged as.
MARGINS: Final = {"plain": "plain_margin", "good": "good_margin", "bad": "bad_margin"}
LOG_PROBABILITIES: Final = {"good answers": "plain_chosen", "bad answers": "plain_rejected"}
#: What a round comes to, by the stage that leaves it.
_STEPS: Final = {"samples": "answers", "pairs": "pairs", "train": "training", "after": "probes after it"}
_SHARES: Final = ("cut", "same", "leaking")
#: Pairs that are shown, and characters of each text.
_SHOWN: Final = 6
_CHARACTERS: Final = 280
_PROBES_SAID: Final = (
    "chosen_gap and rejected_gap: by how much likelier the good (chosen) and the bad (rejected) answer is under the "
    "principle that it was sampled for than under the other, in nats a token; likelihoods: exp of the mean "
    "log-probability of a token without a principle, between 0 and 1."
)


def write_round(run: RunFolder) -> Path:
    """Write figures and ``report.html`` into the folder of a round; returns the report."""
    results = run.result["results"]
    blocks: list[Block] = [*_alarms(results), Paragraph(HARMFUL, "note"), *_numbers(run)]
    if rest := still_to_come(results):
        blocks.append(Paragraph(f"Still to come: {rest}."))
    if "pairs" in results:
        blocks += _pairs(run, results["pairs"])
    if "train" in results:
        blocks += _training(run, results["train"])
    if "before" in results:
        blocks += _probes(run, results)
    if "pairs" in results:
        blocks += _examples(run.path)
    return run.report(f"Self-Steering Optimization: {run.path.name}", blocks)


def groups_named(names: Sequence[str]) -> str:
    """Groups in words: "the good and bad groups"."""
    if not names:
        return "no group"
    *others, last = names
    return f"the {', '.join(others)} and {last} groups" if others else f"the {last} group"


def still_to_come(results: Collection[str]) -> str:
    """What a round has not come to, in words; empty where it is done.

    :param results: the stages that are done.
    """
    # A round that trains on a file samples nothing, so what counts is what stands behind the last stage.
    last = max((at for at, stage in enumerate(_STEPS) if stage in results), default=-1)
    *others, rest = [*_STEPS.values()][last + 1 :] or [""]
    return f"{', '.join(others)} and {rest}" if others else rest


def _alarms(results: Mapping[str, Any]) -> Iterator[Block]:
    for alarm in results.get("alarms", ()):
        yield Paragraph(f"Alarm: {alarm['sentence']}.", "note")


def _numbers(run: RunFolder) -> list[Block]:
    results, timings = run.result["results"], run.result["timings"]
    said = {
        "prompts": ("prompts", "tokens"), "samples": ("replies", "tokens"), "pairs": ("kept", None),
        "references": ("pairs", None), "before": ("pairs", None), "train": ("steps", None), "after": ("pairs", None),
    }  # fmt: skip
    rows = [
        (stage, results[stage].get(count, ""), results[stage].get(tokens, "") if tokens else "", timings.get(stage, ""))
        for stage, (count, tokens) in said.items()
        if stage in results
    ]
    return [Heading("Stages"), Table(("stage", "number", "tokens", "seconds"), rows)]


def _pairs(run: RunFolder, pairs: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [Heading("Pairs")]
    if "prompts" in pairs:
        run.figure("funnel", funnel_figure(pairs))
        blocks.append(Figure("funnel", f"{pairs['kept']} of {counted(pairs['prompts'], 'prompt')} gave a pair"))
    else:
        blocks.append(Paragraph(f"{counted(pairs['kept'], 'pair')} of a file; how they were chosen is not known."))
    tables = {
        ("share of prompts with answers that are", ""): [(n, f"{pairs[n]:.1%}") for n in _SHARES if n in pairs],
        ("answers", "mean tokens"): list(pairs["lengths"].items()),
        ("principles from", "number"): list(pairs["sources"].items()),
    }
    return [*blocks, *(Table(header, rows) for header, rows in tables.items() if rows)]


def _training(run: RunFolder, train: Mapping[str, Any]) -> list[Block]:
    steps = [read_lines(run.path / "steps.jsonl", "steps")]
    margins = {name: key for name, key in MARGINS.items() if key in steps[0][0]} if steps[0] else {}
    means = {name: key for name, key in LOG_PROBABILITIES.items() if key in steps[0][0]} if steps[0] else {}
    title = f"Margins of rewards: {groups_named([*margins])}"
    run.figure("margins", step_figure(steps, margins, title, "reward"))
    blocks: list[Block] = [
        Heading("Training"),
        Paragraph(f"{counted(train['steps'], 'step')}: one epoch."),
        Figure("margins", f"Margins of rewards over training: {', '.join(margins)}"),
    ]
    if means:
        run.figure(
            "log-probabilities", step_figure(steps, means, "Log-probability under the plain prompt", "nats a token")
        )
        blocks.append(Figure("log-probabilities", "Mean log-probability of good and bad answers over training"))
    run.figure("loss", step_figure(steps, {"loss": "loss"}, "Loss", "loss"))
    return [*blocks, Figure("loss", "Loss over training")]


def _probes(run: RunFolder, results: Mapping[str, Any]) -> list[Block]:
    there = [name for name in ("before", "after") if name in results]
    values = {name: results[name]["probes"] for name in there}
    rows = [(probe, *(values[name].get(probe, "") for name in there)) for probe in PROBES if probe in values["before"]]
    means = {name: read_lines(run.path / f"{name}.jsonl", "probes") for name in there}
    weights = {f"{name} training": weights_of(own, results.get("alpha", 0.66)) for name, own in means.items()}
    run.figure("weights", weight_figure(weights))
    return [
        Heading("Probes"),
        Paragraph(
            "Mean log-probabilities a token, in nats, of the same pairs under the model that is trained: margins of "
            "the groups, how far principles tell answers apart, and how likely answers are without one."
        ),
        Table(("probe", *(f"{name} training" for name in there)), rows),
        Paragraph(_PROBES_SAID),
        Figure("weights", f"Histograms of W: {', '.join(weights)}", "W of every pair; dashed: the mean"),
    ]


def _examples(folder: Path) -> list[Block]:
    records = read_lines(folder / "pairs.jsonl")[:_SHOWN]
    rows = [
        (record["id"], ", ".join(record["features"]), *map(_short, (record["prompt"][-1]["content"], record["chosen"],
                                                                   record["rejected"])))
        for record in records
    ]  # fmt: skip
    return [Heading("Pairs to read"), Table(("id", "features", "prompt", "good answer", "bad answer"), rows)]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} ..."
