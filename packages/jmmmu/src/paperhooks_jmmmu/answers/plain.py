"""A reply without its clothes: what both robust parsers take away before they look for an answer.

Every step is linear in the length of the reply.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["boxed", "plain", "without_markup", "without_thought"]

#: Zero-width characters, variation selectors, and the private ones, which the parsers keep for themselves.
_INVISIBLE: Final = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff\ue000-\uf8ff]")
#: More marks on one letter than any script has; ordering thousands of them would take its time.
_PILE: Final = re.compile("([\u0300-\u036f]{4})[\u0300-\u036f]+")
#: A character that NFKC would write out as eighteen.
_LONGEST: Final = "\ufdfa"
#: White and coloured squared letters, which NFKC leaves alone.
_SQUARED: Final = {first + n: chr(65 + n) for first in (0x1F150, 0x1F170) for n in range(26)}
#: What any of these concern; NFKC makes none of them out of others.
_RARE: Final = re.compile(f"[\u0300-\u036f{_LONGEST}{''.join(map(chr, _SQUARED))}{_INVISIBLE.pattern[1:]}")

_TAGS: Final = "think|thinking|thought|reasoning"
_THOUGHT: Final = re.compile(rf"[<\[◁](/?)(?:{_TAGS})[>\]▷]", re.IGNORECASE)
_TOKEN: Final = re.compile(r"<\|[a-z_]{1,30}\|>|</?s>", re.IGNORECASE)
_ANSWER: Final = re.compile(r"<answer>|<\|begin_of_box\|>", re.IGNORECASE)
_END: Final = re.compile(r"</answer>|<\|end_of_box\|>", re.IGNORECASE)

_TEXT: Final = re.compile(r"\\(?:text|math|operatorname)[a-z]{0,6}\s?\{([^{}]*)\}")
_LINE_BREAK: Final = re.compile(r"<br ?/?>", re.IGNORECASE)
#: Without any of these there is no markup.
_MARKS: Final = re.compile(r"[*`$_\\<>#]")
_MARKUP: Final = re.compile(
    r"[*`$]|__|\\[()\[\] ,;!]|</?(?:b|i|em|strong|u|p|span|div|code|center)>|^[ \t]{0,9}(?:#{1,6}|>)[ \t]{0,9}",
    re.IGNORECASE | re.MULTILINE,
)


def plain(text: str) -> str:
    """The text in NFKC form (full width, circled letters) without invisible characters.

    >>> plain("（Ｂ）\u200b、Ⓒ")
    '(B)、C'
    """
    if text.isascii():
        return text
    if not _RARE.search(text):
        return unicodedata.normalize("NFKC", text)
    text = unicodedata.normalize("NFKC", _PILE.sub(r"\1", text.replace(_LONGEST, " ")))
    return _INVISIBLE.sub("", text).translate(_SQUARED)


def without_thought(text: str) -> str:
    """What stands behind the last thought; nothing of a thought that was never closed.

    >>> without_thought("<think>A?</think>B"), without_thought("B<think>or")
    ('B', 'B')
    """
    if not ("think" in text or "hought" in text or "easoning" in text):
        return text
    tags = list(_THOUGHT.finditer(text))
    closing = max((tag.end() for tag in tags if tag[1]), default=0)
    opening = min((tag.start() for tag in tags if not tag[1] and tag.start() >= closing), default=len(text))
    return text[closing:opening]


def boxed(text: str) -> str | None:
    """What stands in the last ``\\\\boxed{}``, or in the last ``<answer>`` of a text that has no box; None without.

    >>> boxed("so $\\\\boxed{\\\\text{B}}$"), boxed("<answer>B</answer>"), boxed("B")
    ('\\\\text{B}', 'B', None)
    """
    start = text.rfind("\\boxed{")
    if start >= 0:
        return _braces(text, start + len("\\boxed{"))
    if "<" in text and (tags := _ANSWER.findall(text)):
        inside = text[text.rindex(tags[-1]) + len(tags[-1]) :]
        return _END.split(inside, maxsplit=1)[0]
    return None


def _braces(text: str, start: int) -> str:
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : start + brace.start()]
    return text[start:]


def without_markup(text: str) -> str:
    """The text without Markdown's and HTML's emphasis, headings, LaTeX's ``$`` and ``\\\\text{}``, and special tokens.

    >>> without_markup("### **$\\\\text{B}$**")
    'B'
    """
    if not _MARKS.search(text):
        return text
    if "\\" in text:
        text = _TEXT.sub(r"\1", text)
    if "<" in text:
        text = _TOKEN.sub("", _LINE_BREAK.sub("\n", text))
    return _MARKUP.sub("", text)
