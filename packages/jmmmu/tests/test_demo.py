"""The demo, and the figures of reports."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import paperhooks
import pytest
from paperhooks.authoring import DemoContext
from paperhooks.generation import CallableBackend
from paperhooks_evaluation import FigureSpec, Metric, PairedDifference
from paperhooks_jmmmu import Jmmmu, MmmuPaired, compare_languages, make_sample
from paperhooks_jmmmu.figures import domains_figure, letters_figure, subjects_figure

pytest.importorskip("matplotlib")


def test_the_demo_runs_and_reports(tmp_path: Path) -> None:
    pytest.importorskip("paperhooks_testbed")
    from paperhooks_jmmmu.demo import METHODS, run

    lines: list[str] = []
    run(DemoContext(tmp_path, lines.append, quick=True))
    scores = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["results"]["scores"]
    assert set(scores) - {*METHODS} == {"own", "blank", "knows all"}
    assert scores["own"]["official-wrong"] == scores["blank"]["official-wrong"] == 0
    assert scores["own"]["official-per-question"] == scores["blank"]["official-per-question"] > 0
    assert 0 < scores["knows all"]["official-wrong"] < scores["knows all"]["robust-wrong"] == 1
    changed = next(line for line in lines if line.startswith("blank: ") and "replies differ" in line)
    assert int(changed.split()[1]) > 5, "the model sees its pictures"
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "own-blank" / "report.html").is_file()
    page = (tmp_path / "known" / "report.md").read_text(encoding="utf-8")
    unread = re.findall(r"\| 答えは「(.)」です。 \|  \| (.) \| (.) \|", page)
    assert unread, "replies that the parsers read as different letters are shown"
    assert {len(set(letters)) for letters in unread} == {1}


def drawn(spec: FigureSpec) -> tuple[list[str], list[str]]:
    """The labels of the ticks upwards, and those of the legend; the figure is rendered, too."""
    figure = spec.draw()
    figure.savefig(io.BytesIO(), format="png")
    (axes,) = figure.axes
    legend = axes.get_legend()
    return (
        [label.get_text() for label in axes.get_yticklabels()],
        [] if legend is None else [text.get_text() for text in legend.get_texts()],
    )


def accuracy(subject: str, value: float | None) -> Metric:
    return Metric("jmmmu_acc", value, 30, 0.1, 0.9, subject, "wilson", grouping="subject")


def test_subjects_stand_by_subset() -> None:
    metrics = [accuracy("Accounting", 0.5), accuracy("Japanese_Art", 1.0), accuracy("Music", None)]
    labels, legend = drawn(subjects_figure(metrics, {"Music": 0.25}))
    assert labels == ["Japanese Art (30)", "Music (30)", "Accounting (30)"]
    assert set(legend) == {"culture-agnostic", "culture-specific", "random letters"}
    assert "culture-specific" not in drawn(subjects_figure(metrics[:1], {"Accounting": 0.25}))[1]


def test_letters_and_domains_are_drawn() -> None:
    assert drawn(letters_figure({"A": 3, "B": 0}, {"A": 1, "B": 2}))[1] == ["read", "right"]
    lines = [
        PairedDifference("domain", name, 24, 0.3, b, b - 0.3, -0.1, 0.2, 3, 2, 1.0, 1.0)
        for name, b in (("Science", 0.33), ("Business", 0.3))
    ]
    assert drawn(domains_figure(lines)) == (["Business (24)", "Science (24)"], ["English", "Japanese"])


def test_languages_are_drawn_beside_the_report(tmp_path: Path) -> None:
    runs = []
    for task, kind in ((MmmuPaired(), "english"), (Jmmmu(), "japanese")):
        make_sample(tmp_path / kind, 1, kind=kind)
        backend = CallableBackend(lambda request: "A", name="always A")
        paperhooks.evaluate(
            backend, None, task, data=tmp_path / kind, out=tmp_path / task.name, groups=["subset=CA"], report=False
        )
        runs.append(tmp_path / task.name)
    compare_languages(*runs, out=tmp_path / "language", resamples=50)
    assert (tmp_path / "language" / "languages.svg").is_file()
    assert (tmp_path / "language" / "languages.png").is_file()
