"""Reports of rounds and loops: figures and tables of what there is, also where there is little."""

from __future__ import annotations

from pathlib import Path

import pytest
from loop_models import PROMPTS, quick
from paperhooks_sso import AlarmLimits, align
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
