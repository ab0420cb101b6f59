"""Means of terms and figures over micro-batches, steps and processes: what a Trainer logs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from paperhooks.hooks.running_mean import RunningMean

__all__ = ["EvaluatedMeans", "LoggedMeans"]


class LoggedMeans:
    """Everything that was noted since it was last taken, by name."""

    def __init__(self) -> None:
        self._sums: dict[str, RunningMean] = {}
        self._steps: dict[str, set[int]] = {}

    def note_terms(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Shares of an accumulated batch's terms: what a step's micro-batches give is added up, not averaged."""
        for name, value in terms.items():
            seen = self._steps.setdefault(name, set())
            self._note(name, RunningMean.of(value.float()), counts=step not in seen)
            seen.add(step)

    def note_figures(self, figures: Mapping[str, RunningMean]) -> None:
        """Figures of a micro-batch."""
        for name, figure in figures.items():
            self._note(name, figure)

    def take(self, together: bool, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """The means, and begin anew.

        :param together: whether several processes log; all of them call this then. :param reduce: the sum over them.
        """
        names = sorted(self._sums)
        if together:  # one that had no target has no terms, or others: all have to agree on what is added up
            names = sorted({name for each in gather_object([names]) for name in each})
        if not names:
            return {}
        empty = RunningMean(torch.zeros(()), torch.zeros(()))
        found = [self._sums.get(name, empty) for name in names]
        sums = torch.stack([torch.stack([f.total.to(device).float(), f.weight.to(device).float()]) for f in found])
        if together:
            sums = reduce(sums)
        self._sums, self._steps = {}, {}
        # A step's terms have their weight with its first micro-batch, so that nothing is divided by 0.
        return {
            name: float(total / weight) for name, (total, weight) in zip(names, sums.tolist(), strict=True) if weight
        }

    def _note(self, name: str, figure: RunningMean, counts: bool = True) -> None:
        figure = figure if counts else RunningMean(figure.total, torch.zeros_like(figure.weight))
        self._sums[name] = self._sums[name] + figure if name in self._sums else figure


class EvaluatedMeans:
    """What the batches of one evaluation gave, a batch at a time, until all of it is known.

    At the end of an epoch accelerate shows some examples twice, so that all processes have as many; their part in the
    last batch is taken away.
    """

    def __init__(self) -> None:
        self._means = LoggedMeans()
        self._last: dict[str, RunningMean] = {}
        self._examples = 0
        self._remainder = -1

    def note(self, figures: Mapping[str, RunningMean], examples: int, gradient_state: Any) -> None:
        """A batch of this process.

        :param examples: how many it holds. :param gradient_state: accelerate's, which knows the end of the data.
        """
        self._means.note_figures(self._last)
        self._last, self._examples = dict(figures), examples
        self._remainder = gradient_state.remainder if gradient_state.end_of_dataloader else -1

    def take(
        self, rank: int, together: bool, reduce: Callable[[Tensor], Tensor], device: torch.device
    ) -> dict[str, float]:
        """The means over all batches and processes; see :meth:`LoggedMeans.take`."""
        share = 1.0
        if together:
            counts: list[int] = gather_object([self._examples])
            if self._remainder > 0 and self._examples:
                left = self._remainder - sum(counts[:rank])
                share = min(max(left, 0), self._examples) / self._examples
        self._means.note_figures({n: RunningMean(f.total * share, f.weight * share) for n, f in self._last.items()})
        return self._means.take(together, reduce, device)
