"""Where a text names letters, which it names together, and what it says of them.

A letter stands for itself, or is the private character that stands for an option's words. Letters that share what is
said of them are one mention: "A and C are wrong", AもBも正しい, "A to D".
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from paperhooks_jmmmu.answers.option_words import FIRST_SYMBOL
from paperhooks_jmmmu.answers.phrases import (
    DENIED,
    DOUBTED,
    MORE,
    NO,
    STRONG,
    UNSURE,
    WEAK,
    YES,
    cue_before,
    refuses,
    said_behind,
)
from paperhooks_jmmmu.answers.turns import reconsidered, withdrawn

__all__ = ["LABEL", "LETTER", "SMALL_LETTER", "SYMBOL", "NamedLetters", "mentions_in"]

#: A letter that is a word of its own: not in a word, a number, A-type, A社, Aさん or Aタイプ. What may not stand
#: before it is looked at behind it, since a search for a letter is fast.
LETTER: Final = re.compile(
    r"([A-Z])(?<![A-Za-z0-9_\\].)(?<![A-Za-z0-9]['’-].)(?<![a-z0-9]/.)"
    r"(?![A-Za-z0-9_^]|['’][A-Za-z]|-[A-Za-z0-9]|/[a-z0-9]|[ァ-ヶー々]|さん|くん|ちゃん|(?![正最適選以番案及並又若或])[一-龥])"
)
#: A small letter that is labelled, closed by a mark, or has a verdict behind it.
SMALL_LETTER: Final = re.compile(
    r"([a-z])(?<![A-Za-z0-9_'’/.\\-].)(?:(?<=[Oo]ption .)(?!\w)|(?<=[Cc]hoice .)(?!\w)|"
    r"(?=[)\]:。、」』】]|\.(?!\w)|\s*$|です|だ|である|\s*\n|"
    r"\s(?:is|was|seems)\s(?:not\s)?(?:the\s|my\s)?(?:correct|right|best|answer|true|wrong|incorrect|false)\b))"
)
#: The private character of an option.
SYMBOL: Final = re.compile("([\ue000-\ue019])")
#: What is written before a letter to say that it is one.
LABEL: Final = re.compile(r"(?:選択肢|記号|番号|option|choice|[(「【\[])\s?$", re.IGNORECASE)
#: What is said of a letter in English: behind it, it is neither an article nor a pronoun.
_OF_A_LETTER: Final = (
    "is|isn|was|because|since|as|and|or|nor|but|plus|through|thru|until|to|seems|looks|appears|best|better|correctly|"
    "matches|fits|due|for|in|on|with|which|also|then|instead|rather|has|does|doesn|shows|represents|describes"
)
_NO_LETTER: Final = {
    "A": re.compile(
        rf"[ \n](?!(?:{_OF_A_LETTER}|are|would|should|could|can|cannot|may|might|must)\b)[a-z]|[ \n](?=[\ue000-\ue019])"
    ),
    "I": re.compile(rf"[ \n](?!(?:{_OF_A_LETTER})\b)[a-z]"),
}
#: Words that a letter makes a name with.
_NAME: Final = re.compile(r"(?:\b(?:vitamin|hepatitis|influenza|appendix)\s|ビタミン|インフルエンザ)$", re.IGNORECASE)
#: Words that a letter makes a name with unless something is said of it: 図B, 電流A, "Plan B".
_THING: Final = re.compile(
    r"(?:\b(?:plan|fig(?:ure|\.)?|table|points?|type|group|team|class|grade|part|section|panel|curve|line|graph|region|area|"
    r"person|company|country|phase|exhibit|case|side|node|player|drug|sample|patient|model|method|site|angle|vertex|"
    r"circle|block|box|current|voltage|force|city|product|material|substance|gene|cell|level|step|stage)[ \t]|"
    r"[一-龥ァ-ヶー](?<!選択肢)(?<!記号)(?<!番号)(?<!正解)(?<!解答)(?<!回答)(?<!結論)(?<!判断)(?<!結果)(?<!最終)(?<!訂正)"
    r"(?<![答肢番案選是択])(?<!当然)(?<!絶対)(?<!結局))\Z",
    re.IGNORECASE,
)
#: What a reply goes on to look at: "let's consider option A".
_LOOKED_AT: Final = re.compile(
    r"\b(?:consider|start with|begin with|look at|examine|check|evaluate|analy[sz]e|discuss)(?: with)?(?: the)?"
    r"(?: options?| choices?)? \(?\Z",
    re.IGNORECASE,
)

_CLOTHES: Final = r"[\s()\[\]「」『』【】\"'“”]*"
#: Words that share what is said of either letter, and those that begin something new as well.
_JOINT: Final = (
    "と|か|や|で?も|にも|および|及び|並びに|ならびに|かつ|または|又は|もしくは|若しくは|あるいは|或いは|それに|それから|に加えて?|"
    r"だけで(?:は)?なく|のみならず|[/・&+|]"
)
_AND: Final = r"(?:and/or|and|or|nor|plus|as well as|along with|but also)\b(?:\s(?:also|both|either))?"
_TO: Final = (
    r"[~〜]|(?<!\s)[–—-](?!\s)|\s[–—](?=\s[A-Z]\W*$)|\.{2,3}|から|ないし|乃至|"
    r"(?<=\s)(?:to|through|thru|until|up to)(?=\s)"
)
#: Between two letters that are named together: by a word, by a comma, as the ends of a range, or side by side.
_TOGETHER: Final = re.compile(
    rf"{_CLOTHES}(?:(?:(?P<joint>[,、]?{_CLOTHES}(?:{_JOINT}){_CLOTHES}[,、]?)|"
    rf"(?P<word>[,、]?{_CLOTHES}(?:{_AND}){_CLOTHES}[,、]?))|(?P<comma>[,、])|(?P<range>{_TO})|[→-]?)"
    rf"{_CLOTHES}(?:選択肢|(?:the )?(?:options?|choices?|answer))?{_CLOTHES}(?:an? |the )?",
    re.IGNORECASE,
)
#: Between a letter that is denied and the one that is named in its place: BではなくC.
_INSTEAD: Final = re.compile(
    rf"{_CLOTHES}[^\n。、]{{0,20}}?(?:で\s?[はも]\s?なく|じゃなく)て?[、,]?\s?(?:むしろ|実は|正しくは|本当は)?"
    rf"{_CLOTHES}(?:選択肢|記号)?{_CLOTHES}"
)
#: "from A to B" and AからBに is a correction where these words stand before it, or behind it.
_AFTER_CHANGE: Final = re.compile(r"(?:chang|switch|correct|revis|updat)\w*[^.\n]{0,30}$", re.IGNORECASE)
_CHANGE: Final = re.compile(r"\s?[」』]?\s?[にへ]\s?(?:変|訂正|修正|改|切り替)")

_WRAPPING: Final = " \t\"'“”‘’「」『』()【】[]{}<>.,:;!?、。…–—_~-"
_OPENING: Final = " \t\"'“‘「『(【[<{"
_STOPS: Final = ("。", ".", "!", "?")
#: A line that goes on to the letter on the next one, or has a sentence of its own.
_ANNOUNCING: Final = re.compile(r"[。.!?]\s*\S|[。.!?:はが]$|\bis$")
#: A reply as short as this is the name of a picture among the options: 図B, "Figure B".
_NAME_ALONE: Final = 12
#: How far words around a letter are looked at, and how far apart letters may be that are named together.
_NEAR: Final = 60
_BETWEEN: Final = 30
#: Of more letters than twice this, the first and the last are looked at.
_MOST: Final = 150
_NONE: Final[frozenset[str]] = frozenset()


class NamedLetters(NamedTuple):
    """Letters that a text names together, and how strongly it states them.

    :param letters: those that may be the answer.
    :param denied: those that are said not to be it.
    :param strength: of the strongest: ``STRONG``, ``WEAK``, 0, ``DENIED`` or ``DOUBTED``.
    :param more: whether they are named as right beside others.
    """

    letters: frozenset[str]
    denied: frozenset[str]
    strength: int
    more: bool = False


class _Named(NamedTuple):
    """One letter of a text, and how it is linked to the one before.

    :param link: ``joint``, ``word``, ``comma``, ``range``, ``beside``, ``change``, ``instead``, or nothing.
    """

    letter: str
    strength: int
    link: str
    more: bool


def mentions_in(text: str, pattern: re.Pattern[str]) -> list[NamedLetters]:
    """The letters of a text, in order, those that are named together as one.

    :param pattern: :data:`LETTER`, :data:`SMALL_LETTER` or :data:`SYMBOL`.
    """
    tokens = [each for each in pattern.finditer(text) if not _is_other(text, each)]
    if not tokens:
        return []
    if len(tokens) > 2 * _MOST:
        tokens = tokens[:_MOST] + tokens[-_MOST:]
    groups: list[list[_Named]] = []
    starts: list[int] = []
    announced, kept = 0, False
    for number, token in enumerate(tokens):
        previous = tokens[number - 1] if number else None
        following = tokens[number + 1].start() if number + 1 < len(tokens) else len(text)
        link = _link(text, previous, token) if previous else ""
        strength, more, cue = _said(text, token, previous.end() if previous else 0, following)
        if not strength and ((link and not kept) or (not link and _is_thing(text, token))):
            kept = False
            continue
        link, kept = link if kept else "", True
        # "The answer is not A but B" announces B.
        announced = max(cue, announced if link else 0)
        if link == "change":
            groups[-1][-1] = groups[-1][-1]._replace(strength=DENIED)
        if strength >= 0 and link in ("change", "instead"):
            strength = STRONG if link == "change" else max(strength, announced)
        named = _Named(_letter_of(token[1]), strength, link, more)
        if link and link not in ("change", "instead"):
            groups[-1].append(named)
        else:
            groups.append([named])
            starts.append(token.start())
    if not groups:
        return []
    return _taken_back(text, tokens[0].end(), [_together(each) for each in groups], starts)


def _taken_back(text: str, begin: int, mentions: list[NamedLetters], starts: list[int]) -> list[NamedLetters]:
    """The mentions, those before a correction as withdrawn; a second look corrects where it states another answer."""
    turn = withdrawn(text, begin)
    last = max((start for start, each in zip(starts, mentions, strict=True) if each.strength > 0), default=0)
    if len(mentions) > 1 and last > max(begin, turn):
        turn = max((turn, *(place for place in reconsidered(text, begin) if place < last)))
    if not turn:
        return mentions
    return [
        each._replace(strength=DOUBTED) if start < turn and each.letters else each
        for start, each in zip(starts, mentions, strict=True)
    ]


def _letter_of(token: str) -> str:
    return chr(ord("A") + ord(token) - FIRST_SYMBOL) if ord(token) >= FIRST_SYMBOL else token.upper()


def _is_other(text: str, token: re.Match[str]) -> bool:
    """Whether a letter is an article, a pronoun, or a part of a name."""
    start, end = token.span()
    no_letter = _NO_LETTER.get(token[1])
    if no_letter and no_letter.match(text, end) and not LABEL.search(text, max(0, start - 10), start):
        return True
    return token[1] < "\ue000" and _NAME.search(text, max(0, start - 12), start) is not None


def _is_thing(text: str, token: re.Match[str]) -> bool:
    """Whether a letter of which nothing is said is the name of a thing, or what the reply goes on to look at."""
    start, end = token.span()
    if end <= _NAME_ALONE and not text[end:].strip(_WRAPPING) and " " not in text[:start].strip():
        return False
    if token[1] < "\ue000" and _THING.search(text, max(0, start - 12), start):
        return True
    return _LOOKED_AT.search(text, max(0, start - 30), start) is not None


def _link(text: str, previous: re.Match[str], token: re.Match[str]) -> str:
    """How two letters that follow each other are named together; nothing where they are not."""
    if token.start() - previous.end() > _BETWEEN:
        return ""
    found = _TOGETHER.fullmatch(text, previous.end(), token.start())
    if not found:
        return "instead" if _INSTEAD.fullmatch(text, previous.end(), token.start()) else ""
    if found["range"] and (
        _CHANGE.match(text, token.end())
        or _AFTER_CHANGE.search(text, max(0, previous.start() - _NEAR), previous.start())
    ):
        return "change"
    return found.lastgroup or "beside"


def _together(members: list[_Named]) -> NamedLetters:
    if len(members) == 1:
        letter, strength, _, more = members[0]
        only = frozenset((letter,))
        if strength >= 0:
            return NamedLetters(only, _NONE, strength, more)
        return NamedLetters(_NONE, only if strength == DENIED else _NONE, strength)
    members = _shared(members)
    return NamedLetters(
        frozenset(each.letter for each in members if each.strength >= 0),
        frozenset(each.letter for each in members if each.strength == DENIED),
        max(each.strength for each in members),
    )


def _shared(members: list[_Named]) -> list[_Named]:
    """The letters with the denials and doubts that they share.

    "A and B are wrong" denies both; "the answer is A, B is wrong" and "A (not B)" do not. "not A or B" denies both,
    "not A, B" does not.
    """
    members = list(members)
    for number in range(len(members) - 1, 0, -1):
        one, before = members[number], members[number - 1]
        shared = one.link == "joint" or (one.link in ("word", "comma", "range") and before.strength == 0)
        if one.strength < 0 <= before.strength and shared:
            members[number - 1] = before._replace(strength=one.strength)
    if any(each.link in ("joint", "word", "range") for each in members[1:]):
        for number in range(1, len(members)):
            before, one = members[number - 1], members[number]
            # "whether A or B is correct"
            open_to = WEAK if before.strength == DOUBTED else 0
            if before.strength < 0 <= one.strength <= open_to and one.link != "beside":
                members[number] = one._replace(strength=before.strength)
    return members


def _said(text: str, token: re.Match[str], previous: int, following: int) -> tuple[int, bool, int]:
    """How strongly a letter is stated, whether beside others, and how strongly the words before it announce it."""
    start, end = token.span()
    before = _own_words(text[max(previous, start - _NEAR) : start]) if previous else text[max(0, start - _NEAR) : start]
    behind = text[end : min(following, end + _NEAR)]
    cue, said = cue_before(before), said_behind(behind)
    if cue == DENIED or said == NO:
        return DENIED, False, cue
    if cue == DOUBTED or said == UNSURE:
        return DOUBTED, False, cue
    more = MORE.search(before) is not None or (said == YES and behind.lstrip()[:1] == "も")
    strength = STRONG if cue == STRONG else _standing(text, start, end)
    return max(strength, cue, WEAK if said == YES else 0), more, cue


def _own_words(before: str) -> str:
    """What stands between two letters without the end of a line that is about the first: "C) 正解" above "D) ..."."""
    line, there, behind = before.rpartition("\n")
    last = line.rstrip()
    if not there or behind.strip(_WRAPPING) or not last or "\n" in last or _ANNOUNCING.search(last):
        return before
    return behind


def _standing(text: str, start: int, end: int) -> int:
    """What the place of a letter makes of it: STRONG as the first or last line or the last sentence, WEAK as a line."""
    line_start, line_end = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    if text[end:line_end].strip(_WRAPPING):
        return 0
    before = text[line_start:start].rstrip(_WRAPPING)
    if not before:
        return STRONG if line_start == 0 or line_end == len(text) else WEAK
    # "B.能面" is no sentence with another behind it.
    ends_sentence = text[line_start:start].rstrip(_OPENING)[-1:] in _STOPS
    if line_end < len(text) or not ends_sentence or len(before.strip(_WRAPPING)) <= 1:
        return 0
    # A refusal that goes on with "A" was cut.
    return 0 if refuses(text[line_start:start]) else STRONG
