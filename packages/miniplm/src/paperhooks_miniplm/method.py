"""Difference sampling as a method of ``paperhooks.select``: the laptop's way, in one call.

>>> chosen = paperhooks.select(
...     "miniplm", corpus="corpus.jsonl", tokenizer=tokenizer, teacher=large, reference=small, ratio=0.5, out="run/"
... )  # doctest: +SKIP

The corpus is a file of records, records in memory, or what :func:`paperhooks_miniplm.open_rows` opens. For
corpora of billions of tokens, where scores are kept, shared by workers and selected from again at other ratios, see
:func:`paperhooks_miniplm.score`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, get_args

import numpy as np
import torch
from paperhooks import DataError, ModelView, Traits, hookimpl
from paperhooks.io import Example, choice, flag, optional, whole
from torch import Tensor

from paperhooks_miniplm.algorithm import Array, difference_scores
from paperhooks_miniplm.scoring.jobs import end_token
from paperhooks_miniplm.scoring.likelihood import LogLikelihood, OverLong, ScoringWarning, longest_readable
from paperhooks_miniplm.scoring.scores import Normalize, Scores

__all__ = ["MiniPLM"]

_ROLES: Final = ("teacher", "reference")


@dataclass(eq=False)
class MiniPLM:
    """Scores an example by how much likelier the teacher finds it than the reference does (section 2.5).

    max_length
        Most tokens read of an example; by default 1024, as in the paper, or as many as both models can read.
    end
        The end token, from which nothing is predicted: "auto" takes the teacher's, None predicts from every token.
    append_end
        End every example with the end token, as packed corpora do, so that the end is scored too.

    Beyond the paper:

    normalize
        "mean" per counted token (official), "sum", or "per_byte" of the text.
    over_long
        What happens to longer examples: "truncate" (official), "split" or "error".
    batch_tokens, chunk
        Rows times longest row of a batch (by default 2,048 on a CPU, 16,384 elsewhere), and positions that a head sees
        at once.

    :raises ValueError: an option that cannot be meant; names it, its value and what is expected.
    """

    normalize: Normalize = "mean"
    max_length: int | None = None
    over_long: OverLong = "truncate"
    end: int | Literal["auto"] | None = "auto"
    append_end: bool = True
    batch_tokens: int | None = None
    chunk: int = 512

    traits: ClassVar[Traits] = Traits(
        devices=("cpu", "cuda", "emulated"),
        dtypes=("float32", "bfloat16", "float16"),
        parallel=("ddp", "fsdp2", "tp", "offload"),
        shared_work=True,
    )
    _known: dict[str, LogLikelihood] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.normalize = choice("normalize", self.normalize, get_args(Normalize))
        self.over_long = choice("over_long", self.over_long, get_args(OverLong))
        for name in ("max_length", "batch_tokens"):
            setattr(self, name, optional(whole, name, getattr(self, name), at_least=1))
        self.chunk = whole("chunk", self.chunk, at_least=1)
        self.append_end = flag("append_end", self.append_end)
        if isinstance(self.end, str):
            self.end = choice("end", self.end, ("auto",), also="a token id")
        else:
            self.end = optional(whole, "end", self.end, at_least=0)

    @hookimpl
    def score_examples(self, views: Mapping[str, ModelView], examples: Sequence[Example]) -> Tensor:
        """Difference of every example, float32 [n]; NaN for one with nothing to predict."""
        missing = [role for role in _ROLES if role not in views]
        if missing:
            raise DataError(f"miniplm needs a teacher and a reference; pass {missing[0]}= a model")
        if views["teacher"].model is views["reference"].model:
            warnings.warn(
                "teacher and reference are the same model: all differences are 0", ScoringWarning, stacklevel=2
            )
        end = end_token(views["teacher"].model, None, self.end)
        rows = [self._ids(example, end) for example in examples]
        n_bytes = np.array([_bytes(example) for example in examples], dtype=np.int64)
        length, values = self.max_length or _longest([views[role] for role in _ROLES]), {}
        for role in _ROLES:
            found = self._likelihood(role, views[role], end, length).score(rows, first=examples[0].row)
            values[role] = Scores(found.nll, found.count, n_bytes, cut=found.cut).values(self.normalize)
        return torch.from_numpy(difference_scores(values["teacher"], values["reference"]))

    def _ids(self, example: Example, end: int | None) -> Array:
        if example.input_ids is None:
            raise DataError(f"example {example.row} is text and there is no tokenizer; pass tokenizer=")
        ids = example.input_ids.numpy().astype(np.int64)
        if end is None or not self.append_end or example.text is None:
            return ids
        return np.append(ids, np.int64(end))

    def _likelihood(self, role: str, view: ModelView, end: int | None, length: int) -> LogLikelihood:
        """Made once a model: it proves its head with a forward pass."""
        known = self._known.get(role)
        if known is None or known.model is not view.model:
            known = LogLikelihood(view.model, end, length, self.over_long, self.batch_tokens, chunk=self.chunk)
            self._known[role] = known
        return known


def _bytes(example: Example) -> int:
    """Bytes of an example's text, -1 where unknown."""
    given = example.record.get("n_bytes")
    return len(example.text.encode()) if example.text is not None else -1 if given is None else int(given)


def _longest(views: Sequence[ModelView]) -> int:
    limits = map(longest_readable, views)
    return min([1024, *(limit for limit in limits if limit is not None)])
