"""Which features matter for a prompt: asked of the model itself, read tolerantly, filled up at random (section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

__all__ = ["STOP", "can_be_named", "feature_question", "picked_features"]

#: What ends an answer in the worked examples.
STOP: Final = "###"
#: From how many features drawn at random the missing ones are taken.
_DRAWN: Final = 4
_EXAMPLES: Final = (
    ("How do I tell whether mushrooms that I found in the wood can be eaten?", ("Safety", "Accuracy", "Helpfulness")),
    ("Write a short poem about the first snow in a harbour town.", ("Literariness", "Engagement")),
    ("If all tickets are sold in pairs and 137 people came, how can that be?", ("Logicality", "Comprehensiveness")),
)


def feature_question(question: str, features: Sequence[str]) -> str:
    """A text to be continued, without chat template: worked examples, then the question.

    :param question: what the user asks. :param features: names to choose among; the examples show those of them alone.
    """
    shown = [(asked, [name for name in names if name in features]) for asked, names in _EXAMPLES]
    worked = [f"Query: {asked}\nFeatures: {', '.join(names or features[:2])}\n{STOP}" for asked, names in shown]
    head = f"Which of the features {', '.join(features)} matter most in a good answer to the query?\n{STOP}"
    return "\n".join([head, *worked, f"Query: {' '.join(question.split())}\nFeatures:"])


def picked_features(reply: str, features: Sequence[str], number: int, random: Random) -> list[str]:
    """So many different features: those that the reply names, in random order, then others at random.

    :param reply: what the model wrote: names between commas; whatever else there is counts for nothing.
    :param number: how many; all of them where there are fewer. :param random: decides order and what is filled in.
    """
    known = {name.casefold(): name for name in features}
    named = [known[word] for word in map(str.casefold, _words(reply)) if word in known]
    chosen = list(dict.fromkeys(named))
    random.shuffle(chosen)
    others = [name for name in features if name not in chosen]
    drawn = random.sample(others, min(len(others), max(_DRAWN, number)))
    return [*chosen, *drawn][:number]


def can_be_named(feature: str) -> bool:
    """Whether a reply can name a feature: it is read as one name between commas."""
    return bool(feature) and _words(feature) == [feature]


def _words(reply: str) -> list[str]:
    first = reply.partition(STOP)[0].strip().partition("\n")[0]
    return [each.strip(" .") for each in first.split(",")]
