"""What the micro-batches of one optimiser step hold together, counted before the first of them runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paperhooks.hooks.batch_counts import (
    batch_rows,
    batch_target_rows,
    batch_targets,
    method_examples,
    no_target,
    predicts_nothing,
)
from paperhooks.hooks.loss import LossContext

if TYPE_CHECKING:
    from paperhooks.sessions.session import Session

__all__ = ["AccumulatedCounts"]


@dataclass(frozen=True, eq=False)
class AccumulatedCounts:
    """Numbers that means over an accumulated batch are divided by.

    >>> counts = AccumulatedCounts.of(session, batches)  # doctest: +SKIP
    >>> for batch in batches:  # doctest: +SKIP
    ...     compute_loss(session, counts.context(model, batch)).backward()

    counts
        [4 + M]: labels that are predicted, rows, rows with such a label, micro-batches with one, and examples by each
        of M methods that implement ``count_examples``; int64, or float where they are a mean over processes.
    methods
        Their names.
    steps
        Micro-batches.
    session
        Whose methods were asked.
    """

    counts: Tensor
    methods: tuple[str, ...]
    steps: int
    session: Session | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        session: Session | None,
        batches: Sequence[Mapping[str, Any]],
        *,
        check: bool = True,
    ) -> AccumulatedCounts:
        """Of the micro-batches of one step in this process.

        :param check: whether one without a target is refused; :meth:`mean` does so for several processes.
        :raises DataError: nothing is predicted in any micro-batch. :raises HookError: a method's ``count_examples``
            returned no number.
        """
        hooks = () if session is None else session.implementations("count_examples")
        names = tuple(hook.method for hook in hooks)
        found = []
        for batch in batches:
            own = {} if session is None else method_examples(hooks, session.view, batch)
            rows = batch_rows(batch)
            told = not predicts_nothing(batch)
            found.append(
                [batch_targets(batch), rows, batch_target_rows(batch), told, *(own.get(n, rows) for n in names)]
            )
        made = cls(torch.tensor(found).sum(0), names, len(batches), session)
        if check:
            made._check()
        return made

    def mean(self, total: Callable[[Tensor], Tensor], processes: int) -> AccumulatedCounts:
        """Of all processes that average their gradients. Every one of them calls this.

        :param total: the sum of a tensor, which is on the CPU, over them, such as ``lambda counts:
            accelerator.reduce(counts.to(accelerator.device))``. :param processes: their number.
        :raises DataError: nothing is predicted in any of them.
        """
        made = replace(self, counts=total(self.counts).cpu())
        made._check()
        return replace(made, counts=made.counts / processes)

    def _check(self) -> None:
        if not self.counts[3]:
            raise no_target(int(self.counts[1]), "optimiser step")

    def context(
        self, model: nn.Module, batch: Mapping[str, Any], *, run_backward: Callable[[Tensor], Any] | None = None
    ) -> LossContext:
        """What the loss hooks see of one of the micro-batches. A count of 0 is taken for an unknown one.

        :param run_backward: what you call with the loss in place of ``loss.backward()``, such as
            ``accelerator.backward``, for methods that have gradients made in parts.
        """
        return LossContext(
            model,
            batch,
            self.session,
            num_items_in_batch=self.counts[0] if self.counts[0] else None,
            num_examples_in_batch=self.counts[1] if self.counts[1] else None,
            num_target_rows_in_batch=self.counts[2] if self.counts[2] else None,
            num_method_examples={name: n for name, n in zip(self.methods, self.counts[4:], strict=True) if n},
            accumulation_steps=self.steps,
            run_backward=run_backward,
        )
