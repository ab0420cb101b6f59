"""Report blocks as Markdown and as one self-contained HTML page (figures inlined, no scripts, light and dark)."""

from __future__ import annotations

import base64
import importlib.resources
import math
import mimetypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from paperhooks.errors import DataError
from paperhooks.io.harmless import html_text, markdown_text, printable
from paperhooks.reports.blocks import Block, Code, Columns, Figure, Heading, Image, Paragraph, Table

__all__ = ["format_cell", "render_html", "render_markdown"]


def format_cell(value: Any) -> str:
    """A table cell: floats with four significant digits, None as a dash, booleans as yes and no."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def render_markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The report as Markdown; figures are linked by their file name."""
    parts = [f"# {markdown_text(title)}", *(_markdown_block(block, folder) for block in blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * _level(level)} {markdown_text(text)}"
        case Paragraph(text, kind):
            lines = markdown_text(text, lines=True)
            return "> " + lines.replace("\n", "\n> ") if kind == "note" else lines
        case Table():
            return _markdown_table(block)
        case Figure(name, alt, caption):
            return _markdown_image(_existing(folder, f"{name}.svg"), alt, caption)
        case Image(file, alt, caption):
            return _markdown_image(_existing(folder, file), alt, caption)
        case Code(text, language):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            known = language if re.fullmatch(r"[\w+-]*", language) else ""
            return f"{fence}{known}\n{printable(text, lines=True)}\n{fence}"
        case Columns(columns):
            return "\n\n".join(_markdown_block(one, folder) for column in columns for one in column)
    raise TypeError(f"{block!r} is not a report block")


def _markdown_image(file: Path, alt: str, caption: str) -> str:
    markup = f"![{markdown_text(re.sub(r'[][]', '', alt))}]({quote(file.name)})"
    return f"{markup}\n\n*{markdown_text(caption)}*" if caption else markup


def _markdown_table(table: Table) -> str:
    numeric = _numeric_columns(table)
    lines = [_markdown_row(table.header), "| " + " | ".join("---:" if n else "---" for n in numeric) + " |"]
    lines += [_markdown_row([format_cell(cell) for cell in row]) for row in table.rows]
    return (f"*{markdown_text(table.caption)}*\n\n" if table.caption else "") + "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"


def render_html(title: str, blocks: Sequence[Block], folder: Path, result: Mapping[str, Any]) -> str:
    """The report as one HTML page that needs no other file."""
    style = importlib.resources.files("paperhooks").joinpath("reports/report.css").read_text(encoding="utf-8")
    body = "\n".join(_html_block(block, folder) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="kicker">paperhooks</p><h1>{html_text(title)}</h1>{_chips(result)}</header>\n'
        f"{body}\n{_footer(result)}\n</main>\n</body>\n</html>\n"
    )


def _chips(result: Mapping[str, Any]) -> str:
    shown = {"run": result.get("kind"), "seed": result.get("seed"), "started": result.get("started")}
    chips = [f"<span>{key} <b>{html_text(str(value))}</b></span>" for key, value in shown.items() if value is not None]
    return f'<p class="chips">{"".join(chips)}</p>' if chips else ""


def _footer(result: Mapping[str, Any]) -> str:
    made = [f"{name} {version}" for name, version in result.get("versions", {}).items()]
    timings = [f"{name} {seconds:.2f} s" for name, seconds in result.get("timings", {}).items()]
    lines = [html_text(" · ".join(items)) for items in (made, timings) if items]
    return f"<footer>{'<br>'.join(lines)}</footer>" if lines else ""


def _html_block(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{_level(level)}>{html_text(text)}</h{_level(level)}>"
        case Paragraph(text, kind):
            text = html_text(text).replace("\n", "<br>")
            return f'<p class="note">{text}</p>' if kind == "note" else f"<p>{text}</p>"
        case Table():
            return _html_table(block)
        case Figure(name, alt, caption):
            return _html_image(_existing(folder, f"{name}.svg"), alt, caption)
        case Image(file, alt, caption):
            return _html_image(_existing(folder, file), alt, caption)
        case Code(text, _):
            return f"<pre><code>{html_text(text)}</code></pre>"
        case Columns(columns):
            inside = ("\n".join(_html_block(one, folder) for one in column) for column in columns)
            return '<div class="columns">' + "\n".join(f"<div>{one}</div>" for one in inside) + "</div>"
    raise TypeError(f"{block!r} is not a report block")


def _html_table(table: Table) -> str:
    numeric = _numeric_columns(table)
    caption = f"<caption>{html_text(table.caption)}</caption>" if table.caption else ""
    head = "".join(_html_cell("th", cell, n) for cell, n in zip(table.header, numeric, strict=True))
    rows = "\n".join(
        "<tr>" + "".join(_html_cell("td", format_cell(cell), n) for cell, n in zip(row, numeric, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
    )


def _html_cell(tag: str, text: str, numeric: bool) -> str:
    return f"<{tag}{' class=n' if numeric else ''}>{html_text(text)}</{tag}>"


def _numeric_columns(table: Table) -> list[bool]:
    for row in table.rows:
        if len(row) != len(table.header):
            raise DataError(
                f"a table row has {len(row)} cells, the header {list(table.header)} has {len(table.header)}"
            )
    columns = [[row[i] for row in table.rows] for i in range(len(table.header))]
    return [bool(cells) and all(c is None or isinstance(c, int | float) for c in cells) for cells in columns]


def _html_image(file: Path, alt: str, caption: str) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    text = f"<figcaption>{html_text(caption)}</figcaption>" if caption else ""
    # An <img> keeps the ids of several SVG files apart and runs no script that a file might hold.
    return f'<figure><img alt="{html_text(alt)}" src="data:{kind};base64,{data}">{text}</figure>'


def _existing(folder: Path, name: str) -> Path:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise DataError(f"the report shows {name!r}, which is no file in {folder}")
    return file


def _level(level: int) -> int:
    return min(max(level, 2), 4)
