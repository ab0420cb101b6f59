"""Text of others in tables, reports, shells and terminals: shown as text, and read back as it was."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import paperhooks
import pytest
from paperhooks.generation import CallableBackend
from paperhooks.io import csv_cell, csv_text, printable
from paperhooks.plugins import load_registry
from paperhooks.reports import Code, Paragraph, RunFolder, Table
from paperhooks_evaluation import compare
from test_two_runs import Echo

STEERING = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x07", "\r", "\u202e", "\u2066"]
NASTY = [
    "```\n# heading\n```", "![x](http://host/x.png)", "<script>alert(1)</script>", "<img src=http://host/x>",
    "[x](javascript:alert(1))", "<!-- -->", "| a | b |", "# heading", "&lt;", "a\n---\n",
]  # fmt: skip


@pytest.mark.parametrize("text", ["=1+1", "+1+cmd", "-1+2", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")'])
def test_cells_are_no_formulas_and_are_read_back(text: str) -> None:
    cell = csv_cell(text)
    assert cell[0] not in "=+-@\t\r"
    assert csv_text(cell) == text


@pytest.mark.parametrize("value", ["plain", "'quoted", "3", "-1.5", "1e-3", ""])
def test_other_cells_stay(value: str) -> None:
    assert csv_text(csv_cell(value)) == value


def test_scores_are_harmless_in_a_spreadsheet_and_are_compared_as_they_are(tmp_path: Path) -> None:
    class Named(Echo):
        def documents(self, source: str) -> list[Any]:
            from paperhooks_evaluation import Document

            return [Document(f"={i}+cmd", {"kind": "@group"}, {"n": i}) for i in range(4)]

    for name in ("a", "b"):
        backend = CallableBackend(lambda request: "=cmd()")
        paperhooks.evaluate(backend, None, Named(), data="x", out=tmp_path / name, report=False)
    with (tmp_path / "a" / "scores.csv").open(newline="", encoding="utf-8") as handle:
        cells = [cell for row in csv.reader(handle) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@")]
    assert compare(tmp_path / "a", tmp_path / "b").overall.n == 4


@pytest.mark.parametrize("text", STEERING)
def test_nothing_steers_a_terminal(text: str) -> None:
    shown = printable(f"a{text}b")
    assert text not in shown
    assert shown.startswith("a")
    assert shown.isprintable()


@pytest.mark.parametrize("text", NASTY)
def test_a_report_shows_text_as_text(tmp_path: Path, text: str) -> None:
    with RunFolder(tmp_path) as run:
        run.start("test", inputs={})
        run.report("Nasty " + text, [Paragraph(text), Code(text), Table((text,), [(text,)])])
    page, plain = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    for bad in ("<script>alert", "<img src=http", "<!-- -->"):
        assert bad not in page
    outside = _without_code(plain)
    for bad in ("![x](http", "<script>", "<img src", "[x](javascript:", "<!--"):
        assert bad not in outside
    if text.startswith("```"):
        assert "\n# heading" not in outside


def _without_code(markdown: str) -> str:
    """Markdown outside of fenced code."""
    found, fence = [], ""
    for line in markdown.split("\n"):
        bare = line.strip()
        ticks = bare[: len(bare) - len(bare.lstrip("`"))]
        if not fence and len(ticks) >= 3:
            fence = ticks
        elif fence and bare == fence:
            fence = ""
        elif not fence:
            found.append(line)
    return "\n".join(found)


@pytest.mark.parametrize("name", ["x; rm -rf ~", "x && curl host | sh", "$(touch x)", "`id`", "x\nrm", "../x", "-r x"])
def test_a_registry_cannot_smuggle_commands(tmp_path: Path, name: str) -> None:
    import json

    from paperhooks.errors import PaperhooksError

    for key in ("distribution", "repository"):
        entry = {"name": "x", "distribution": "x", "summary": "A plugin.", "api": 1, key: name}
        lines = ["schema = 1", "[[plugin]]", *(f"{one} = {json.dumps(value)}" for one, value in entry.items())]
        (tmp_path / "registry.toml").write_text("\n".join(lines))
        try:
            entries = load_registry(tmp_path / "registry.toml")
        except PaperhooksError:
            continue
        for one in getattr(entries, "entries", entries):
            command = str(getattr(one, "install", "") or getattr(one, "pip", ""))
            assert name not in command.replace(f"'{name}'", "")
