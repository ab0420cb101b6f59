"""From a caption to lemmas: the words of a sentence in their base form, as CHAIR looks for objects in them.

The default needs no other package: a small tokeniser and rules for English plurals. It is NOT number-compatible with
the published script, which uses nltk's tokeniser, tagger and WordNet: it knows no parts of speech and takes every word
for a noun, so lengths and now and then a mention differ. For comparison with published numbers use :data:`NLTK`, which
needs the extra ``paperhooks-hallucination[nltk]`` and nltk's data files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean, require

__all__ = [
    "ANALYSERS",
    "NLTK",
    "PLAIN",
    "Analyser",
    "analyser",
    "lemmatize",
    "nltk_lemmatize",
    "nltk_tokenize",
    "singular",
    "tokenize",
]

_TOKEN: Final = re.compile(r"n't|'(?:s|re|ve|ll|d|m)\b|[^\W_]+?(?=n't)|[^\W_]+(?:-[^\W_]+)*|[^\w\s]")


def _words(text: str) -> list[str]:
    return text.split()


#: Plurals that no rule makes; the right side is what WordNet's lemmatiser gives, "people" for "people" included.
_IRREGULAR: Final = dict(
    pair.split(":")
    for pair in _words(
        """
        men:man children:child feet:foot teeth:tooth geese:goose mice:mouse oxen:ox knives:knife wives:wife
        lives:life pocketknives:pocketknife leaves:leaf loaves:loaf shelves:shelf halves:half calves:calf
        wolves:wolf scarves:scarf thieves:thief gases:gas tvs:tv movies:movie cookies:cookie brownies:brownie
        pies:pie ties:tie neckties:necktie bowties:bowtie selfies:selfie smoothies:smoothie hoodies:hoodie
        doggies:doggie collies:collie shoes:shoe horseshoes:horseshoe toes:toe canoes:canoe
        """
    )
)
#: Words that end like a plural and are none, or have no singular.
_SINGULAR: Final = frozenset(
    _words(
        """
        abdomen across acumen always analysis atlas basis besides bias binoculars canvas chassis christmas clothes
        debris does downstairs eyeglasses goes indoors iris jeans news oasis omen outdoors overseas pancreas pants
        paris perhaps ramen regimen scissors semen series shorts sometimes species specimen sunglasses surroundings
        swiss tennis texas this towards trellis trousers upstairs whereas
        """
    )
)


def tokenize(text: str) -> list[str]:
    """Lower-case words and single punctuation marks; "don't" becomes "do" and "n't", "dog's" becomes "dog" and "'s".

    >>> tokenize("A well-fed dog, isn't it?")
    ['a', 'well-fed', 'dog', ',', 'is', "n't", 'it', '?']
    """
    found: list[str] = _TOKEN.findall(text.lower().replace("\u2019", "'"))
    return found


def singular(word: str) -> str:
    """The singular of a lower-case English noun, by rule; verbs that end in s lose it too.

    >>> [singular(word) for word in ("dogs", "benches", "ponies", "glasses", "women", "tennis")]
    ['dog', 'bench', 'pony', 'glass', 'woman', 'tennis']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 3 or word in _SINGULAR:
        return word
    if word.endswith("men"):
        return word[:-2] + "an"
    if not word.endswith("s") or word.endswith(("ss", "us")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses", "zzes", "oes", "buses")) else word[:-1]


def lemmatize(tokens: Sequence[str]) -> list[str]:
    """The tokens of one caption with plural nouns made singular."""
    return [singular(token) for token in tokens]


def nltk_tokenize(text: str) -> list[str]:
    """Tokens as the published script makes them: nltk's ``word_tokenize`` of the lower-case caption.

    :raises MissingExtra: without nltk.
    :raises DataError: without its data (the message names what to download).
    """
    nltk = _nltk()
    return [str(token) for token in _with_data(nltk.word_tokenize, text.lower())]


def nltk_lemmatize(tokens: Sequence[str]) -> list[str]:
    """Lemmas as the published script makes them: WordNet's, by the part of speech that nltk's tagger finds.

    Raises what :func:`nltk_tokenize` raises.
    """
    nltk = _nltk()
    lemmatizer = nltk.stem.WordNetLemmatizer()
    tagged = _with_data(nltk.pos_tag, list(tokens))
    # WordNet's letters; whatever is no adjective, verb or adverb is looked up as a noun.
    parts = {"J": "a", "V": "v", "R": "r"}
    return [str(_with_data(lemmatizer.lemmatize, token, parts.get(tag[:1], "n"))) for token, tag in tagged]


@dataclass(frozen=True)
class Analyser:
    """Makes lemmas of a caption: a tokeniser, and a lemmatiser that sees a caption's tokens in order."""

    tokenize: Callable[[str], Sequence[str]]
    lemmatize: Callable[[Sequence[str]], Sequence[str]]

    def __call__(self, caption: str) -> list[str]:
        """The lemmas of a caption, in order."""
        return list(self.lemmatize(self.tokenize(caption)))


PLAIN: Final = Analyser(tokenize, lemmatize)
NLTK: Final = Analyser(nltk_tokenize, nltk_lemmatize)
#: By name, for options and the command line.
ANALYSERS: Final = {"plain": PLAIN, "nltk": NLTK}


def analyser(name: str) -> Analyser:
    """An analyser by name; raises DataError for an unknown one."""
    if name not in ANALYSERS:
        raise DataError(f"there are no lemmas of the kind {name!r}; {did_you_mean(name, ANALYSERS)}")
    return ANALYSERS[name]


def _nltk() -> Any:
    return require("nltk", "paperhooks-hallucination[nltk]", "to read captions as the published script does")


def _with_data(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except LookupError as error:  # nltk's own way of saying that a data file is missing
        raise DataError(
            "nltk lacks data files; run: python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"
        ) from error
