"""An evaluator as data: what a process elsewhere needs to score the same candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paperhooks import DataError, ModelView
from paperhooks.hooks import Level, Levels, portable_offers
from torch import Tensor, nn

from paperhooks_evopress.evaluator.evaluator import Evaluator

__all__ = ["EvaluatorSpec"]


@dataclass(frozen=True, eq=False)
class EvaluatorSpec:
    """What an evaluator is made of; it can be pickled, with the model's own weights.

    Levels that lie in a folder are read there; others go along (see :func:`paperhooks.hooks.portable_offers`).

    view, levels, sequences, options
        As for :class:`Evaluator`.
    text
        How many sequences are usable, and how many tokens these have.
    perplexity
        Of the model itself, as it was found where the spec was made.
    """

    view: ModelView
    levels: Levels
    sequences: Sequence[Tensor]
    options: Mapping[str, Any]
    text: tuple[int, int] = field(default=(0, 0))
    perplexity: float = math.nan

    @classmethod
    def of(cls, evaluator: Evaluator, levels: Levels, options: Mapping[str, Any]) -> EvaluatorSpec:
        """The spec of an evaluator that was made with these levels and options."""
        text = len(evaluator.sequences), evaluator.tokens
        return cls(evaluator.view, levels, evaluator.sequences, dict(options), text, evaluator.teacher_perplexity)

    def open(self) -> Evaluator:
        """An evaluator. Raises DataError where it finds another text or another model than the spec says."""
        made = Evaluator(self.view, self.levels, self.sequences, **self.options)
        other = EvaluatorSpec.of(made, self.levels, self.options)
        if not self.alike(other):
            raise DataError(
                f"here are {other.told()}, and where the search began {self.told()}; give machines the same versions"
            )
        return made

    def alike(self, other: EvaluatorSpec) -> bool:
        """Whether two processes have the same text, and to 0.1 % a model of the same perplexity."""
        return self.text == other.text and math.isclose(self.perplexity, other.perplexity, rel_tol=1e-3)

    def told(self) -> str:
        """What is compared, in words."""
        sequences, tokens = self.text
        return f"{sequences} sequences of {tokens} tokens, on which the model has a perplexity of {self.perplexity:.6g}"

    def __reduce__(self) -> tuple[Callable[..., EvaluatorSpec], tuple[Any, ...]]:
        sequences = [each.clone() for each in self.sequences]  # not what they were cut from
        told = dict(self.options), self.text, self.perplexity
        return _arrived, (portable_offers(self.levels), self.view.model, sequences, *told)


def _arrived(
    offers: Mapping[str, Sequence[Level]], model: nn.Module, sequences: Sequence[Tensor], *told: Any
) -> EvaluatorSpec:
    view = ModelView.from_model(model)
    return EvaluatorSpec(view, Levels(view, offers), sequences, *told)
