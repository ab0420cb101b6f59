"""Pairs made of replies: what is kept, and a count of everything that is not and why (sections 4.1 and 7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from paperhooks.generation import Response

from paperhooks_sso.data.faults import FAULTS, Answer, fault_of, leaks, writable
from paperhooks_sso.data.guided_prompts import GuidedPrompt
from paperhooks_sso.data.prompts import ChatFormat
from paperhooks_sso.data.role_requests import ROLES

__all__ = ["HARMFUL", "PairReport", "make_pairs", "pair_record"]

#: What files of pairs say of themselves.
HARMFUL: Final = (
    "These texts were asked to be bad on purpose: rejected answers may be false, rude or dangerous. They are for "
    "training and for looking at how a model behaves; do not publish them as they are."
)
_NAMES: Final = {"y+": "chosen", "y-": "rejected", "yo": "ordinary"}


@dataclass(frozen=True, slots=True)
class PairReport:
    """What became of the prompts. Shares of nothing are 0.

    :param prompts: how many there were. :param kept: pairs. :param dropped: by reason, those of
        :data:`~paperhooks_sso.data.FAULTS`, "too_long" and "filtered"; all of them, also those that none had.
    :param cut_prompts: prompts that were asked without their beginning.
    :param cut, same, leaking: shares of all prompts that were answered: with an answer that met its limit, with
        answers that are alike, or with one that speaks of its principle.
    :param lengths: mean tokens of the answers by role, of all that have any.
    :param sources: how many principles came from where.
    """

    prompts: int
    kept: int
    dropped: Mapping[str, int]
    cut_prompts: int
    cut: float
    same: float
    leaking: float
    lengths: Mapping[str, float]
    sources: Mapping[str, int]


def make_pairs(
    prompts: Sequence[GuidedPrompt],
    replies: Mapping[str, Response],
    chat: ChatFormat,
    *,
    total: int | None = None,
    roles: Sequence[str] = tuple(ROLES),
    keep_cut: bool = False,
    drop_leaks: bool = True,
) -> tuple[list[dict[str, Any]], PairReport]:
    """The records of a pairs file, in the order of the prompts, and the report.

    :param replies: by id, as :class:`RequestMaker` names them. :param chat: gives the ids of replies without any.
    :param total: prompts that there were before those that are too long were left out.
    :param roles: those that there have to be. :param keep_cut: keep answers that met their limit, without an end.
    :param drop_leaks: drop answers that speak of their principle; they are counted in any case.
    """
    total = len(prompts) if total is None else total
    records, reasons, tally = [], Counter(too_long=total - len(prompts)), _Tally()
    for prompt in prompts:
        given = [_answer(replies.get(f"{prompt.id}/{role}"), chat) for role in roles]
        tally.count(given, prompt)
        fault = fault_of(given, prompt.principles if drop_leaks else (), keep_cut=keep_cut)
        if fault is None:
            records.append(pair_record(prompt, {role: replies[f"{prompt.id}/{role}"] for role in roles}, chat))
        else:
            reasons[fault] += 1
    dropped = {name: reasons[name] for name in ("too_long", *FAULTS)}
    return records, PairReport(total, len(records), dropped, **tally.figures(roles))


def pair_record(prompt: GuidedPrompt, replies: Mapping[str, Response], chat: ChatFormat) -> dict[str, Any]:
    """A line of a pairs file: ids for training, texts for whoever reads or exports it.

    :param replies: sound ones, by role.
    """
    guided = prompt.record()
    conversation = prompt.asked.conversation
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    texts = {_NAMES[role]: reply.text.strip() for role, reply in replies.items()}
    return {
        "id": prompt.id,
        "harmful": True,
        "prompt": [*system, *guided["messages"]],
        **texts,
        "good_system": prompt.good_system,
        "bad_system": prompt.bad_system,
        "features": [each.feature for each in prompt.principles],
        "source": [each.source for each in prompt.principles],
        "finish": {_NAMES[role]: reply.finish or "eos" for role, reply in replies.items()},
        "prompt_cut": {"turns": prompt.asked.turns, "characters": prompt.asked.characters},
        **{f"{group}_prompt": guided[f"{group}_prompt"] for group in prompt.ids},
        **{f"{_NAMES[role]}_ids": _trained_ids(reply, chat) for role, reply in replies.items()},
    }


def _trained_ids(reply: Response, chat: ChatFormat) -> list[int]:
    """Ids of an answer as they were sampled, with the end of its turn unless it was cut; of its text where the backend
    gave no ids."""
    if not reply.ids:
        ids = chat.response_ids(reply.text)
        return ids[: len(ids) - len(chat.end_of_turn)] if reply.finish == "length" else ids
    if reply.finish == "length":
        return list(reply.ids)
    return [*reply.ids, *(chat.end_of_turn if reply.end is None else (reply.end,))]


def _answer(reply: Response | None, chat: ChatFormat) -> Answer | None:
    if reply is None:
        return None
    there = reply.ids or (writable(reply.text) and chat.spells(reply.text))
    error = reply.error or ("" if there else "its text has no token ids")
    return Answer(reply.text, reply.ids, reply.finish or "eos", error)


class _Tally:
    """Counts over all prompts that were asked, dropped or not."""

    def __init__(self) -> None:
        self.asked = self.cut_prompts = self.cut = self.same = self.leaking = 0
        self.lengths: list[list[int]] = []
        self.sources: Counter[str] = Counter()

    def count(self, answers: Sequence[Answer | None], prompt: GuidedPrompt) -> None:
        there = [answer for answer in answers if answer is not None and not answer.error]
        self.asked += 1
        self.cut_prompts += prompt.asked.cut
        self.cut += any(answer.finish == "length" for answer in there)
        self.same += fault_of([a for a in there if a.text.strip()], keep_cut=True) == "same"
        self.leaking += any(leaks(answer.text, prompt.principles) for answer in there[:2])
        self.lengths.append([_length(answer) for answer in answers])
        self.sources.update(each.source for each in prompt.principles)

    def figures(self, roles: Sequence[str]) -> dict[str, Any]:
        columns = zip(*self.lengths, strict=True) if self.lengths else [()] * len(roles)
        means = {_NAMES[role]: _mean([n for n in column if n]) for role, column in zip(roles, columns, strict=True)}
        shares = {name: getattr(self, name) / max(1, self.asked) for name in ("cut", "same", "leaking")}
        return {"cut_prompts": self.cut_prompts, **shares, "lengths": means, "sources": dict(self.sources)}


def _length(answer: Answer | None) -> int:
    """Tokens of an answer, or its words where the backend gave no ids; 0 without one."""
    if answer is None or answer.error:
        return 0
    return len(answer.ids) or len(answer.text.split())


def _mean(values: Iterable[int]) -> float:
    found = list(values)
    return fmean(found) if found else 0.0
