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
from functools import cached_property, lru_cache
from typing import Final, NamedTuple

from paperhooks_jmmmu.answers.choices import LetterChoice, letters_of
from paperhooks_jmmmu.answers.phrases import NO, STRONG, UNSURE, WEAK, YES, cue_before, said_behind
from paperhooks_jmmmu.answers.plain import boxed, plain, without_markup, without_thought

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
    rf"[\W_]*+(?:(?:選択肢|記号|option|choice)[\W_]*+)?([a-z])[\W_]*+(?:(?:{_COPULA})[\W_]*+)?", re.IGNORECASE
)
#: The common reply of one line, told at once: a cue and a letter.
_STATED: Final = re.compile(
    r"[\s*#]*+(?:(?:よって|したがって|the)[、,]?\s?)?(?:(?:最終|correct |final )?(?:答え|正解|正答|回答|解答|answer)|"
    rf"選択肢|記号|option)\s?(?:は|is|:|：)?、?\s?[*(（「『\[【]*((?-i:[A-Z]))[*)）」』\]】]*(?:{_COPULA})?[。.]?\s*",
    re.IGNORECASE,
)
#: A letter and a text, which may be its option.
_OWN_OPTION: Final = re.compile(r"\s*[(（]?([A-Z])(?:[.:：．、)）]\s?| )(.*\S)\s*")

#: A letter that is a word of its own: not in a word, a number, A-type, A社 or Aタイプ. What may not stand before it is
#: looked at behind it, since a search for a letter is fast.
_LETTER: Final = re.compile(
    r"([A-Z])(?<![A-Za-z0-9_\\].)(?<![A-Za-z0-9]['’-].)(?<![a-z0-9]/.)"
    r"(?![A-Za-z0-9_^]|['’][A-Za-z]|-[A-Za-z0-9]|/[a-z0-9]|[ァ-ヶー々]|(?![正最適選以番案])[一-龥])"
)
_SMALL_LETTER: Final = re.compile(
    r"([a-z])(?<![A-Za-z0-9_'’/.\\-].)(?=[)\]:。、」』】]|\.(?!\w)|\s*$|です|だ|である|\s*\n)"
)
_SYMBOL: Final = re.compile("([\ue000-\ue019])")
#: Behind "A" and "I": the article of a noun, or the pronoun of a verb.
_ARTICLE: Final = re.compile(
    r"[ \n](?!(?:is|was|because|since|as|and|or|but|seems|would|should|must|best|correctly|matches|fits|due|for|in|"
    r"which|also|then|are|instead|has|does|shows|represents|describes|to|with|on)\b)[a-z]"
)
#: Between two letters that are named together.
_TOGETHER: Final = re.compile(
    r"[\s,、/・&+~〜()\[\]「」『』【】\"'→-]*(?:(?:と|か|や|and/or|and|or|または|又は|もしくは|あるいは|及び|および|かつ)[\s,、(「\[]*)?"
    r"(?:選択肢|options?|choice|answer)?[\s(「\[]*",
    re.IGNORECASE,
)

#: A line "A. text", and the beginning of a reply "A. ".
_LISTED: Final = re.compile(r"^[\s*•・(\[-]{0,9}([A-Z])\s?[.):、】\]]++[ \t]*+(.*)$", re.MULTILINE)
_LEADING: Final = re.compile(r"[\s\"'“「『(【\[<-]*([A-Z])(?=[\s\"'”」』)】\]>.:、,–—(「-]|$)")
_LABEL: Final = re.compile(r"(?:選択肢|記号|番号|option|choice|[(「【\[])\s?$", re.IGNORECASE)
#: Options that are spelt with a space between Japanese words.
_WIDE_SPACE: Final = re.compile(r"(?<=[^\x00-\x7f])[ \t]+(?=[^\x00-\x7f])")
_ONE_LETTER: Final = re.compile(r"[A-Za-z]")
_ALNUM: Final = re.compile(r"[A-Za-z0-9]")
#: What the comparison of an option with a text passes over, everywhere and at both ends.
_NO_MATTER: Final = re.compile(r"[\s\"'“”‘’「」『』【】*_]+|,(?=\d{3})")
_ENDS: Final = "()[]{}<>.,、。:;!?…–—=→"
#: The first character that it does not pass over.
_FIRST: Final = re.compile(rf"[\s\"'“”‘’「」『』【】*_{re.escape(_ENDS)}]*+(.)")
#: Behind an option that is the whole reply.
_SENTENCE_END: Final = re.compile(rf"(?:{_COPULA})[。.]?$")
_FIRST_SYMBOL: Final = 0xE000
_OPENING: Final = " \t\"'“‘「『(【[<{"
_WRAPPING: Final = " \t\"'“”‘’「」『』()【】[]{}<>.,:;!?、。…–—_~-"
_STOPS: Final = ("。", ".", "!", "?")
#: Of more letters than twice this, the first and the last are looked at.
_MOST: Final = 150


_NONE: Final[frozenset[str]] = frozenset()


class _Mention(NamedTuple):
    """Letters that a text names together, and how strongly it states them."""

    letters: frozenset[str]
    denied: frozenset[str]
    strength: int


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
    if (found := _WHOLE.fullmatch(response) or _STATED.fullmatch(response)) and found[1].isascii():
        return _in_range(found[1].upper(), letters, "letter")
    found = _OWN_OPTION.fullmatch(response)
    if found and found[1] in letters and options[letters.index(found[1])] == found[2]:
        return LetterChoice(found[1], "leading")
    text = without_thought(plain(response))
    box = boxed(text)
    if box is not None:
        choice = _read(without_markup(box), letters, tuple(options))
        if choice.letter or choice.rule == SEVERAL:
            return LetterChoice(choice.letter, "box" if choice.letter else SEVERAL)
    return _read(without_markup(text).replace("\\boxed", ""), letters, tuple(options))


def _in_range(letter: str, letters: str, rule: str) -> LetterChoice:
    return LetterChoice(letter, rule) if letter in letters else LetterChoice(None, OUTSIDE)


def _read(text: str, letters: str, options: tuple[str, ...]) -> LetterChoice:
    words = _Words.of(options)
    text = words.without_letters(words.without_list(text)).strip()
    if found := _WHOLE.fullmatch(text):
        return _in_range(found[1].upper(), letters, "letter")
    if letter := words.exact(text):
        return LetterChoice(letter, "option")
    mentions = _mentions(text, _LETTER) or _mentions(text, _SMALL_LETTER)
    stated = _last_stated(mentions, letters) if mentions else None
    if not stated or stated.strength < STRONG:
        leading = _leading(text, mentions, letters) if mentions else None
        if leading and words.owns(leading, text):
            return LetterChoice(leading, "leading")
        spoken = words.spoken(text)
        told = _mentions(spoken, _SYMBOL)
        if not told and not mentions:
            return LetterChoice(None, NOTHING)
        by_words = _last_stated(told, letters)
        if by_words and (not stated or by_words.strength > stated.strength):
            return _settled(by_words, letters, "option statement")
        if not stated:
            short = len(text) <= _SHORT
            if leading:
                return LetterChoice(leading, "leading")
            if letter := _only(told, letters):
                return (
                    LetterChoice(letter, "option mention")
                    if short or words.telling(letter)
                    else LetterChoice(None, NOTHING)
                )
            if (letter := _only(mentions, letters)) and (short or _labelled(text, letter)):
                return LetterChoice(letter, "mention")
            return _nothing(mentions, told, letters)
    return _settled(stated, letters, "statement")


def _settled(mention: _Mention, letters: str, rule: str) -> LetterChoice:
    if len(mention.letters) > 1:
        return LetterChoice(None, SEVERAL)
    return _in_range(min(mention.letters), letters, rule)


def _nothing(mentions: Sequence[_Mention], told: Sequence[_Mention], letters: str) -> LetterChoice:
    named = frozenset().union(*(each.letters for each in (*mentions, *told)))
    if len(named & set(letters)) > 1:
        return LetterChoice(None, SEVERAL)
    return LetterChoice(None, OUTSIDE if named - set(letters) else NOTHING)


def _mentions(text: str, pattern: re.Pattern[str]) -> list[_Mention]:
    """The letters of a text, in order, those that are named together as one."""
    tokens = [each for each in pattern.finditer(text) if not _is_article(text, each)]
    if len(tokens) > 2 * _MOST:
        tokens = tokens[:_MOST] + tokens[-_MOST:]
    found: list[list[tuple[str, int]]] = []
    for number, token in enumerate(tokens):
        previous = tokens[number - 1].end() if number else 0
        following = tokens[number + 1].start() if number + 1 < len(tokens) else len(text)
        strength = _strength(text, token, previous, following)
        near = number and token.start() - previous <= _NEAR // 2
        if near and _TOGETHER.fullmatch(text, previous, token.start()):
            found[-1].append((_letter_of(token[1]), strength))
        else:
            found.append([(_letter_of(token[1]), strength)])
    return [_together(each) for each in found]


def _together(members: Sequence[tuple[str, int]]) -> _Mention:
    if len(members) == 1:
        ((letter, strength),) = members
        only = frozenset((letter,))
        return _Mention(only, _NONE, strength) if strength >= 0 else _Mention(_NONE, only, strength)
    # "A and B are wrong" denies both; "the answer is A, B is wrong" does not.
    if members[-1][1] < 0 and members[0][1] <= 0:
        members = [(letter, -1) for letter, _ in members]
    return _Mention(
        frozenset(letter for letter, strength in members if strength >= 0),
        frozenset(letter for letter, strength in members if strength < 0),
        max(strength for _, strength in members),
    )


def _letter_of(token: str) -> str:
    return chr(ord("A") + ord(token) - _FIRST_SYMBOL) if ord(token) >= _FIRST_SYMBOL else token.upper()


def _is_article(text: str, token: re.Match[str]) -> bool:
    return (
        token[1] in "AI"
        and _ARTICLE.match(text, token.end()) is not None
        and not _LABEL.search(text, max(0, token.start() - 10), token.start())
    )


def _strength(text: str, token: re.Match[str], previous: int, following: int) -> int:
    start, end = token.span()
    cue = cue_before(text[max(previous, start - _NEAR) : start])
    said = said_behind(text[end : min(following, end + _NEAR)])
    if cue < 0 or said == NO:
        return -1
    if said == UNSURE:
        return 0
    return STRONG if cue == STRONG or _stands_alone(text, start, end) else max(cue, WEAK if said == YES else 0)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether a letter is the first or last line, or the last sentence."""
    line_start, line_end = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    if text[end:line_end].strip(_WRAPPING):
        return False
    before = text[line_start:start].rstrip(_WRAPPING)
    if not before:
        return line_start == 0 or line_end == len(text)
    # "B.能面" is no sentence with another behind it.
    ends_sentence = text[line_start:start].rstrip(_OPENING)[-1:] in _STOPS
    return line_end == len(text) and ends_sentence and len(before.strip(_WRAPPING)) > 1


def _last_stated(mentions: Sequence[_Mention], letters: str) -> _Mention | None:
    """The strongest statement; the last of equal ones, and anything after one of several letters."""
    best, known = None, frozenset(letters)
    for each in mentions:
        if best and best.strength == WEAK and best.letters <= each.denied:
            best = None
        weak_and_outside = each.strength == WEAK and not each.letters & known
        if each.strength <= 0 or weak_and_outside or (len(each.letters) > 2 and each.letters >= known):
            continue
        if not best or each.strength >= best.strength or len(best.letters) > 1:
            best = each
    return best


def _only(mentions: Sequence[_Mention], letters: str) -> str | None:
    """The only letter that is named and not denied."""
    denied = frozenset[str]().union(*(each.denied for each in mentions))
    named = frozenset[str]().union(*(each.letters for each in mentions)) & set(letters)
    named = named - denied if len(named) > 1 else named
    return min(named) if len(named) == 1 else None


def _leading(text: str, mentions: Sequence[_Mention], letters: str) -> str | None:
    """The letter that a reply begins with, unless more lines begin with others."""
    found = _LEADING.match(text)
    if not found or found[1] not in letters:
        return None
    if mentions[0].letters != {found[1]}:
        return None
    return found[1] if {found[1]} >= {each[1] for each in _LISTED.finditer(text)} else None


def _labelled(text: str, letter: str) -> bool:
    return any(_LABEL.search(text, max(0, i - 10), i) for i in _places(text, letter))


def _places(text: str, letter: str) -> list[int]:
    return [each.start() for each in _LETTER.finditer(text) if each[1] == letter][:_MOST]


class _Words:
    """The words of a question's options, and where a text has them."""

    def __init__(self, options: tuple[str, ...]) -> None:
        self._words = [_WIDE_SPACE.sub("", without_markup(plain(option))).strip() for option in options]
        self._keys = [_key(word) for word in self._words]
        self._firsts = {key[0] for key in self._keys if key}
        self._letters = {chr(ord("A") + n): word for n, word in enumerate(self._words) if _ONE_LETTER.fullmatch(word)}

    @staticmethod
    @lru_cache(maxsize=2048)
    def of(options: tuple[str, ...]) -> _Words:
        """The words of ``options``, prepared once."""
        return _Words(options)

    def exact(self, text: str) -> str | None:
        """The letter of the option that is the text, up to spaces, case and a copula."""
        first = _FIRST.match(text)
        if not first or first[1].casefold()[0] not in self._firsts:
            return None
        sentence = _SENTENCE_END.search(text)
        for each in (text, text[: sentence.start()]) if sentence else (text,):
            if (key := _key(each)) and self._keys.count(key) == 1:
                return chr(ord("A") + self._keys.index(key))
        return None

    def owns(self, letter: str, text: str) -> bool:
        """Whether the first line is the letter and its option."""
        own = self._keys[ord(letter) - ord("A")]
        return bool(own) and _key(text.partition("\n")[0].partition(letter)[2]) == own

    def telling(self, letter: str) -> bool:
        """Whether an option is long enough to be an answer wherever it stands."""
        word = self._words[ord(letter) - ord("A")]
        return len(word) > 1 and not word.isdigit()

    def spoken(self, text: str) -> str:
        """The text with a private character in place of each option, the longest first."""
        text = _WIDE_SPACE.sub("", text) if " " in text or "\t" in text else text
        return self._pattern.sub(self._symbol, text)

    def _symbol(self, found: re.Match[str]) -> str:
        key = _key(found[0])
        return chr(_FIRST_SYMBOL + self._keys.index(key)) if key in self._keys else found[0]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = [each for each in self._words if each and not _ONE_LETTER.fullmatch(each)]
        words.sort(key=len, reverse=True)
        return re.compile("|".join(map(_bounded, words)) or "(?!)", re.IGNORECASE)

    def without_list(self, text: str) -> str:
        """The text without the lines that only repeat two or more of the options."""
        listed = [each for each in _LISTED.finditer(text) if self._is_option(each)] if "\n" in text else []
        if len({each[1] for each in listed}) < 2:
            return text
        for each in reversed(listed):
            text = text[: each.start()] + text[each.end() :]
        return text

    def without_letters(self, text: str) -> str:
        """The text without options that are letters themselves, where they stand behind their own: "D. C" is D."""
        return self._own.sub(lambda found: found[found.lastgroup or 0], text) if self._letters else text

    @cached_property
    def _own(self) -> re.Pattern[str]:
        return re.compile(
            "|".join(
                rf"(?<![A-Za-z])(?P<{letter}>{letter})(?:\)?\s?[.:、)(]\s?|\s){own}(?![A-Za-z0-9])\)?"
                for letter, own in self._letters.items()
            )
        )

    def _is_option(self, line: re.Match[str]) -> bool:
        number = ord(line[1]) - ord("A")
        return number < len(self._keys) and _key(line[2]) == self._keys[number]


def _key(text: str) -> str:
    return _NO_MATTER.sub("", text).strip(_ENDS).casefold()


def _bounded(word: str) -> str:
    """A pattern of the word, which is no part of a longer English word or number."""
    left = r"(?<![A-Za-z0-9])(?<!\d[.,])" if _ALNUM.match(word[0]) else ""
    right = r"(?![A-Za-z0-9]|[.,]\d)" if _ALNUM.match(word[-1]) else ""
    return left + r"\s+".join(map(re.escape, word.split())) + right
