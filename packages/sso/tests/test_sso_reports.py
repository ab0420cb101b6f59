"""Reports of rounds and loops: figures and tables of what there is, also where there is little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loop_models import PROMPTS, quick, tokenizer
from paperhooks.reports import RunFolder
from paperhooks_sso import AlarmLimits, align
from paperhooks_sso.data import ChatFormat, read_lines, write_lines
from paperhooks_sso.loop import train_file
from paperhooks_sso.probes import PROBES
from paperhooks_sso.report import write_overview, write_round
from paperhooks_sso.report.curves import length_figure, likelihood_figure, probe_figure, step_figure, weight_figure
from paperhooks_sso.report.round_report import LOG_PROBABILITIES, MARGINS
from sso_models import tiny

pytest.importorskip("matplotlib")


def test_a_loop_leaves_a_report_an_iteration_and_one_over_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    align(tiny(), PROMPTS[:4], out=out, iterations=2, **quick(tmp_path, report=True))
    for name in ("iteration-1", "iteration-2"):
        text = (out / name / "report.md").read_text()
        assert "4 of 4 prompts gave a pair" in text
        assert "bad on purpose" in text
        assert "What is 0?" in text
        for figure in ("funnel", "margins", "log-probabilities", "loss", "weights"):
            assert f"{figure}.svg" in text
            assert (out / name / f"{figure}.png").stat().st_size > 2000
    text = (out / "report.md").read_text()
    assert "| iteration-2 |" in text
    for figure in ("margins", "log-probabilities", "probes", "on-policy", "lengths", "weights"):
        assert f"{figure}.svg" in text
    assert "<script" not in (out / "report.html").read_text()


def test_a_loop_that_stopped_reports_why(tmp_path: Path) -> None:
    strict = AlarmLimits(min_pairs=9)
    found = align(tiny(), PROMPTS[:4], out=tmp_path / "out", **quick(tmp_path, report=True, limits=strict))
    text = (tmp_path / "out" / "iteration-1" / "report.md").read_text()
    assert f"Alarm: {found.stopped.split(';')[0]}" in text
    assert "## Training" not in text


def test_version_2_and_losses_without_a_reference_report_what_they_have(tmp_path: Path) -> None:
    options = quick(tmp_path, report=True, preset="v2", objective={"loss": "simpo", "beta": 2.0})
    align(tiny(), PROMPTS[:4], out=tmp_path / "out", iterations=1, **options)
    generator, policy = (
        (tmp_path / "out" / n / "report.md").read_text() for n in ("iteration-1-generator", "iteration-1")
    )
    assert "Margins of rewards over training: good, bad" in generator
    assert "Margins of rewards over training: plain" in policy
    assert not (tmp_path / "out" / "iteration-1" / "reference.jsonl").exists()
    assert "| iteration-1-generator |" in (tmp_path / "out" / "report.md").read_text()
    overall = (tmp_path / "out" / "report.md").read_text()
    assert "Margins of rewards, generators in training: the good and bad groups" in overall
    assert "Margins of rewards, policy in training: the plain group" in overall
    assert (tmp_path / "out" / "generator-margins.png").stat().st_size > 2000
    assert "1 iteration of v2." in overall
    assert "Margins of the plain and good groups before" in overall  # without yo nothing is known of the bad one


def test_training_on_a_file_reports_what_the_records_tell(tmp_path: Path) -> None:
    align(tiny(), PROMPTS[:4], out=tmp_path / "out", until="pairs", **quick(tmp_path, report=False))
    told = RunFolder.open(tmp_path / "out" / "iteration-1").result["results"]["pairs"]
    records = read_lines(tmp_path / "out" / "iteration-1" / "pairs.jsonl")

    def report_of(name: str, changed: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        write_lines(tmp_path / f"{name}.jsonl", changed)
        train_file(tiny(), tmp_path / f"{name}.jsonl", tokenizer=tokenizer(), out=tmp_path / name, batch=4)
        return RunFolder.open(tmp_path / name).result["results"]["pairs"], (tmp_path / name / "report.md").read_text()

    found, text = report_of("whole", records)
    assert {name: found[name] for name in ("cut", "lengths", "sources")} == {
        name: told[name] for name in ("cut", "lengths", "sources")
    }
    assert "4 pairs of a file" in text
    assert "| cut | 100.0% |" in text
    assert "leaking" not in text
    bare = [{name: value for name, value in each.items() if name not in ("source", "finish")} for each in records]
    found, text = report_of("bare", bare)
    assert "cut" not in found
    assert "share of prompts" not in text
    assert "principles from" not in text


def test_the_end_of_a_turn_is_no_token_of_an_answer(tmp_path: Path) -> None:
    end = ChatFormat(tokenizer()).end_of_turn
    align(tiny(), PROMPTS[:2], out=tmp_path / "out", until="pairs", **quick(tmp_path, report=False))
    first, second = read_lines(tmp_path / "out" / "iteration-1" / "pairs.jsonl")
    ended = {"chosen": "eos", "rejected": "eos", "ordinary": "length"}
    changed = {"chosen_ids": [7, 8, 9, *end], "rejected_ids": [7, 8, 9, 10], "ordinary_ids": [7, 8], "finish": ended}
    write_lines(tmp_path / "pairs.jsonl", [{**first, **changed}, {**second, **changed, "finish": None}])
    train_file(tiny(), tmp_path / "pairs.jsonl", tokenizer=tokenizer(), out=tmp_path / "tr", batch=2, report=False)
    found = RunFolder.open(tmp_path / "tr").result["results"]["pairs"]
    # The bad answer ended with another token than the template's, which only a record that says so can tell.
    assert found["lengths"] == {"chosen": 3, "rejected": 3.5, "ordinary": 2}
    assert "cut" not in found  # known of one of two


def test_a_folder_with_samples_says_what_is_still_to_come(tmp_path: Path) -> None:
    align(tiny(), PROMPTS[:4], out=tmp_path / "out", until="samples", **quick(tmp_path))
    write_overview(RunFolder.open(tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "No iteration of v1-ipo is done yet." in text
    assert "| round | prompts | answers |" in text
    assert "| iteration-1 | 4 | 12 |" in text
    assert "Still to come in iteration-1: pairs, training and probes after it." in text
    write_round(RunFolder.open(tmp_path / "out" / "iteration-1"))
    assert "Still to come: pairs, training" in (tmp_path / "out" / "iteration-1" / "report.md").read_text()


def test_a_group_and_an_answer_have_one_colour_everywhere() -> None:
    probes = dict.fromkeys(PROBES, 0.5)
    figures = [
        step_figure([[{"plain_margin": 1.0, "good_margin": 2.0}]], MARGINS, "", ""),
        step_figure([[{"good_margin": 2.0, "bad_margin": 2.0}]], MARGINS, "", ""),
        step_figure([[{"plain_chosen": 2.0, "plain_rejected": 2.0}]], LOG_PROBABILITIES, "", ""),
        probe_figure({1: probes}, {1: probes}, MARGINS),
        likelihood_figure({1: probes}),
        length_figure({1: {"rejected": 3.0, "chosen": 2.0, "ordinary": 4.0}}, 2.0),
    ]
    colours: dict[str, set[str]] = {}
    for figure in figures:
        for handle in figure.axes[0].get_legend().legend_handles:
            colours.setdefault(handle.get_label().removesuffix(" answers"), set()).add(handle.get_color())
    assert set(colours) == {"plain", "good", "bad", "ordinary", "alarm"}
    assert all(len(own) == 1 for own in colours.values())
    assert len(set.union(*colours.values())) == len(colours)


def test_figures_name_only_what_they_draw() -> None:
    found = probe_figure({1: {"plain_margin": 0.1}, 2: {"plain_margin": 0.2}}, {}, MARGINS)
    assert found.axes[0].get_legend_handles_labels()[1] == ["plain"]
    one = step_figure([[{"plain_margin": 1.0}]], MARGINS, "", "")
    assert [text.get_text() for text in one.axes[0].get_legend().get_texts()] == ["plain"]


@pytest.mark.parametrize("iterations", [1, 2, 30])
def test_iterations_are_whole_numbers_and_the_highest_line_has_room(iterations: int) -> None:
    numbers = range(1, iterations + 1)
    figures = [
        likelihood_figure({at: {"chosen_likelihood": 0.25} for at in numbers}),
        length_figure({at: {"chosen": 20.0} for at in numbers}, None),
        probe_figure({at: {"good_margin": 1.0} for at in numbers}, {}, MARGINS),
    ]
    for figure in figures:
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(float(tick).is_integer() for tick in ticks)
    for figure, highest in zip(figures[:2], (0.25, 20.0), strict=True):
        assert figure.axes[0].get_ylim()[0] == 0
        assert figure.axes[0].get_ylim()[1] >= 1.05 * highest


@pytest.mark.parametrize(
    ("values", "most"), [([0.98, 0.985], 0.02), ([0.999], 0.02), ([0.5], 0.02), ([0.52, 0.95], 0.5)]
)
def test_weights_are_shown_where_they_are(values: list[float], most: float) -> None:
    figure = weight_figure({"before": values, "after": [values[0]]})
    first, second = (axes.get_xlim() for axes in figure.axes)
    assert first == second
    low, high = first
    assert 0.5 <= low <= min(values) <= max(values) <= high <= 1
    assert high - low <= most
    assert figure.axes[0].get_title(loc="left") == f"before\nmean {sum(values) / len(values):.3f}"
