"""Multiple-choice replies as a human reads them, in Japanese and English, without a model as judge.

In order: thoughts are dropped; a box or an ``<answer>`` is read alone; a reply that is one letter; the last sentence
that states an answer, by letter or by the option's words; a letter in front of its option; the options' words; the only
letter of a short reply. Nothing is guessed: refusals, several letters and letters of no option give None.

What a letter means comes from the words directly before it ("the answer is", 正解は) and from the clause behind it ("is
wrong", が正しい). An option's words are read as if its letter stood there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from paperhooks_jmmmu.answers.choices import Choice, letters_of
from paperhooks_jmmmu.answers.plain import boxed, plain, without_markup, without_thought
from paperhooks_jmmmu.answers.wording import NO, STRONG, UNSURE, WEAK, YES, cue_before, said_behind

__all__ = ["NOTHING", "OUTSIDE", "SEVERAL", "parse_choice_robust"]

#: Rules of replies that have no letter, one of no option, or more than one.
NOTHING: Final = "none"
OUTSIDE: Final = "outside"
SEVERAL: Final = "several"

#: A letter that nothing is said of is an answer in a reply as short as this.
_SHORT: Final = 100
#: How far words around a letter are looked at.
_NEAR: Final = 60

_COPULA: Final = "です|である|だ|になります|となります|を選びます|だ?と思います|に該当します"
#: A reply, or a line, that is a letter in any clothes, with a copula at most.
_WHOLE: Final = re.compile(
    rf"[\W_]*(?:(?:選択肢|記号|option|choice)[\W_]*)?([a-z])[\W_]*(?:(?:{_COPULA})[\W_]*)?", re.IGNORECASE
)
#: The common reply of one line, told at once: a cue and a letter.
_STATED: Final = re.compile(
    r"[\s*#]*+(?:(?:よって|したがって|the)[、,]?\s?)?(?:(?:最終|correct |final )?(?:答え|正解|正答|回答|解答|answer)|"
    rf"選択肢|記号|option)\s?(?:は|is|:|：)?、?\s?[*(（「『\[【]*([A-Z])[*)）」』\]】]*(?:{_COPULA})?[。.]?\s*",
    re.IGNORECASE,
)

#: A letter that is a word of its own: not in a word, a number, A-type, A社 or Aタイプ.
_LETTER: Final = re.compile(
    r"(?<![A-Za-z0-9_\\])(?<![A-Za-z0-9]['’/&.-])([A-Z])"
    r"(?![A-Za-z0-9_^]|['’][A-Za-z]|-[A-Za-z0-9]|[ァ-ヶー々]|(?![正最適選以番案])[一-龥])"
)
_SMALL_LETTER: Final = re.compile(
    r"(?<![A-Za-z0-9_'’/.\\-])([a-z])(?=[)\]:。、」』】]|\.(?!\w)|\s*$|です|だ|である|\s*\n)"
)
_SYMBOL: Final = re.compile("([\ue000-\ue019])")
#: Behind "A" and "I": the article of a noun, or the pronoun of a verb.
_ARTICLE: Final = re.compile(
    r"[ \n](?!(?:is|was|because|since|as|and|or|but|seems|would|should|must|best|correctly|matches|fits|due|for|in|"
    r"which|also|then|are|instead|has|does|shows|represents|describes|to|with|on)\b)[a-z]"
)
#: Between two letters that are named together, and between two of which what is said holds for both.
_TOGETHER: Final = re.compile(
    r"[\s,、/・&+~〜()\[\]「」『』【】\"'→-]*(?:(?:と|か|や|and/or|and|or|または|又は|もしくは|あるいは|及び|および|かつ)[\s,、(「\[]*)?"
    r"(?:選択肢|options?|choice|answer)?[\s(「\[]*",
    re.IGNORECASE,
)
_BOTH: Final = re.compile(r"\W*(?:と|や|および|及び|and|or)\W*", re.IGNORECASE)

#: A line "A. text", and the beginning of a reply "A. ".
_LISTED: Final = re.compile(r"^[\s*•・(\[-]{0,9}([A-Z])\s?[.):、】\]]++[ \t]*+(.*)$", re.MULTILINE)
_LEADING: Final = re.compile(r"[\s\"'“「『(【\[<-]*([A-Z])(?=[\s\"'”」』)】\]>.:、,–—(「-]|$)")
_LABEL: Final = re.compile(r"(?:選択肢|記号|番号|option|choice|[(「【\[])\s?$", re.IGNORECASE)
_NOUN: Final = re.compile(r"[一-龥ァ-ヶー々]$")
_SPACES: Final = re.compile(r"\s+")
#: Behind an option that is the whole reply.
_SENTENCE_END: Final = re.compile(rf"(?:(?:{_COPULA})[。.]?|[。.、,!])$")


class _Mention(NamedTuple):
    """A letter in a text, and how strongly it is stated there; below 0 where it is denied."""

    letter: str
    start: int
    end: int
    strength: int


def parse_choice_robust(response: str, options: Sequence[str]) -> Choice:
    """The letter that a human reads in a reply; None with the rule ``none``, ``several`` or ``outside``.

    >>> parse_choice_robust("**B**です。C は誤りです。", ["能面", "浮世絵", "漆器"]).letter
    'B'
    >>> parse_choice_robust("BとC", ["能面", "浮世絵", "漆器"])
    Choice(letter=None, rule='several')
    """
    letters = letters_of(options)
    if (found := _WHOLE.fullmatch(response) or _STATED.fullmatch(response)) and found[1].isascii():
        return _in_range(found[1].upper(), letters, "letter")
    text = without_thought(plain(response))
    box = boxed(text)
    if box is not None:
        choice = _read(without_markup(box), letters, tuple(options))
        if choice.letter or choice.rule == SEVERAL:
            return Choice(choice.letter, "box" if choice.letter else SEVERAL)
    return _read(without_markup(text).replace("\\boxed", ""), letters, tuple(options))


def _in_range(letter: str, letters: str, rule: str) -> Choice:
    return Choice(letter, rule) if letter in letters else Choice(None, OUTSIDE)


def _read(text: str, letters: str, options: tuple[str, ...]) -> Choice:
    text = _without_list(text, letters, options).strip()
    if not text:
        return Choice(None, NOTHING)
    if found := _WHOLE.fullmatch(text):
        return _in_range(found[1].upper(), letters, "letter")
    words = _Words.of(options)
    if letter := words.exact(text):
        return Choice(letter, "option")
    mentions = list(_mentions(text, _LETTER)) or list(_mentions(text, _SMALL_LETTER))
    named = _named(text, mentions, letters, words)
    if named and named.letter:
        return named
    spoken = words.spoken(text)
    told = list(_mentions(spoken, _SYMBOL)) if spoken != text else []
    return (
        named
        or _stated(spoken, told, letters, WEAK, "option statement")
        or _only(told, letters, "option mention")
        or _only(_plain_mentions(text, mentions), letters, "mention")
        or Choice(None, NOTHING)
    )
