"""A prompt with its three answers as token ids: what is trained on is what was sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

from paperhooks import DataError
from paperhooks.io import shown

from paperhooks_sso.algorithm import GROUPS, Group
from paperhooks_sso.data.prompts import id_text

__all__ = ["ROWS", "EncodedPrompt", "FileRecord", "encoded_prompt"]

#: Prompt and answer of the six rows of a prompt, by group and then chosen before rejected (section 2).
ROWS: Final[Mapping[Group, tuple[str, str]]] = {
    "plain": ("chosen", "rejected"),
    "good": ("chosen", "rejected"),
    "bad": ("ordinary", "chosen"),
}
_PROMPTS: Final = ("plain_prompt", "good_prompt", "bad_prompt")
_ANSWERS: Final = ("chosen", "rejected", "ordinary")


class FileRecord(dict[str, Any]):
    """A record of a file that knows where it stands, for messages."""

    where = "the record"

    @property
    def id(self) -> str:
        """By which it is found again, as text; raises DataError without one."""
        found = id_text(self.get("id"), self.where)
        if not found:
            raise DataError(f"{self.where} has no id; give each record its own")
        return found

    @classmethod
    def at(cls, record: Mapping[str, Any], where: str) -> FileRecord:
        """A record that stands there."""
        found = cls(record)
        found.where = where
        return found


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Ids of the three prompts of a question, and of the three answers with the end of their turn.

    id
        Of the prompt.
    prompts
        Of x, x+ and x- by group.
    answers
        y+ as "chosen", y- as "rejected", yo as "ordinary"; the latter may be missing where G is off.
    reference
        Sums of the reference's log-probabilities of the six rows, by group: (chosen, rejected), NaN in groups that are
        not compared; or None.
    """

    id: str
    prompts: Mapping[Group, tuple[int, ...]]
    answers: Mapping[str, tuple[int, ...]]
    reference: Mapping[Group, tuple[float, float]] | None = None

    def rows(self, group: Group) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Prompt, chosen and rejected answer of a group.

        :raises DataError: the answer is missing.
        """
        missing = [name for name in ROWS[group] if name not in self.answers]
        if missing:
            raise DataError(
                f"prompt {self.id!r} has no {missing[0]!r} answer, which group {group!r} compares; sample one, or "
                "train without G: SSO(gap=False)"
            )
        chosen, rejected = (self.answers[name] for name in ROWS[group])
        return self.prompts[group], chosen, rejected


def encoded_prompt(record: Mapping[str, Any], where: str = "") -> EncodedPrompt:
    """From a record of a pairs file: ids under ``plain_prompt``, ``good_prompt``, ``bad_prompt``, ``chosen_ids``,
    ``rejected_ids`` and perhaps ``ordinary_ids``, sums under ``reference`` (six numbers in the order of the rows).

    :param where: what holds it, for messages; by default where it was read.
    :raises DataError: a column is missing or holds no ids, or a reference of something else than six numbers.
    """
    if isinstance(record, EncodedPrompt):
        return record
    where = where or getattr(record, "where", FileRecord.where)
    prompts = {group: _ids(record, name, where) for group, name in zip(GROUPS, _PROMPTS, strict=True)}
    names = [name for name in _ANSWERS if name != "ordinary" or record.get("ordinary_ids") is not None]
    answers = {name: _ids(record, f"{name}_ids", where) for name in names}
    name = record.id if isinstance(record, FileRecord) else id_text(record.get("id"), where) or where
    return EncodedPrompt(name, prompts, answers, _reference(record.get("reference"), where))


def _ids(record: Mapping[str, Any], name: str, where: str) -> tuple[int, ...]:
    ids = record.get(name)
    if isinstance(ids, str) or not isinstance(ids, Sequence) or not all(type(one) is int and one >= 0 for one in ids):
        raise DataError(f"{where} has {name} = {shown(ids)}; expected token ids, as paperhooks sso pairs writes them")
    return tuple(ids)


def _reference(values: Any, where: str) -> dict[Group, tuple[float, float]] | None:
    if values is None:
        return None
    # NaN stands in groups that nobody compares; whoever compares a group looks for it.
    if not isinstance(values, Sequence) or len(values) != 2 * len(GROUPS) or not all(map(_is_sum, values)):
        raise DataError(f"{where} has reference = {shown(values)}; expected six finite numbers, the sums of its rows")
    return {group: (float(values[2 * at]), float(values[2 * at + 1])) for at, group in enumerate(GROUPS)}


def _is_sum(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isinf(value)
