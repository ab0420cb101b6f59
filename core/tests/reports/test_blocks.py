"""Run folders, figures, Markdown and HTML reports."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from paperhooks.errors import DataError, MissingExtra
from paperhooks.io import atomic_path, hash_json, plain, write_json, write_text
from paperhooks.reports import (
    Code,
    Columns,
    Figure,
    Heading,
    Image,
    Paragraph,
    RunFolder,
    Table,
    bar_figure,
    line_figure,
    new_figure,
    save_figure,
)
from paperhooks.reports.render import render_html, render_markdown
from paperhooks.testing import run_python

NASTY = "<script>alert('x')</script> & | ` *"


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order, and collects the text."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def parsed(page: str) -> Balanced:
    """Parse a page; everything must be closed."""
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


def started(path: Path, **inputs: object) -> RunFolder:
    """A run folder that was started and has left something, and was given back as by a process that ended."""
    run = RunFolder(path)
    run.start("test", inputs=inputs or {"n": 1}, seed=3)
    (path / "left").touch()
    run.release()
    return run


def test_a_run_is_written_from_the_start_and_can_go_on(tmp_path: Path) -> None:
    run = started(tmp_path / "run", model="tiny", n=2)
    with run.timed("work"):
        run.record(speed=1.5)
    again = RunFolder(tmp_path / "run")
    assert again.start("test", inputs={"n": 2, "model": "tiny"}, seed=3)
    assert again.result["results"] == {"speed": 1.5}
    again.record(size=(1, 2))
    with again.timed("work"):
        pass
    again.finish()
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["results"] == {"speed": 1.5, "size": [1, 2]}
    assert saved["status"] == "finished"
    assert again.finished
    assert saved["inputs_hash"] == hash_json({"model": "tiny", "n": 2})
    assert saved["versions"]["paperhooks"]
    assert saved["timings"]["work"] >= 0


def test_a_run_that_failed_before_it_left_anything_does_not_claim_its_folder(tmp_path: Path) -> None:
    def fail(n: int, leave: bool) -> None:
        with RunFolder(tmp_path / "run") as run:
            run.start("test", inputs={"n": n})
            if leave:
                (run.path / "part").touch()
            raise KeyError(n)

    for n in (1, 2):
        with pytest.raises(KeyError):
            fail(n, leave=n == 2)
    with pytest.raises(DataError, match=r"inputs\.n = 2, not 3"):
        fail(3, leave=False)


@pytest.mark.parametrize(
    ("inputs", "seed", "kind", "said"),
    [
        ({"n": 3}, 3, "test", "inputs.n = 1, not 3"),
        ({"n": 1, "m": 2}, 3, "test", "inputs.m = None, not 2"),
        ({}, 3, "test", "inputs.n = 1, which is not given now"),
        ({"n": 1}, 4, "test", "seed = 3, not 4"),
        ({"n": 1}, 3, "other", "kind = 'test', not 'other'"),
    ],
)
def test_other_inputs_are_refused_and_nothing_is_touched(tmp_path: Path, inputs, seed, kind, said: str) -> None:
    started(tmp_path / "run")
    before = (tmp_path / "run" / "result.json").read_bytes()
    with pytest.raises(DataError, match=said):
        RunFolder(tmp_path / "run").start(kind, inputs=inputs, seed=seed)
    assert (tmp_path / "run" / "result.json").read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 7}'])
def test_a_damaged_or_foreign_result_is_refused_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(DataError, match="another folder"):
        started(tmp_path)
    assert (tmp_path / "result.json").read_text() == content


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        started(tmp_path / "run")


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def fail() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_plain_makes_json_of_what_runs_carry() -> None:
    torch = pytest.importorskip("torch")
    value = {1: (Path("a"), {"b", "a"}), "t": torch.tensor(2.5), "i": torch.tensor([3]).sum()}
    assert plain(value) == {"1": ["a", ["a", "b"]], "t": 2.5, "i": 3}


def test_whole_numbers_along_a_figure_have_whole_ticks() -> None:
    for along, whole in (([1, 2, 3], True), ([1.0, 2.0], True), ([0.5, 1.5], False)):
        (axes,) = line_figure({"x": (along, along)}).axes
        assert all(float(tick).is_integer() for tick in axes.get_xticks()) == whole


def test_lines_of_many_series_stay_apart() -> None:
    names = [f"series {n}" for n in range(11)]
    (axes,) = line_figure({name: ([1, 2], [n, n]) for n, name in enumerate(names)}).axes
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == len(names)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names


def full_report(tmp_path: Path) -> tuple[str, str]:
    """Markdown and HTML of a report with every kind of block."""
    run = started(tmp_path / "run")
    bars = bar_figure(["a", "b"], [1.0, 2.0], intervals=[(0.5, 1.5), (1.9, 2.2)], title="T", reference=1.2)
    run.figure("speed", bars)
    png = run.figure("lines", line_figure({"x": ([1, 2], [1, 4]), "y": ([1, 2], [2, 3])}, x="n"))[1]
    blocks = [
        Heading(NASTY),
        Paragraph(NASTY + "\nsecond line"),
        Paragraph("a note", "note"),
        Table(("name", "value", "n"), [(NASTY, 0.123456, 12345), ("b", None, 7), (True, 1e6, 2026)], NASTY),
        Figure("speed", NASTY, "A caption"),
        Image(png.name, "lines"),
        Columns([[Heading("left", 3), Code(NASTY, "text")], [Paragraph(NASTY)]]),
    ]
    page = run.report(f"Title {NASTY}", blocks).read_text(encoding="utf-8")
    return (tmp_path / "run" / "report.md").read_text(encoding="utf-8"), page


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(DataError, match=f"{path.name} cannot be written"):
            write_text(path, "y")
    assert (tmp_path / "file").read_text() == "x"


def test_the_html_report_is_self_contained_balanced_and_escaped(tmp_path: Path) -> None:
    _, page = full_report(tmp_path)
    found = parsed(page)
    assert "script" not in found.seen
    assert found.text.count("<script>alert('x')</script>") == 8
    assert page.count('src="data:image/') == 2
    assert '<div class="columns"><div><h3>left</h3>\n<pre>' in page
    assert "http" not in page.split("</style>")[1].split("base64")[0]
    assert ".1235" in page
    assert "12,345" in page
    assert ">2026<" in page


def test_the_markdown_report_has_tables_links_and_no_raw_html(tmp_path: Path) -> None:
    text, _ = full_report(tmp_path)
    assert text.startswith("# Title &lt;script&gt;")
    assert "<script>" not in text.split("```")[0]
    assert "| name | value | n |\n| --- | ---: | ---: |" in text
    assert "](speed.svg)\n\n*A caption*" in text
    assert "](lines.png)" in text
    assert "\\| " in text
    assert text.index("### left") < text.index("```text") < text.rindex("&lt;script&gt;")


ANSWERS = [
    "```\nout of the fence\n```` more",
    "~~~\n# heading\n- item\n1. one\n> quote\n---\n===",
    "![x](http://a.b/c.png) and ![y][z]\n[z]: http://a.b/c.png",
    "<img src=http://a.b/c.png> <!-- gone --> <http://a.b> &lt;",
    "*a* _b_ **c** __d__ ~~e~~ `f` $g$ \\ a | b\n--|--",
    "[x](javascript:alert(1)) a_b_c 2 * 3",
    "    indented\n\n\tmore",
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(
    "block", [Paragraph, lambda x: Paragraph(x, "note"), Heading, Code, lambda x: Table((x,), [(x,)], x)]
)
def test_what_a_model_answers_stays_text_in_markdown(tmp_path: Path, answer: str, block) -> None:
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse(render_markdown(answer, [block(answer), Paragraph("last")], tmp_path))
    inline = [token for each in tokens for token in each.children or ()]
    allowed = {"text", "softbreak", "text_special"} | (
        {"em_open", "em_close"} if isinstance(block(""), Table) else set()
    )
    assert {token.type for token in inline} <= allowed
    kinds = {"heading", "paragraph", "blockquote", "table", "thead", "tbody", "tr", "th", "td"}
    assert {token.type.rsplit("_", 1)[0] for token in tokens} <= kinds | {"inline", "fence"}
    assert sum(token.type == "heading_open" for token in tokens) == 1 + isinstance(block(""), Heading)
    assert tokens[-2].content == "last"
    shown = " ".join(token.content for token in inline if token.type != "softbreak")
    code = " ".join(token.content for token in tokens if token.type == "fence")
    assert answer.split() == (code or shown[: len(shown) - 4]).split()[-len(answer.split()) :]


def test_escape_sequences_and_marks_of_direction_are_written_out(tmp_path: Path) -> None:
    nasty = "a\x1b[31m\u202eb\x00"
    blocks = [Paragraph(nasty), Code(nasty, "x\n```"), Table((nasty,), [(nasty,)])]
    for page in (render_markdown(nasty, blocks, tmp_path), render_html(nasty, blocks, tmp_path, {"kind": nasty})):
        assert not {"\x1b", "\u202e", "\x00"} & set(page)
        assert page.count("u202eb") >= 5
    assert "x\n```" not in render_markdown("", blocks, tmp_path)


def test_ragged_tables_and_missing_or_outside_pictures_are_refused(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    (tmp_path / "secret.svg").write_text("<svg/>")
    with pytest.raises(DataError, match="2 cells"):
        run.report("x", [Table(("a",), [(1, 2)])])
    for name in ("nowhere", "../secret"):
        with pytest.raises(DataError, match="no file in"):
            run.report("x", [Figure(name, "x")])


def test_figures_are_reproducible_and_leave_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    files = []
    for name in ("one", "two"):
        svg, png = save_figure(bar_figure(["a"], [1.0]), tmp_path / name)
        files.append((svg.read_bytes(), png.read_bytes()))
        ET.fromstring(svg.read_text(encoding="utf-8"))
    assert files[0] == files[1]
    assert dict(matplotlib.rcParams) == before


def test_figures_need_no_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from paperhooks.reports import bar_figure, save_figure\n"
        "save_figure(bar_figure(['a'], [1.0]), pathlib.Path(sys.argv[1]))\n"
        "sys.exit('pyplot was loaded' if 'matplotlib.pyplot' in sys.modules else 0)\n"
    )
    run_python("-c", code, tmp_path / "x")


def test_without_matplotlib_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'paperhooks\[plots\]'"):
        new_figure()
