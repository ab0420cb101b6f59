"""Pieces of a collection: norms of some samples, kept in files, exchanged between processes and joined at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from paperhooks import Artefact, DataError
from paperhooks.provenance import hash_json
from paperhooks.ranks import Ranks
from torch import Tensor

from paperhooks_mathneuro.norms import Norms, refined

__all__ = ["Keep", "Parts", "Piece", "gathered", "joined", "summed_calls"]

#: Keep the norms of every sample, or their sums only (for models whose inputs are many).
Keep: TypeAlias = Literal["samples", "sums"]

_KIND: Final = "mathneuro-part"


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Norms [n, D] of ``samples``, or their sums [2, D], by input."""

    samples: Sequence[int]
    inputs: Mapping[str, str]
    values: Mapping[str, Tensor]

    def extended(self, samples: Sequence[int], norms: Norms, keep: Keep) -> Piece:
        """With a further batch; what matrices share stays what they shared in all batches."""
        new = {k: _sums(v) for k, v in norms.values.items()} if keep == "sums" else norms.values
        added = Piece(samples, norms.inputs, new)
        if not self.samples:
            return added
        inputs, values = joined([self, added], keep, in_order=False)
        return Piece([*self.samples, *samples], inputs, values)


def _sums(norms: Tensor) -> Tensor:
    wide = norms.double()
    return torch.stack([wide.sum(0), wide.square().sum(0)])


def joined(pieces: Sequence[Piece], keep: Keep, *, in_order: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """All pieces as one: rows by sample number, or sums added up."""
    inputs = refined([piece.inputs for piece in pieces])
    spread = [Norms(piece.inputs, piece.values).spread(inputs) for piece in pieces]
    if keep == "sums":
        return inputs, {own: torch.stack([each[own] for each in spread]).sum(0) for own in spread[0]}
    order = torch.tensor([i for piece in pieces for i in piece.samples]).argsort()
    values = {}
    for own in list(spread[0]):
        rows = torch.cat([each.pop(own) for each in spread])
        values[own] = rows[order] if in_order else rows
    return inputs, values


def gathered(pieces: list[Piece], ranks: Ranks) -> list[Piece]:
    """The pieces of all processes; those that several have read from disk count once."""
    if ranks.count == 1:
        return pieces
    from torch import distributed

    told: list[Any] = [None] * ranks.count
    distributed.all_gather_object(told, [(list(p.samples), dict(p.inputs), dict(p.values)) for p in pieces])
    seen: set[int] = set()
    found = []
    for samples, inputs, values in (piece for each in told for piece in each):
        if not seen & set(samples):
            found.append(Piece(samples, inputs, values))
            seen |= set(samples)
    return found


def summed_calls(calls: Mapping[str, int], ranks: Ranks) -> dict[str, int]:
    """Calls by module, over all processes."""
    if ranks.count == 1:
        return dict(calls)
    from torch import distributed

    told: list[Any] = [None] * ranks.count
    distributed.all_gather_object(told, dict(calls))
    names = dict.fromkeys(name for each in told for name in each)
    return {name: sum(each.get(name, 0) for each in told) for name in names}


@dataclass(frozen=True, eq=False)
class Parts:
    """Finished pieces in a folder, each a file of its own, so that an interrupted run loses a few batches at most."""

    folder: Path
    identity: Mapping[str, Any]

    def read(self) -> Iterable[Piece]:
        """What an earlier run left; raises DataError for parts of another one."""
        for file in sorted((self.folder / "parts").glob("*.safetensors")):
            artefact = Artefact.load(file)
            if artefact.kind != _KIND or artefact.data["identity"] != self.identity:
                raise DataError(
                    f"{file} belongs to a run with other texts, model or options; use another folder, or delete it"
                )
            yield Piece(artefact.data["samples"], artefact.data["inputs"], artefact.tensors)

    def write(self, piece: Piece) -> None:
        """Keep a piece."""
        data = {"identity": self.identity, "samples": list(piece.samples), "inputs": dict(piece.inputs)}
        name = f"{min(piece.samples):08d}-{hash_json(list(piece.samples))[:12]}.safetensors"
        Artefact("mathneuro", kind=_KIND, data=data, tensors=piece.values).save(self.folder / "parts" / name)
