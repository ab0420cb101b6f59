"""Batches of B prompts, in one of four layouts that give the same loss.

joint
    ``input_ids``, ``attention_mask`` and ``labels`` [6B, T], padded on the right: all chosen and then all rejected rows
    of the groups plain, good and bad, as the official code has them.
group
    The same columns a group, ``{"plain": {...}, "good": {...}, "bad": {...}}``, each [2B, T] as wide as its own rows.
shared
    A row a prompt and group, [B, T]: the prompt, then both answers, which do not see one another. ``parts`` [B, T]
    tells them apart: 0 prompt, 1 chosen, 2 rejected, -1 padding; an answer begins with the prompt's last token once
    more, from which its first token is predicted. ``position_ids`` and ``shift_labels`` fit that.
flat
    One row [1, N] of all rows behind one another, whose ``position_ids`` begin anew with each; ``lengths`` [6B].

Groups that the objective leaves out are not built. Sums of a reference, where records have them, travel as
``reference_logprobs``, float64, in the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from paperhooks import DataError
from paperhooks.io import choice, optional, shown, whole
from torch import Tensor

from paperhooks_sso.algorithm import GROUPS, Group, Objective
from paperhooks_sso.data.encoded import EncodedPrompt, encoded_prompt

__all__ = ["IGNORED", "PairCollator", "PairLayout"]

PairLayout: TypeAlias = Literal["joint", "group", "shared", "flat"]

IGNORED: Final = -100
_Row: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class PairCollator:
    """Makes batches of records of a pairs file, or of :class:`~paperhooks_sso.data.EncodedPrompt`.

    pad_id
        What fills rows up; masks tell padding, so any id will do. By default 0.
    layout
        "joint", "group", "shared" or "flat".
    groups
        Those to build: :attr:`Objective.groups`, or an objective, whose they are.
    multiple_of
        Widths are multiples of it.
    max_length
        Longest row; by default any.

    :raises ValueError: an option that cannot be meant. :raises DataError: a record of another form, an answer that is
        missing, a reference that is not finite in one of the groups, or a row that is too long: nothing is cut here.
    """

    pad_id: int = 0
    layout: PairLayout = "group"
    groups: Sequence[Group] | Objective = GROUPS
    multiple_of: int = 8
    max_length: int | None = None

    def __post_init__(self) -> None:
        groups = self.groups.groups if isinstance(self.groups, Objective) else tuple(self.groups)
        checked = {
            "pad_id": whole("pad_id", self.pad_id, at_least=0),
            "layout": choice("layout", self.layout, get_args(PairLayout)),
            "groups": tuple(choice("groups", each, GROUPS) for each in groups),
            "multiple_of": whole("multiple_of", self.multiple_of, at_least=1),
            "max_length": optional(whole, "max_length", self.max_length, at_least=1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __call__(self, records: Sequence[Any]) -> dict[str, Any]:
        """The batch; ``ids`` [B] are those of its prompts."""
        found = [encoded_prompt(record, f"record {at} of the batch") for at, record in enumerate(records)]
        groups: tuple[Group, ...] = tuple(self.groups)  # type: ignore[arg-type]
        rows = {group: _rows(found, group) for group in groups}
        self._check(found, rows)
        sums = {group: _sums(found, group) for group in groups}
        with_sums = all(each is not None for each in sums.values())
        if self.layout in ("joint", "flat"):
            every = [row for group in groups for row in rows[group]]
            batch = self._padded(every) if self.layout == "joint" else self._flat(every)
            if with_sums:
                batch["reference_logprobs"] = torch.cat([each for each in sums.values() if each is not None])
            return {**batch, "ids": [each.id for each in found]}
        build = self._padded if self.layout == "group" else self._shared
        parts: dict[str, Any] = {group: build(rows[group]) for group in groups}
        if with_sums:
            for group in groups:
                parts[group]["reference_logprobs"] = sums[group]
        return {**parts, "ids": [each.id for each in found]}

    def _padded(self, rows: Sequence[_Row]) -> dict[str, Any]:
        """Rows of a prompt and an answer each, [R, T]."""
        return {
            "input_ids": self._filled([(*prompt, *answer) for prompt, answer in rows], self.pad_id),
            "attention_mask": self._filled([[1] * (len(prompt) + len(answer)) for prompt, answer in rows], 0),
            "labels": self._filled([(*[IGNORED] * len(prompt), *answer) for prompt, answer in rows], IGNORED),
        }

    def _shared(self, rows: Sequence[_Row]) -> dict[str, Any]:
        """Rows of a prompt and both answers each, [R / 2, T]."""
        half = len(rows) // 2
        pairs = [
            (prompt, (chosen, other)) for (prompt, chosen), (_, other) in zip(rows[:half], rows[half:], strict=True)
        ]
        ids, parts, places, labels = [], [], [], []
        for prompt, answers in pairs:
            before, last = prompt[:-1], prompt[-1:]
            ids.append([*before, *(token for answer in answers for token in (*last, *answer))])
            parts.append([0] * len(before) + [at + 1 for at, answer in enumerate(answers) for _ in (0, *answer)])
            begun = len(before)
            places.append([*range(begun), *(begun + at for answer in answers for at in range(len(answer) + 1))])
            labels.append([IGNORED] * begun + [token for answer in answers for token in (*answer, IGNORED)])
        return {
            "input_ids": self._filled(ids, self.pad_id),
            "parts": self._filled(parts, -1),
            "position_ids": self._filled(places, 0),
            "shift_labels": self._filled(labels, IGNORED),
        }

    def _flat(self, rows: Sequence[_Row]) -> dict[str, Any]:
        """All rows behind one another, [1, N]."""
        lengths = [len(prompt) + len(answer) for prompt, answer in rows]
        labels = [(*[IGNORED] * len(prompt), *answer) for prompt, answer in rows]
        return {
            "input_ids": torch.tensor([[token for prompt, answer in rows for token in (*prompt, *answer)]]),
            "position_ids": torch.tensor([[place for length in lengths for place in range(length)]]),
            "shift_labels": torch.tensor([[token for row in labels for token in (*row[1:], IGNORED)]]),
            "lengths": torch.tensor(lengths),
        }

    def _filled(self, rows: Sequence[Iterable[int]], value: int) -> Tensor:
        rows = [list(row) for row in rows]
        width = max(map(len, rows))  # type: ignore[arg-type]
        width += -width % self.multiple_of
        return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])  # type: ignore[arg-type]

    def _check(self, found: Sequence[EncodedPrompt], rows: Mapping[Group, Sequence[_Row]]) -> None:
        for group, own in rows.items():
            for at, (prompt, answer) in enumerate(own):
                name = found[at % len(found)].id
                if not prompt:
                    raise DataError(
                        f"prompt {name!r} has no ids in group {group!r}; an answer needs something before it"
                    )
                if self.max_length is not None and len(prompt) + len(answer) > self.max_length:
                    raise DataError(
                        f"prompt {name!r} has a row of {len(prompt)} + {len(answer)} tokens in group {group!r}, and "
                        f"max_length is {self.max_length}; leave it out when the pairs are made, or raise the limit"
                    )


def _rows(found: Sequence[EncodedPrompt], group: Group) -> list[_Row]:
    """2B rows of a group: all chosen, then all rejected."""
    each = [one.rows(group) for one in found]
    return [(prompt, chosen) for prompt, chosen, _ in each] + [(prompt, rejected) for prompt, _, rejected in each]


def _sums(found: Sequence[EncodedPrompt], group: Group) -> Tensor | None:
    """The reference's sums of the 2B rows of a group, float64; None where a prompt has none."""
    pairs = [None if one.reference is None else one.reference[group] for one in found]
    for one, pair in zip(found, pairs, strict=True):
        if pair is not None and not all(map(math.isfinite, pair)):
            raise DataError(
                f"prompt {one.id!r} has the reference {shown(pair)} in group {group!r}; expected two finite numbers: "
                "compute its columns again"
            )
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return None
    return torch.tensor([pair[at] for at in (0, 1) for pair in known], dtype=torch.float64)
