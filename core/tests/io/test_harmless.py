"""What is shown elsewhere is harmless there."""

from __future__ import annotations

import csv
import io
import time

import pytest
from paperhooks.io import csv_cell, csv_text, error_text, html_text, markdown_text, printable, redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\x9b2J", r"a\rb\x9b2J"),
        ("ab\u202ecd\u2066\u200f", r"ab\u202ecd\u2066\u200f"),
        ("\u2028\ufeff\U000e0041", r"\u2028\ufeff\U000e0041"),
        ("half \ud83d", r"half \ud83d"),
        ("naïve 中文 👩‍💻", "naïve 中文 👩‍💻"),
    ],
)
def test_what_steers_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text, lines=True) == shown


def test_line_breaks_stay_where_they_are_asked_for() -> None:
    assert printable("a\r\n\tb\x1b") == r"a\r\n\tb\x1b"
    assert printable("a\r\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_an_error_whose_text_raises_has_one() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert error_text(Mute()) == "Mute: (its text cannot be shown)"
    assert error_text(KeyError("a\nb\x1b")) == r"KeyError: 'a\nb\x1b'"
    assert error_text(ValueError("two\n  lines")) == "ValueError: two lines"
    assert error_text(SystemExit()) == "SystemExit"


TEXTS = [
    "=1+1",
    "+1+1",
    "-x",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "'=1",
    "''=1",
    "'",
    "'tis",
    "",
    "-1",
    "+1.5e-3",
    "a=1",
]


def test_cells_are_no_formulas_and_read_back_exactly() -> None:
    cells = [csv_cell(text) for text in TEXTS]
    assert [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n")] == ["-1", "+1.5e-3"]
    file = io.StringIO(newline="")
    csv.writer(file).writerow(cells)
    file.seek(0)
    assert [csv_text(cell) for cell in next(csv.reader(file))] == TEXTS
    assert [csv_cell(value) for value in (None, -1, -0.5, True)] == ["", "-1", "-0.5", "True"]


@pytest.mark.parametrize(
    "text",
    [
        "https://user:{}@host:8000/v1",
        "https://{}@host/v1",
        "http://host/v1?api_key={}&n=3",
        "http://host/v1?n=3&X-Amz-Signature={}",
        "http://host/#access_token={}",
        "Authorization: Bearer {}",
        "{{'authorization': 'Basic {}'}}",
        '{{"api-key": "{}", "n": 3}}',
        '{{\\"x-api-key\\": \\"{}\\"}}',
        "api_key={}",
        "Incorrect API key provided: {}.",
        "sent with bearer {}",
        "password = {}",
    ],
)
def test_keys_are_hidden_where_they_are_written(text: str) -> None:
    said = redacted(text.format("q1w2e3r4t5z6"))
    assert "q1w2e3r4" not in said
    assert "***" in said
    assert redacted(said) == said


@pytest.mark.parametrize(
    "key", ["sk-proj-abc_DEF-12345678", "hf_abcdefghijklmnop", "ghp_0123456789abcdefghij", "AKIA0123456789ABCDEF"]
)
def test_keys_of_known_forms_are_hidden_anywhere(key: str) -> None:
    assert redacted(f"the server said <{key}>") == "the server said <***>"


def test_given_secrets_are_hidden_as_they_are_and_as_addresses_spell_them() -> None:
    assert redacted("a/b+c= and a%2Fb%2Bc%3D", ["a/b+c=", None, ""]) == "*** and ***"
    assert redacted("a key, aunt", ["a"]) == "*** key, aunt"


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/v1?limit=3",
        "pip install git+ssh://git@github.com/a/b",
        "the task-specific-heads of hf_transfer and hf_hub_download",
        "the tokenizer has 3 tokens: a, b, c",
        "mail@example.org",
    ],
)
def test_what_is_no_key_stays(text: str) -> None:
    assert redacted(text) == text


def test_long_texts_take_no_time() -> None:
    start = time.perf_counter()
    for text in (
        "a-" * 200_000,
        "?" * 200_000,
        "api_key" * 50_000,
        "://" * 100_000,
        "?akey" * 50_000,
        "Bearer " * 50_000,
    ):
        redacted(text)
    assert time.perf_counter() - start < 5


def test_text_in_html_and_markdown_is_shown_as_it_is() -> None:
    assert html_text("<b>\x1b\n\u202e") == "&lt;b&gt;\\x1b\n\\u202e"
    assert markdown_text("# a_b_c *d* 2. e\n- f") == r"\# a_b_c \*d\* 2. e - f"
    assert markdown_text("1. a\n- b\nc[d]", lines=True) == "1\\. a\n\\- b\nc[d]"
