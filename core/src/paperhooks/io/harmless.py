"""Text of others made fit to be shown elsewhere: in a terminal, a spreadsheet, a report, a log that is passed on.

Names, summaries and errors of plugins, answers of models and of servers may hold anything; each function here takes
away one way in which such a text does more than being read.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

__all__ = ["csv_cell", "csv_text", "error_text", "html_text", "markdown_text", "printable", "redacted"]

#: C0 and C1 controls, marks and overrides of the writing direction (Unicode Annex 9), line and paragraph separators,
#: byte order mark, tag characters, and halves of surrogate pairs, which no terminal can be sent.
_UNSEEN: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # the wide ones are taken by spreadsheets of some languages
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

#: What Markdown (CommonMark with tables, strike-through and formulas) takes for markup inside a line, and at its start.
_MARKUP: Final = re.compile(r"[\\`*~$|]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")
_LINE_START: Final = re.compile(r"(?m)^[ \t]*(?:(#{1,6}|[-+]+|=+)(?=\s|$)|(\d{1,9})(?=[.)](?:\s|$)))?")

_HIDDEN: Final = "***"
_SECRETS: Final = (
    # user:password@ of an address; the git@ of a clone address is nobody's secret
    re.compile(r"(?<=://)(?!git@)[^/\s?#]*(?=@)"),
    # ?api_key=..., &sig=..., #access_token=...
    re.compile(
        r"(?i)(?<=[?&;#])(?P<head>[^=&;#?\s]{0,80}?(?:key|token|secret|passw|pwd|sig|auth|credential)[^=&;#?\s]{0,80}=)"
        r"[^&;#\s'\"<>)]+"
    ),
    # headers and settings: Authorization: Bearer ..., 'api-key': '...', password=...
    re.compile(
        r"(?i)(?P<head>(?:authorization|api[-_ ]?key|(?:access|auth|refresh)[-_ ]token|secret|password|cookie)"
        r"(?: provided)?\\?['\"]?\s{0,9}[:=]\s{0,9})"
        r"(?:b?\\?'[^']*|b?\\?\"[^\"]*|(?:(?:bearer|basic|token|digest)\s+)?[^\s,;&}'\"]+)"
    ),
    re.compile(r"(?i)(?P<head>\b(?:bearer|basic)\s{1,9})[\w.~+/=-]{6,}"),
    # keys that show by themselves what they are
    re.compile(
        r"(?<!\w)(?:sk-[\w-]{8,}|hf_[A-Za-z0-9]{10,}|gsk_\w{10,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
        r"|xox[a-z]-[\w-]{10,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
    ),
)


def printable(text: object, *, lines: bool = False) -> str:
    r"""``text`` with everything in it that would steer a terminal, or be invisible there, written as an escape.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'

    :param lines: line breaks and tabs stay what they are; a carriage return before a line break goes.
    """
    found = str(text)
    if lines:
        return "\n".join(
            "\t".join(map(printable, line.split("\t"))) for line in found.replace("\r\n", "\n").split("\n")
        )
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), found)


def error_text(error: BaseException) -> str:
    """Kind and message of an error on one line, also of one whose own text raises.

    >>> error_text(ValueError("no"))
    'ValueError: no'
    """
    try:
        said = " ".join(str(error).split())
    except BaseException:  # SystemExit too
        said = "(its text cannot be shown)"
    return printable(f"{type(error).__name__}: {said}" if said else type(error).__name__)


def html_text(text: object) -> str:
    """``text`` as HTML that shows it; line breaks stay."""
    return html.escape(printable(text, lines=True))


def markdown_text(text: object, *, lines: bool = False) -> str:
    r"""``text`` as Markdown that shows it: no images, links, HTML, comments, fences, headings or lists come of it.

    >>> markdown_text("![x](http://a.b/c.png) <!-- d -->")
    '![x\\](http://a.b/c.png) &lt;!-- d --&gt;'

    :param lines: line breaks stay; without it they become spaces.
    """
    found = printable(text, lines=True)
    found = found if lines else " ".join(found.split("\n"))
    found = _MARKUP.sub(r"\\\g<0>", html.escape(found, quote=False))
    return _LINE_START.sub(lambda at: f"{at[2]}\\" if at[2] else f"\\{at[1]}" if at[1] else "", found)


def csv_cell(value: Any) -> str:
    """The cell of a CSV file that holds ``value`` and that no spreadsheet takes for a formula; None is empty.

    Text that begins like one (``=``, ``+``, ``-``, ``@``, tab, line break) and is no number gets an apostrophe in
    front; :func:`csv_text` takes it away again, exactly.

    >>> [csv_cell(value) for value in ("=1+1", "-1", -0.5, "'=x", None)]
    ["'=1+1", '-1', '-0.5', "''=x", '']
    """
    cell = "" if value is None else str(value)
    formula = _FORMULA.match(cell) and isinstance(value, str) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if formula else cell


def csv_text(cell: str) -> str:
    """The text that :func:`csv_cell` made the cell of.

    >>> csv_text("'=1+1")
    '=1+1'
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def redacted(text: object, secrets: Iterable[str | None] = ()) -> str:
    """``text`` with ``***`` for keys: in addresses, queries and headers, tokens of known forms, and ``secrets``.

    >>> redacted("https://me:pw@host/v1?api_key=abc&n=1 said 'Authorization: Bearer abc'")
    "https://***@host/v1?api_key=***&n=1 said 'Authorization: ***'"

    :param secrets: what else must not be seen, as it is or as an address spells it; a short one as a whole word only.
    """
    found = str(text)
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        for spelled in {secret, quote(secret, safe="")}:
            edges = (r"(?<!\w)", r"(?!\w)") if len(secret) < 8 else ("", "")
            found = re.sub(re.escape(spelled).join(edges), _HIDDEN, found)
    for form in _SECRETS:
        found = form.sub(lambda match: (match.groupdict().get("head") or "") + _HIDDEN, found)
    return found
