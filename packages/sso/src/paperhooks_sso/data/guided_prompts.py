"""A prompt with the principles that its good and its bad answer are asked to follow (section 4.1, steps 1 to 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from paperhooks.io import hash_json

from paperhooks_sso.algorithm import Group
from paperhooks_sso.data.cut_prompts import CutPrompt, cut_conversation
from paperhooks_sso.data.features import picked_features
from paperhooks_sso.data.principles import CONCISION, Principle, PrincipleBank, system_message
from paperhooks_sso.data.prompts import ChatFormat, Conversation

__all__ = ["GuidedPrompt", "chosen_principles", "guided_prompt", "sample_seed"]

#: The largest seed of :class:`paperhooks.generation.Sampling`.
_SEEDS: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class GuidedPrompt:
    """What is asked of the model for one prompt.

    id
        Of the prompt.
    asked
        The prompt as far as the model can read it.
    principles
        Those of its good and bad answer.
    ids
        Token ids of x, x+ and x- by group.
    """

    id: str
    asked: CutPrompt
    principles: tuple[Principle, ...]
    ids: Mapping[Group, tuple[int, ...]]

    @property
    def good_system(self) -> str:
        """What asks for a good answer."""
        return system_message(self.principles, good=True)

    @property
    def bad_system(self) -> str:
        """What asks for a bad answer."""
        return system_message(self.principles, good=False)

    def record(self) -> dict[str, Any]:
        """As plain data, from which :meth:`from_record` makes it again."""
        conversation = self.asked.conversation
        return {
            "id": self.id,
            "messages": list(map(dict, conversation.messages)),
            "system": conversation.system,
            "turns_cut": self.asked.turns,
            "characters_cut": self.asked.characters,
            "principles": [
                {"feature": p.feature, "adjectives": list(p.adjectives), "good": p.good, "bad": p.bad,
                 "source": p.source}
                for p in self.principles
            ],
            **{f"{group}_prompt": list(ids) for group, ids in self.ids.items()},
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> GuidedPrompt:
        """From what :meth:`record` gave."""
        conversation = Conversation(record["id"], tuple(record["messages"]), record["system"])
        principles = [Principle(**{**each, "adjectives": tuple(each["adjectives"])}) for each in record["principles"]]
        groups: tuple[Group, ...] = ("plain", "good", "bad")
        ids = {group: tuple(record[f"{group}_prompt"]) for group in groups}
        asked = CutPrompt(conversation, record["turns_cut"], record["characters_cut"])
        return cls(record["id"], asked, tuple(principles), ids)


def sample_seed(seed: int, iteration: int | str, prompt: str, role: str) -> int:
    """The seed of one sample: it depends on nothing but these, whatever else is asked and in which order."""
    return int(hash_json([seed, iteration, prompt, role])[:16], 16) & _SEEDS


def chosen_principles(
    reply: str, bank: PrincipleBank, features: Sequence[str], number: int, concision: float, seed: int
) -> list[Principle]:
    """The principles of a prompt.

    :param reply: what the model said of the features that matter; "" draws them. :param features: those to choose
        among. :param number: how many. :param concision: with which probability Concision joins them.
    :param seed: decides what is drawn.
    """
    random = Random(hashlib.sha256(str(seed).encode()).digest())
    names = picked_features(reply, features, number, random)
    joins = random.random() < concision and CONCISION in bank and CONCISION not in names
    return [bank.pick(name) for name in (*names, *([CONCISION] if joins else []))]


def guided_prompt(
    prompt: Conversation, principles: Iterable[Principle], chat: ChatFormat, limit: int | None, *, cut: bool = True
) -> GuidedPrompt | None:
    """The prompt in its three forms, none with more than ``limit`` tokens; None where it would have to be dropped.

    :param cut: cut what is too long, alike in all three; False gives None for it.
    """
    told = tuple(principles)
    systems: dict[Group, str | None] = {
        "plain": None, "good": system_message(told, good=True), "bad": system_message(told, good=False),
    }  # fmt: skip

    def fits(conversation: Conversation) -> bool:
        lengths = (len(chat.prompt_ids(conversation, system)) for system in systems.values())
        return limit is None or all(length <= limit for length in lengths)

    asked = CutPrompt(prompt) if fits(prompt) else cut_conversation(prompt, fits) if cut else None
    if asked is None:
        return None
    ids = {group: tuple(chat.prompt_ids(asked.conversation, system)) for group, system in systems.items()}
    return GuidedPrompt(prompt.id, asked, told, ids)
