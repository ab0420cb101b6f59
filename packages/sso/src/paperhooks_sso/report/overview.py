"""The report of a whole loop: margins, log-probabilities, on-policy-ness, lengths and W over all iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import counted
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table

from paperhooks_sso.data import HARMFUL, read_lines
from paperhooks_sso.probes import weights_of
from paperhooks_sso.report.curves import (
    length_figure,
    likelihood_figure,
    probe_figure,
    step_figure,
    weight_figure,
)
from paperhooks_sso.report.round_report import LOG_PROBABILITIES, MARGINS, groups_named, still_to_come

__all__ = ["write_overview"]

_HEADER: Final = (
    "round", "prompts", "answers", "pairs", "steps", "loss", "good tokens", "good margin, nats a token",
    "bad margin, nats a token",
)  # fmt: skip
_MARGINS_SAID: Final = (
    "Good and bad margin: the mean log-probability a token of the preferred answer minus that of the other one, in "
    "nats, after training, or before it where there is none yet. The curves over training are of another margin, that "
    "of rewards: beta times a log-probability, less the reference's where the loss has one."
)


def write_overview(run: RunFolder) -> Path:
    """Write figures and ``report.html`` into the folder of a loop; returns the report."""
    results = run.result["results"]
    rounds = _rounds(run.path)
    policies = {name: each for name, each in rounds.items() if _is_policy(name)}
    generators = {name: each for name, each in rounds.items() if not _is_policy(name)}
    blocks: list[Block] = [Paragraph(f"Alarm: {alarm['sentence']}.", "note") for alarm in results.get("alarms", ())]
    done = sum("train" in each.result["results"] for each in policies.values())
    said = (
        f"{counted(done, 'iteration')} of {run.result['inputs']['preset']}"
        if done
        else (f"No iteration of {run.result['inputs']['preset']} is done yet")
    )
    blocks += [
        Paragraph(f"{said}. {HARMFUL}"),
        *_table(rounds),
        *_over_training(run, policies, generators),
        *_over_iterations(run, policies),
    ]
    return run.report("Self-Steering Optimization", blocks)


def _rounds(folder: Path) -> dict[str, RunFolder]:
    """The rounds that are there, in order, also those of a loop that was killed: a generator before its policy."""
    found = {file.parent.name: file.parent for file in folder.glob("iteration-*/result.json")}
    numbers = {name: name.removeprefix("iteration-").partition("-") for name in found}
    names = [name for name, (number, _, _) in numbers.items() if number.isdigit()]
    names.sort(key=lambda name: (int(numbers[name][0]), _is_policy(name)))
    return {name: RunFolder.open(found[name]) for name in names}


def _is_policy(name: str) -> bool:
    return name.removeprefix("iteration-").isdigit()


def _table(rounds: dict[str, RunFolder]) -> list[Block]:
    """A row for every round, without columns that none has anything in; what they have not come to."""
    rows = _rows(rounds)
    if not rows:
        return [Paragraph("There is no round yet.")]
    there = [at for at in range(len(_HEADER)) if any(row[at] != "" for row in rows)]
    table = Table([_HEADER[at] for at in there], [[row[at] for at in there] for row in rows])
    margins = [Paragraph(_MARGINS_SAID)] if any("margin" in _HEADER[at] for at in there) else []
    rest = [
        f"Still to come in {name}: {said}."
        for name, each in rounds.items()
        if (said := still_to_come(each.result["results"]))
    ]
    return [Heading("Rounds"), table, *margins, *map(Paragraph, rest)]


def _rows(rounds: dict[str, RunFolder]) -> list[tuple[Any, ...]]:
    rows = []
    for name, each in rounds.items():
        found = each.result["results"]
        pairs, train = found.get("pairs", {}), found.get("train", {})
        probes = found.get("after", found.get("before", {})).get("probes", {})
        asked, answers = found.get("prompts", {}).get("prompts"), found.get("samples", {}).get("replies")
        told = (pairs.get("prompts", asked), answers, pairs.get("kept"), train.get("steps"), train.get("loss"))
        more = (pairs.get("lengths", {}).get("chosen"), probes.get("good_margin"), probes.get("bad_margin"))
        rows.append((name, *("" if value is None else value for value in (*told, *more))))
    return rows


def _over_training(run: RunFolder, policies: dict[str, RunFolder], generators: dict[str, RunFolder]) -> list[Block]:
    """Curves of all iterations behind one another; of generators, where there are any, in figures of their own."""
    blocks: list[Block] = []
    for prefix, whose, rounds in (("generator-", "generators", generators), ("", "policy", policies)):
        trained = f", {whose} in training" if generators else ""
        files = [each.path / "steps.jsonl" for each in rounds.values()]
        steps = [read_lines(file, "steps") for file in files if file.is_file()]
        margins, means = _there(MARGINS, steps), _there(LOG_PROBABILITIES, steps)
        if margins:
            title = f"Margins of rewards{trained}: {groups_named([*margins])}"
            run.figure(f"{prefix}margins", step_figure(steps, margins, title, "reward"))
            blocks.append(Figure(f"{prefix}margins", f"{title}, over all steps of training"))
        if means:
            title = f"Log-probability under the plain prompt{trained}"
            run.figure(f"{prefix}log-probabilities", step_figure(steps, means, title, "nats a token"))
            blocks.append(
                Figure(f"{prefix}log-probabilities", f"{title}, over all steps of training: {', '.join(means)}")
            )
    return [Heading("Over training"), *blocks] if blocks else []


def _there(series: Mapping[str, str], rounds: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, str]:
    """Of these names of values those that any step, or any round, has."""
    return {name: key for name, key in series.items() if any(key in each for own in rounds for each in own)}


def _over_iterations(run: RunFolder, policies: dict[str, RunFolder]) -> list[Block]:
    results = {int(name.removeprefix("iteration-")): each.result["results"] for name, each in policies.items()}
    before, after = (
        {number: own[stage]["probes"] for number, own in results.items() if stage in own}
        for stage in ("before", "after")
    )
    lengths = {number: own["pairs"]["lengths"] for number, own in results.items() if "pairs" in own}
    if not before:
        return []
    growth = run.result["results"].get("limits", {}).get("length_growth")
    margins = _there(MARGINS, [[*before.values(), *after.values()]])
    run.figure("probes", probe_figure(before, after, margins))
    run.figure("on-policy", likelihood_figure(before))
    run.figure("lengths", length_figure(lengths, growth))
    weights = _weights(policies)
    run.figure("weights", weight_figure(weights))
    return [
        Heading("Over iterations"),
        Figure("probes", f"Margins of {groups_named([*margins])} before and after the training of each iteration"),
        Figure("on-policy", "Likelihood of a token of fresh answers under the plain prompt, by iteration"),
        Figure("lengths", "Mean tokens of answers by iteration, and where the alarm is set off"),
        Figure(
            "weights",
            f"Histograms of W: {'; '.join(weights)}",
            "W of the fresh pairs of every iteration, and of the last ones after training on them; dashed: the mean",
        ),
    ]


def _weights(policies: dict[str, RunFolder]) -> dict[str, list[float]]:
    """W of the pairs of every iteration before its training, and of the last ones after it."""
    found = {}
    for name, each in policies.items():
        for stage in ("before", "after"):
            file, last = each.path / f"{stage}.jsonl", name == list(policies)[-1]
            if file.is_file() and (stage == "before" or last):
                number = name.removeprefix("iteration-")
                label = f"iteration {number}" if stage == "before" else f"{number}, trained"
                found[label] = weights_of(read_lines(file, "probes"), each.result["results"].get("alpha", 0.66))
    return found
