"""The words of a question's options, and where a reply has them.

A private character stands for each option in the texts that :meth:`OptionWords.spoken` gives, so that what is said of
an option is read as if its letter stood there.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from typing import Final

from paperhooks_jmmmu.answers.plain import plain, without_markup

__all__ = ["COPULA", "FIRST_SYMBOL", "LISTED", "OptionWords"]

#: What a Japanese sentence ends with that has nothing but its answer.
COPULA: Final = "です|である|だ|になります|となります|を選びます|だ?と思います|に該当します"
#: The private character of the first option; the others follow it.
FIRST_SYMBOL: Final = 0xE000
#: A line "A. text".
LISTED: Final = re.compile(r"^[\s*•・(\[-]{0,9}([A-Z])\s?[.):、】\]]++[ \t]*+(.*)$", re.MULTILINE)

#: Options that are spelt with a space between Japanese words.
_WIDE_SPACE: Final = re.compile(r"(?<=[^\x00-\x7f])[ \t]+(?=[^\x00-\x7f])")
_ONE_LETTER: Final = re.compile(r"[A-Za-z]")
#: A letter that an option has as a word: 企業A, ビタミンC, Type B.
_HAS_LETTER: Final = re.compile(r"(?<![A-Za-z0-9])[A-Z](?![A-Za-z0-9])")
_ALNUM: Final = re.compile(r"[A-Za-z0-9]")
#: What the comparison of an option with a text passes over, everywhere and at both ends.
_NO_MATTER: Final = re.compile(r"[\s\"'“”‘’「」『』【】*_]+|,(?=\d{3})")
_ENDS: Final = "()[]{}<>.,、。:;!?…–—=→"
#: The first character that it does not pass over.
_FIRST: Final = re.compile(rf"[\s\"'“”‘’「」『』【】*_{re.escape(_ENDS)}]*+(.)")
#: Between a letter and its option, and between an option and the next letter, in a row of all of them.
_IS: Final = r"(?:[.:)、\s]|は|が|is|an|a|the){1,6}"
_NEXT: Final = r"(?:[\s、,。;./・(-]|である|であり|で|です|を[示表指][すし]|and){1,6}"
#: Behind an option that is the whole reply.
_SENTENCE_END: Final = re.compile(rf"(?:{COPULA})[。.]?$")


class OptionWords:
    """The words of the options, prepared for a question.

    :param options: as the data has them.
    """

    def __init__(self, options: tuple[str, ...]) -> None:
        self._words = [_WIDE_SPACE.sub("", without_markup(plain(option))).strip() for option in options]
        self._keys = [_key(word) for word in self._words]
        self._firsts = {key[0] for key in self._keys if key}
        self._letters = {chr(ord("A") + n): word for n, word in enumerate(self._words) if _ONE_LETTER.fullmatch(word)}
        #: Whether an option has a letter among its words, which a reply may repeat.
        self.lettered = any(len(word) > 1 and _HAS_LETTER.search(word) for word in self._words)

    @staticmethod
    @lru_cache(maxsize=2048)
    def of(options: tuple[str, ...]) -> OptionWords:
        """The words of ``options``, prepared once."""
        return OptionWords(options)

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
        return chr(FIRST_SYMBOL + self._keys.index(key)) if key in self._keys else found[0]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = [each for each in self._words if each and not _ONE_LETTER.fullmatch(each)]
        words.sort(key=len, reverse=True)
        return re.compile("|".join(map(_bounded, words)) or "(?!)", re.IGNORECASE)

    def without_list(self, text: str) -> str:
        """The text without the lines that only repeat two or more of the options."""
        listed = [each for each in LISTED.finditer(text) if self._is_option(each)] if "\n" in text else []
        if len({each[1] for each in listed}) < 2:
            return text
        for each in reversed(listed):
            text = text[: each.start()] + text[each.end() :]
        return text

    def without_all(self, text: str) -> str:
        """The text without a row of all letters with their options: "A is a mask, B a print, ..." chooses none."""
        return self._row.sub("", text) if len(text) > self._shortest_row else text

    @cached_property
    def _shortest_row(self) -> int:
        return sum(map(len, self._words)) + 2 * len(self._words)

    @cached_property
    def _row(self) -> re.Pattern[str]:
        pairs = [rf"{chr(ord('A') + n)}{_IS}{_bounded(word)}" for n, word in enumerate(self._words) if word]
        if len(pairs) < max(2, len(self._words)):
            return re.compile("(?!)")
        return re.compile(rf"(?<![A-Za-z]){_NEXT.join(pairs)}(?:{COPULA})?(?:[。.;\s]|$)", re.IGNORECASE)

    def as_one(self, text: str) -> str:
        """The text without options behind their own letter in a sentence that goes on: B(浮世絵)は is Bは."""
        return self._doubled.sub(lambda found: found[0][0], text) if len(text) > self._shortest_double else text

    @cached_property
    def _shortest_double(self) -> int:
        return 3 + min(map(len, self._words), default=0)

    @cached_property
    def _doubled(self) -> re.Pattern[str]:
        pairs = [(chr(ord("A") + n), _bounded(word)) for n, word in enumerate(self._words) if word]
        either = (
            rf"{letter}(?:\s?[(「『]{own}[)」』]|[)）]?(?:の|[.:]?\s?){own})(?=[)」』\"\s]{{0,3}}[ぁ-ん])"
            for letter, own in pairs
        )
        return re.compile(rf"(?<![A-Za-z])(?:{'|'.join(either) or '(?!)'})")

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
