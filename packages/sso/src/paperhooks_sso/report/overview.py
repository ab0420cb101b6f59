"""The report of a whole loop: margins, log-probabilities, on-policy-ness, lengths and W over all iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

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
from paperhooks_sso.report.round_report import LOG_PROBABILITIES, MARGINS

__all__ = ["write_overview"]

_HEADER: Final = ("round", "prompts", "pairs", "steps", "loss", "good tokens", "good margin", "bad margin")


def write_overview(run: RunFolder) -> Path:
    """Write figures and ``report.html`` into the folder of a loop; returns the report."""
    results = run.result["results"]
    rounds = {name: RunFolder.open(run.path / name) for name in results.get("rounds", {})}
    policies = {name: each for name, each in rounds.items() if name.removeprefix("iteration-").isdigit()}
    blocks: list[Block] = [Paragraph(f"Alarm: {alarm['sentence']}.", "note") for alarm in results.get("alarms", ())]
    done, preset = results.get("iterations", 0), run.result["inputs"]["preset"]
    blocks += [
        Paragraph(f"{done} iterations of {preset}. {HARMFUL}"),
        Heading("Rounds"),
        Table(
            ("round", "prompts", "pairs", "steps", "loss", "good tokens", "good margin", "bad margin"), _rows(rounds)
        ),
        *_over_training(run, policies),
        *_over_iterations(run, policies),
    ]
    return run.report("Self-Steering Optimization", blocks)


def _rows(rounds: dict[str, RunFolder]) -> list[tuple[Any, ...]]:
    rows = []
    for name, each in rounds.items():
        found = each.result["results"]
        pairs, train = found.get("pairs", {}), found.get("train", {})
        probes = found.get("after", found.get("before", {})).get("probes", {})
        told = (pairs.get("prompts"), pairs.get("kept"), train.get("steps"), train.get("loss"))
        more = (pairs.get("lengths", {}).get("chosen"), probes.get("good_margin"), probes.get("bad_margin"))
        rows.append((name, *("" if value is None else value for value in (*told, *more))))
    return rows


def _over_training(run: RunFolder, policies: dict[str, RunFolder]) -> list[Block]:
    """Curves of all iterations behind one another."""
    files = [each.path / "steps.jsonl" for each in policies.values()]
    steps = [read_lines(file, "steps") for file in files if file.is_file()]
    if not any(steps):
        return []
    blocks: list[Block] = [Heading("Over training")]
    drawings = {
        "margins": (MARGINS, "Margins of the three groups", "reward"),
        "log-probabilities": (LOG_PROBABILITIES, "Log-probability under the plain prompt", "nats a token"),
    }
    for name, (series, title, y) in drawings.items():
        there = {line: key for line, key in series.items() if any(key in step for own in steps for step in own)}
        if there:
            run.figure(name, step_figure(steps, there, title, y))
            blocks.append(Figure(name, f"{title}, over the steps of all iterations: {', '.join(there)}"))
    return blocks


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
    run.figure("probes", probe_figure(before, after))
    run.figure("on-policy", likelihood_figure(before))
    run.figure("lengths", length_figure(lengths, growth))
    run.figure("weights", weight_figure(_weights(policies)))
    return [
        Heading("Over iterations"),
        Figure("probes", "Margins of the three groups before and after the training of each iteration"),
        Figure("on-policy", "Likelihood of a token of fresh answers under the plain prompt, by iteration"),
        Figure("lengths", "Mean tokens of answers by iteration, and where the alarm is set off"),
        Figure("weights", "Histograms of W of fresh pairs, by iteration", "W of fresh pairs, with its mean"),
    ]


def _weights(policies: dict[str, RunFolder]) -> dict[str, list[float]]:
    """W of the pairs of every iteration before its training, and of the last ones after it."""
    found = {}
    for name, each in policies.items():
        for stage in ("before", "after"):
            file, last = each.path / f"{stage}.jsonl", name == list(policies)[-1]
            if file.is_file() and (stage == "before" or last):
                number = name.removeprefix("iteration-")
                label = number if stage == "before" else f"{number}, trained"
                found[label] = weights_of(read_lines(file, "probes"), each.result["results"].get("alpha", 0.66))
    return found
