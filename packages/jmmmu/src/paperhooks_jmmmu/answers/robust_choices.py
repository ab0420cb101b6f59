"""Multiple-choice replies as a human reads them, in Japanese and English, without a model as judge.

In order: thoughts are dropped; a box or an ``<answer>`` is read alone; a reply that is one letter; the last sentence
that states an answer, by letter or by the option's words; a letter in front of its option; the options' words; the only
letter of a short reply. Nothing is guessed: refusals, several letters and letters of no option give None.

What a letter means comes from the words directly before it ("the answer is", 正解は) and from the clause behind it ("is
wrong", が正しい). An option's words are read as if its letter stood there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from paperhooks_jmmmu.answers.choices import LetterChoice, letters_of
from paperhooks_jmmmu.answers.mentions import LABEL, LETTER, SMALL_LETTER, SYMBOL, NamedLetters, mentions_in
from paperhooks_jmmmu.answers.option_words import COPULA, LISTED, OptionWords
from paperhooks_jmmmu.answers.phrases import STRONG, WEAK, refuses
from paperhooks_jmmmu.answers.plain import boxed, plain, without_markup, without_thought
from paperhooks_jmmmu.answers.turns import withdrawn

__all__ = ["NOTHING", "OUTSIDE", "SEVERAL", "parse_choice_robust"]

#: Rules of replies that have no letter, one of no option, or more than one.
NOTHING: Final = "none"
OUTSIDE: Final = "outside"
SEVERAL: Final = "several"

#: A letter that nothing is said of is an answer in a reply as short as this.
_SHORT: Final = 100
#: So many places of a letter are looked at for a label.
_MOST: Final = 150

#: A reply, or a line, that is a letter in any clothes, with a copula at most.
_WHOLE: Final = re.compile(
    rf"[\W_]*+(?:(?:選択肢|記号|option|choice)[\W_]*+)?(?P<letter>[a-z])[\W_]*+(?:(?:{COPULA})[\W_]*+)?", re.IGNORECASE
)
#: The common reply of one line, told at once: a cue and a letter.
_STATED: Final = re.compile(
    r"[\s*#]*+(?:(?:よって|したがって|ゆえに|以上より|so|thus|therefore|hence)[、,]?\s?)?(?:the )?"
    r"(?:(?P<told>(?:最終|correct |final )?(?:答え|正解|正答|回答|解答|answer))|(?:正しい)?選択肢|記号|"
    r"(?:correct )?option)"
    rf"\s?(?:は|is|:|：)?[、*]*\s?[*(（「『\[【]*(?P<letter>(?-i:[A-Z]))[*)）」』\]】]*(?:{COPULA}|が正しい(?:です)?)?[。.*]*\s*",
    re.IGNORECASE,
)
#: What a reply of more than a line may have to drop before its last line is read.
_HIDDEN: Final = re.compile(r"[<\\◁]|\[/?[tr]", re.IGNORECASE)
#: A letter and a text, which may be its option.
_OWN_OPTION: Final = re.compile(r"\s*[(（]?([A-Z])(?:[.:：．、)）]\s?| )(.*\S)\s*")
#: The beginning of a reply "A. ", and of one that goes on with small letters: "A is".
_LEADING: Final = re.compile(r"[\s\"'“「『(【\[<-]*([A-Z])(?=[\s\"'”」』)】\]>.:、,–—(「-]|$)(?P<goes_on>\s[a-z])?")
#: Behind the letter that a reply begins with: a sentence of its own, such as "It is not a mask" or そうではありません.
_OWN_SENTENCE: Final = re.compile(r"[\s\"'”」』)】\]]*[.:、]\s*(?!not\b)\w", re.IGNORECASE)
#: What makes of such a sentence one about the letter.
_VERDICT: Final = re.compile(
    r"誤|間違|違|不正解|不適|正し|正解|適切|該当|当て|答え|選|正答|[×✗✘❌]|"
    r"\b(?:in)?correct\b|\b(?:right|wrong|false|answer|option|choice|best|match|fit|unlikely|rule)",
    re.IGNORECASE,
)
#: The end of a reply that was cut within its sentence, which may have gone on to anything.
_CUT: Final = re.compile(
    r"(?:[ぁ-ん一-龥々ァ-ヶーA-Z](?:[はがをにの]|では|とは|ので|から、|、|,)|"
    r"\b(?:is|are|was|the|an?|of|and|or|to|in|with|by|for|as|that|which|because|but|since|while|first),?)\s*$"
)
#: A reply that begins to look at its options one by one, and its end if it came to one.
_BEGUN: Final = re.compile(
    r"\b(?:let's|let us|let me|i will|i'll|step 1)\b|まず|順に|\A\W*(?:選択肢|option )\s?A", re.IGNORECASE
)
_ENDED: Final = re.compile(r"[。.!?)」』\]]\s*$")


def parse_choice_robust(response: str, options: Sequence[str]) -> LetterChoice:
    """The letter that a human reads in a reply; None with the rule ``none``, ``several`` or ``outside``.

    >>> parse_choice_robust("**B**です。C は誤りです。", ["能面", "浮世絵", "漆器"]).letter
    'B'
    >>> parse_choice_robust("BとC", ["能面", "浮世絵", "漆器"])
    LetterChoice(letter=None, rule='several')
    """
    letters = letters_of(options)
    if len(response) == 1 and response in letters:
        return LetterChoice(response, "letter")
    if (found := _WHOLE.fullmatch(response) or _STATED.fullmatch(response)) and found["letter"].isascii():
        return _in_range(found["letter"].upper(), letters, "letter")
    found = _OWN_OPTION.fullmatch(response)
    if found and found[1] in letters and options[letters.index(found[1])] == found[2]:
        return LetterChoice(found[1], "leading")
    if letter := _last_line(response):
        return _in_range(letter, letters, "statement")
    text = without_thought(plain(response))
    box = boxed(text)
    if box is not None:
        choice = _read(without_markup(box), letters, tuple(options))
        if choice.letter or choice.rule == SEVERAL:
            return LetterChoice(choice.letter, "box" if choice.letter else SEVERAL)
    return _read(without_markup(text).replace("\\boxed", ""), letters, tuple(options))


def _last_line(response: str) -> str | None:
    """The letter that the last line of a longer reply states as its answer: no other statement outweighs it."""
    before, _, line = response.rpartition("\n")
    found = _STATED.fullmatch(line) if before else None
    return found["letter"] if found and found["told"] and not _HIDDEN.search(response) else None


def _in_range(letter: str, letters: str, rule: str) -> LetterChoice:
    return LetterChoice(letter, rule) if letter in letters else LetterChoice(None, OUTSIDE)


def _read(text: str, letters: str, options: tuple[str, ...]) -> LetterChoice:
    words = OptionWords.of(options)
    text = words.without_letters(words.without_all(words.without_list(text))).strip()
    if found := _WHOLE.fullmatch(text):
        return _in_range(found["letter"].upper(), letters, "letter")
    if letter := words.exact(text):
        return LetterChoice(letter, "option")
    # A letter in an option's words is no letter of the reply.
    spelt = words.spoken(text) if words.lettered else words.as_one(text)
    mentions = mentions_in(spelt, LETTER) or mentions_in(spelt, SMALL_LETTER)
    stated = _last_stated(mentions, letters) if mentions else None
    if stated and stated.strength == STRONG:
        return _settled(stated, letters, "statement")
    leading = _leading(text, mentions, letters) if mentions else None
    if leading and words.owns(leading, text):
        return LetterChoice(leading, "leading")
    spoken = words.spoken(text)
    told = mentions_in(spoken, SYMBOL)
    if SYMBOL.match(spoken) and _heads(spoken, told, 1):
        return LetterChoice(min(told[0].denied), "leading")
    if not told and not mentions:
        return LetterChoice(None, NOTHING)
    by_words = _last_stated(told, letters) if told else None
    if by_words and (not stated or by_words.strength > stated.strength):
        return _settled(by_words, letters, "option statement")
    if stated:
        return _settled(stated, letters, "statement")
    return _unstated(text, leading, mentions, told, letters, words)


def _unstated(
    text: str,
    leading: str | None,
    mentions: Sequence[NamedLetters],
    told: Sequence[NamedLetters],
    letters: str,
    words: OptionWords,
) -> LetterChoice:
    """The letter of a reply that states none: that it begins with, or names alone."""
    cut = (
        text[-1] == "?"
        or _CUT.search(text) is not None
        or (not _ENDED.search(text) and _BEGUN.search(text) is not None)
    )
    if leading and not (cut and leading == letters[0]):
        return LetterChoice(leading, "leading")
    short = len(text) <= _SHORT
    choice = LetterChoice(None, NOTHING)
    if letter := _only(told, letters):
        choice = LetterChoice(letter, "option mention") if short or words.telling(letter) else choice
    elif (letter := _only(mentions, letters)) and (short or _labelled(text, letter)):
        choice = LetterChoice(letter, "mention")
    else:
        choice = _nothing(mentions, told, letters)
    return LetterChoice(None, NOTHING) if choice.letter and (cut or refuses(text)) else choice


def _settled(mention: NamedLetters, letters: str, rule: str) -> LetterChoice:
    if len(mention.letters) > 1:
        return LetterChoice(None, SEVERAL)
    return _in_range(min(mention.letters), letters, rule)


def _nothing(mentions: Sequence[NamedLetters], told: Sequence[NamedLetters], letters: str) -> LetterChoice:
    named = frozenset[str]().union(*(each.letters for each in (*mentions, *told)))
    if len(named & set(letters)) > 1:
        return LetterChoice(None, SEVERAL)
    return LetterChoice(None, OUTSIDE if named - set(letters) else NOTHING)


def _last_stated(mentions: Sequence[NamedLetters], letters: str) -> NamedLetters | None:
    """The strongest statement; the last of equal ones, and anything after one of several letters."""
    best, known = None, frozenset(letters)
    for each in mentions:
        if best and best.strength == WEAK and best.letters <= each.denied:
            best = None
        weak_and_outside = each.strength == WEAK and not each.letters & known
        if each.strength <= 0 or weak_and_outside or (len(each.letters) > 2 and each.letters >= known):
            continue
        if best and each.more:
            best = each._replace(letters=best.letters | each.letters, strength=max(best.strength, each.strength))
        elif not best or each.strength >= best.strength or len(best.letters) > 1:
            best = each
    return best


def _only(mentions: Sequence[NamedLetters], letters: str) -> str | None:
    """The only letter that is named and not denied."""
    denied = frozenset[str]().union(*(each.denied for each in mentions))
    named = frozenset[str]().union(*(each.letters for each in mentions if each.strength >= 0)) & set(letters)
    withdrawn = frozenset[str]().union(*(each.letters for each in mentions if each.strength < 0))
    named = named - denied if len(named) > 1 else named
    return min(named) if len(named) == 1 and withdrawn <= named else None


def _leading(text: str, mentions: Sequence[NamedLetters], letters: str) -> str | None:
    """The letter that a reply begins with, unless more lines begin with others, or its sentence goes on to them."""
    found = _LEADING.match(text)
    if not found or found[1] not in letters:
        return None
    if _heads(text, mentions, found.end()):
        return found[1]
    if mentions[0].letters != {found[1]} or mentions[0].strength < 0:
        return None
    if found["goes_on"] and any(each.letters - {found[1]} for each in mentions):
        return None
    return found[1] if {found[1]} >= {each[1] for each in LISTED.finditer(text)} else None


def _heads(text: str, mentions: Sequence[NamedLetters], end: int) -> bool:
    """Whether the only letter of a text, which ends at ``end``, begins it and a sentence on something else follows."""
    alone = len(mentions) == 1 and len(mentions[0].denied) == 1
    goes_on = alone and _OWN_SENTENCE.match(text, end) is not None
    return goes_on and not _VERDICT.search(text, end) and not withdrawn(text, end)


def _labelled(text: str, letter: str) -> bool:
    places = [each.start() for each in LETTER.finditer(text) if each[1] == letter][:_MOST]
    return any(LABEL.search(text, max(0, place - 10), place) for place in places)
