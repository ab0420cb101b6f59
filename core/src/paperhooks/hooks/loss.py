"""What loss hooks see: one micro-batch, and what its means are divided by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from paperhooks.errors import HookError
from paperhooks.hooks.batch_counts import CountHook, batch_rows, method_examples, no_target, predicts_nothing
from paperhooks.hooks.running_mean import RunningMean
from paperhooks.io.processes import Ranks
from paperhooks.models.engines import starts_at_outputs
from paperhooks.tokens.host import on_host

if TYPE_CHECKING:
    from paperhooks.models.view import ModelView

__all__ = ["LossContext", "OpenSession"]


class OpenSession(Protocol):
    """What loss hooks see of the session that they run in: the view of its model, and its methods by name."""

    @property
    def view(self) -> ModelView:
        """The session's view of the model."""

    @property
    def methods(self) -> Mapping[str, Any]:
        """The attached methods by name, in the order in which they were given."""

    def implementations(self, hook: str) -> Sequence[CountHook]:
        """Who implements a hook, in call order."""


@dataclass(eq=False)
class LossContext:
    """One micro-batch of training or evaluation, as loss hooks see it.

    model
        What the training loop calls: the model, or a wrapper such as DistributedDataParallel. Call this one, so that
        gradients are synchronised; ``view.model`` is the model inside.
    inputs
        The whole batch by name, labels and a method's own columns included.
    session
        The session whose methods take part, or None.
    num_items_in_batch
        Target tokens of the whole accumulated batch (labels other than -100), divided by the number of processes that
        average their gradients; None when that is not known.
    num_examples_in_batch, num_target_rows_in_batch
        Rows of the accumulated batch (first dimension of its first tensor), and those that have a target, likewise.
    num_method_examples
        Examples of the accumulated batch, likewise, as a method counts them that implements ``count_examples``; by its
        name.
    accumulation_steps
        Micro-batches of the accumulated batch; 1 in evaluation.
    loss
        The loss so far, a scalar; None while ``compute_loss`` hooks run.
    method
        Name of the method whose hook runs.
    terms
        After :func:`compute_loss`: ``loss/<method>/<name>`` to the detached value of every term.
    figures
        After :func:`compute_loss`: ``loss/<method>/<name>`` to everything that :meth:`log` was given.
    state
        What the hooks of one method tell each other about this micro-batch.
    run_backward
        What :meth:`backward` gives a part of the loss to, such as ``accelerator.backward``; None for its own.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    session: OpenSession | None = None
    num_items_in_batch: Tensor | int | None = None
    num_examples_in_batch: Tensor | int | None = None
    num_target_rows_in_batch: Tensor | int | None = None
    num_method_examples: Mapping[str, Tensor | int] = field(default_factory=dict)
    accumulation_steps: int = 1
    loss: Tensor | None = None
    method: str | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, RunningMean] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    stock: Callable[[], tuple[Tensor, Any]] | None = field(default=None, repr=False)
    run_backward: Callable[[Tensor], Any] | None = field(default=None, repr=False)
    _forward: tuple[Tensor, Any] | None = field(default=None, repr=False)

    @cached_property
    def host_inputs(self) -> Mapping[str, Any]:
        """The batch with its tensors of whole numbers (ids, masks, labels) on the CPU.

        What a loss must know of them is looked at here, so that the host of an accelerator waits once for all of it.
        """
        tensors = {name: value for name, value in self.inputs.items() if isinstance(value, Tensor)}
        whole = {n: v for n, v in tensors.items() if not (v.is_floating_point() or v.is_complex())}
        return {**self.inputs, **dict(zip(whole, on_host(*whole.values()), strict=True))}

    @property
    def outputs(self) -> Any:
        """What the model returns for ``inputs``. The forward runs when this is first read, at most once."""
        return self._run()[1]

    @property
    def model_loss(self) -> Tensor:
        """The loss without hooks, normalised for the accumulated batch. Runs the forward if it has not run yet."""
        return self._run()[0]

    @property
    def logits(self) -> Tensor:
        """The model's logits [B, T, V]; see :mod:`paperhooks.logprobs.tokens` for how to do without them."""
        logits: Tensor = self.outputs.logits
        return logits

    @property
    def labels(self) -> Tensor | None:
        """int64 [B, T] as the batch has them, or None."""
        return self.inputs.get("labels")

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.model.training

    @property
    def view(self) -> ModelView:
        """The session's view of the model, or a new one."""
        from paperhooks.models.forward import view_of

        return self.session.view if self.session is not None else view_of(self.model)

    @property
    def forward_ran(self) -> bool:
        """Whether :attr:`outputs` are there already."""
        return self._forward is not None

    def token_mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """Mean of ``values`` [B, T] over the target tokens of the whole accumulated batch (mask true [B, T]).

        This micro-batch's share of it: the sum divided by ``num_items_in_batch``, or the micro-batch's own mean divided
        by the accumulation steps when that number is not known.
        """
        total = torch.where(mask.bool(), values, 0.0).sum()
        if self.num_items_in_batch is None:
            return total / (mask.sum().clamp(min=1) * self.accumulation_steps)
        return total / _on(self.num_items_in_batch, total)

    def example_mean(self, values: Tensor) -> Tensor:
        """Mean of ``values`` [n] over the examples of the whole accumulated batch; this micro-batch's share of it.

        An example is what the method's own hook ``count_examples`` counts, and otherwise a row of the batch; n may be
        any fixed multiple or share of their number, as with pairs of rows.
        """
        own = self.method in self.num_method_examples
        number = self.num_method_examples[str(self.method)] if own else self.num_examples_in_batch
        if number is None:
            return values.mean() / self.accumulation_steps
        here = self.examples if own else batch_rows(self.inputs)
        return values.sum() / (_on(number, values) * (values.numel() / here if here else 1.0))

    @property
    def examples(self) -> int:
        """Examples of this micro-batch, as the method counts them whose hook runs; rows where it does not."""
        hooks = () if self.session is None else self.session.implementations("count_examples")
        mine = [hook for hook in hooks if hook.method == self.method]
        own = method_examples(mine, self.view, self.inputs) if mine else {}
        return own.get(str(self.method), batch_rows(self.inputs))

    def log(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Log a figure like a term, as ``loss/<method>/<name>``, without adding it to the loss.

        What is logged is the mean of all values, by their weights, over the micro-batches, steps and processes since
        the last log; in evaluation over all of its batches, with ``eval_`` in front.

        :param name: a term of the same method has another one. :param value: a number or a tensor of any shape, such
            as one value an example. :param weight: of each value; what has none may be NaN.
        :raises HookError: no hook runs, or the name is no text.
        """
        if self.method is None:
            raise HookError(f"context.log({name!r}) belongs into compute_loss or loss_terms of an attached method")
        if not isinstance(name, str) or not name:
            raise HookError(f"{self.method} logs a figure under {name!r}; expected a name")
        key, found = f"loss/{self.method}/{name}", RunningMean.of(value, weight)
        self.figures[key] = self.figures[key] + found if key in self.figures else found

    def backward(self, part: Tensor) -> None:
        """Have the gradient of a part of the loss made now, so that what its graph holds is free before the rest is.

        The hook still returns the whole loss, in which this part is detached. Nothing happens where no gradients are
        wanted, as in evaluation. The part's forwards belong into :meth:`unsynchronised`, and after the last part there
        has to be a forward whose graph the returned loss holds: its backward is the one that exchanges gradients. Where
        the hook raises afterwards, the gradients of its parts stay; whoever goes on clears them (``zero_grad``).

        :param part: a scalar with gradient, normalised as the loss is.
        :raises HookError: no hook runs, no scalar, or DDP with a static graph, which takes one backward pass a step.
        """
        if self.method is None:
            raise HookError("context.backward(part) belongs into compute_loss or loss_terms of an attached method")
        if part.numel() != 1:
            raise HookError(f"{self.method} has a gradient made of a tensor {list(part.shape)}; expected a scalar")
        if not (torch.is_grad_enabled() and part.requires_grad):
            return
        if starts_at_outputs(self.model):
            raise HookError(
                f"{self.method} has gradients made in parts (context.backward), and DistributedDataParallel with "
                "static_graph=True takes one backward pass a step; wrap the model with static_graph=False, or use the "
                "method without parts"
            )
        device = part.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            (self.run_backward or Tensor.backward)(part.reshape(()))

    @contextmanager
    def unsynchronised(self) -> Iterator[None]:
        """Forwards and :meth:`backward` inside exchange no gradients between processes; those after it exchange all."""
        apart = getattr(self.model, "no_sync", None)  # of DistributedDataParallel
        with apart() if callable(apart) else nullcontext():
            yield

    def target_row_mean(self, values: Tensor, counted: Tensor) -> Tensor:
        """Mean of ``values`` [B] over the rows of the accumulated batch that have a target (``counted`` true [B]).

        This micro-batch's share of it. Where their number is not known, :meth:`example_mean` of those that are here,
        which is right where every row has a target.
        """
        there = counted.bool()
        total = torch.where(there, values, 0.0).sum()
        if self.num_target_rows_in_batch is None:
            return self.example_mean(values[there]) if bool(there.any()) else total
        return total / _on(self.num_target_rows_in_batch, total)

    def check_targets(self, counted: bool) -> None:
        """Raise DataError where nothing counts in this micro-batch and it is all that the optimiser step has.

        Any other one without targets contributes 0.

        :param counted: whether it has a target.
        """
        if not counted and self.accumulation_steps == 1 and Ranks().count == 1:
            raise no_target(batch_rows(self.inputs))

    def _run(self) -> tuple[Tensor, Any]:
        if self._forward is None:
            loss, outputs = (self.stock or self._plain)()
            if predicts_nothing(self.host_inputs) and not bool(loss.isfinite()):  # a mean of nothing
                loss = outputs.logits[..., :0].float().sum()  # 0, with a graph that reaches every parameter
            self._forward = (loss, outputs)
        return self._forward

    def _plain(self) -> tuple[Tensor, Any]:
        """Loss and outputs outside a Trainer."""
        items = self.num_items_in_batch
        outputs = self.model(**self.inputs, **({} if items is None else {"num_items_in_batch": items}))
        if getattr(outputs, "loss", None) is None:
            raise HookError("the model returned no loss: give labels, or attach a method that implements compute_loss")
        return (outputs.loss if items is not None else outputs.loss / self.accumulation_steps), outputs


def _on(count: Tensor | int, like: Tensor) -> Tensor | int:
    return count.to(like.device, non_blocking=True) if isinstance(count, torch.Tensor) else count
