"""Principles that a model writes for one prompt, in place of those of the bank (section 4.1, with ``generated``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from paperhooks_sso.data.faults import writable
from paperhooks_sso.data.features import STOP
from paperhooks_sso.data.principles import Principle

__all__ = ["principle_question", "written_principle"]

_EXAMPLES: Final = (
    (
        "How long do I have to boil an egg?", "Accuracy",
        "Give the minutes for soft, medium and hard eggs, say what they depend on, and name the starting temperature.",
        "Give one number without saying for which egg, mix up minutes and seconds, and invent a rule about the shell.",
    ),
    (
        "Write an invitation to my daughter's fifth birthday.", "Engagement",
        "Speak to the children themselves, name something that they can look forward to, and let it sound like a game.",
        "List date and place like a notice of an office, mention what is forbidden, and do not address any child.",
    ),
    (
        "Why is the moon sometimes seen in daylight?", "Comprehensiveness",
        "Explain orbit, brightness and the angle to the sun, say when in the month it is seen, and correct the belief "
        "that it belongs to the night.",
        "Name its brightness alone, leave out the orbit, and stop before saying when it can be seen.",
    ),
)  # fmt: skip


def principle_question(question: str, principle: Principle) -> str:
    """A text to be continued, without chat template: worked examples, then question and feature."""
    head = (
        "For a query and a feature, write how a good answer to this very query shows the feature, and how a bad one "
        f"lacks it, as JSON.\n{STOP}"
    )
    worked = [
        f"Query: {asked}\nFeature: {feature}\nJSON: {json.dumps({'good': good, 'bad': bad})}\n{STOP}"
        for asked, feature, good, bad in _EXAMPLES
    ]
    return "\n".join([head, *worked, f"Query: {' '.join(question.split())}\nFeature: {principle.feature}\nJSON:"])


def written_principle(reply: str, principle: Principle) -> Principle:
    """The principle with the texts that a reply gives for it; as it was where the reply gives none that can be
    written.

    Read is what lies between the first ``{`` and the last ``}`` of the reply's first part; of lists the first entry.
    ``source`` tells which it was.
    """
    text = reply.partition(STOP)[0]
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        found = None
    good, bad = (_text(found, key) for key in ("good", "bad"))
    if not good or not bad or good == bad or not writable(good + bad):
        return principle
    return replace(principle, good=good, bad=bad, source="generated")


def _text(found: Any, key: str) -> str:
    """The text under a key, whatever the key's case; empty where there is none."""
    if not isinstance(found, Mapping):
        return ""
    value = next((value for name, value in found.items() if str(name).strip().casefold() == key), None)
    if isinstance(value, list):
        value = next(iter(value), None)
    return " ".join(value.split()) if isinstance(value, str) else ""
