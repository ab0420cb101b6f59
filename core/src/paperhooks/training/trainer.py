"""Loss hooks inside ``transformers.Trainer``.

>>> from transformers import Trainer
>>> class HooksTrainer(HooksTrainerMixin, Trainer): ...

Works with any subclass of Trainer that keeps ``compute_loss``, ``get_batch_samples`` and ``log``. The Trainer's own
``compute_loss_func`` is no door for methods: it sees outputs and labels only, and counts tokens where a method may
count sequences.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers.trainer_utils import get_last_checkpoint

from paperhooks.errors import PluginConflict
from paperhooks.hooks.loss import (
    LossContext,
    batch_rows,
    batch_target_rows,
    batch_targets,
    no_target,
    predicts_nothing,
)
from paperhooks.io.tensors import read_tensors, write_tensors
from paperhooks.sessions.method_options import unlike
from paperhooks.training.loss import compute_loss, find_session, has_loss_hooks

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

__all__ = ["HooksTrainerMixin"]

#: The file of a checkpoint that holds the methods' state, one a process: as the Trainer keeps states of generators.
_STATE: Final = "paperhooks_state_{}.safetensors"


def _counts(batch: Mapping[str, Any]) -> list[int]:
    """Target tokens, rows, and rows with a target."""
    return [batch_targets(batch), batch_rows(batch), batch_target_rows(batch)]


def _with_target_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with its targets beside the labels, which the Trainer takes away before it calls the model."""
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        return inputs
    return {**inputs, "target_mask": labels != -100}


class HooksTrainerMixin(_Trainer):  # type: ignore[misc, valid-type, unused-ignore]
    """Put before Trainer: ``class MyTrainer(HooksTrainerMixin, Trainer)``. Attach methods to the model, then train.

    The loss hooks of the model's open session decide the loss; every term is logged as ``loss/<method>/<name>``, per
    optimiser step, averaged over the steps since the last log and the processes in which it was there. Gradients of an
    accumulated batch equal those of one big batch, also with unequal token counts or micro-batches without any target;
    only an optimiser step without one raises DataError. In evaluation such batches are left out of the mean. Without an
    open session, or with one that has no loss hooks, this is the stock Trainer.

    Checkpoints hold what a method goes on from (``state_dict``, such as the state of a generator), so that a run that
    was interrupted equals one that was not.

    All processes have to train with the same methods and options: PluginConflict names one that does not.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch, with hooks if there are any. See ``Trainer.compute_loss``."""
        session = find_session(model)
        takes_labels = self.label_smoother is not None or self.compute_loss_func is not None
        if session is not None and session.runs_in_forward and takes_labels:
            inputs = _with_target_mask(inputs)
        if session is None or not has_loss_hooks(session):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        context = self._loss_context(model, inputs, num_items_in_batch)
        context.session = session
        divided = self._divides(num_items_in_batch) and model.training
        steps = context.accumulation_steps if divided else 1

        def stock() -> tuple[Tensor, Any]:
            loss, outputs = super(HooksTrainerMixin, self).compute_loss(model, dict(inputs), True, num_items_in_batch)
            return loss / steps, outputs

        context.stock = stock
        if not model.training and predicts_nothing(inputs):
            nothing = torch.full((), torch.nan, device=self.args.device)
            return (nothing, context.outputs) if return_outputs else nothing
        loss = compute_loss(session, context) * steps  # what training_step divides by
        # Where a step is normalised by this process' own counts, one without targets has nothing to say of a term.
        if model.training and (getattr(self, "_targets_here", True) or self.args.average_tokens_across_devices):
            self._note_terms(context.terms)
        if not return_outputs:
            return loss
        return loss, (context.outputs if context.forward_ran else {"loss": loss.detach()})

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of one optimiser step; counts their target tokens and sequences for the hooks."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._agree()
        self._window = None
        if batches and has_loss_hooks(find_session(cast(nn.Module, self.model))):
            self._window = self._counted(batches)
        return batches, items

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward of one micro-batch; an error lets the other processes learn of it."""
        try:
            return super().training_step(*args, **kwargs)
        except Exception as exc:
            if (session := find_session(cast(nn.Module, self.model))) is not None:
                session.fail(exc)
            raise

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint, with the methods as they were then. See ``Trainer.train``."""
        if resume_from_checkpoint:
            found = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else None
            self._resume(Path(found or str(resume_from_checkpoint)))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _resume(self, folder: Path) -> None:
        session = find_session(cast(nn.Module, self.model))
        if session is None or not session.state_dict():
            return
        file = folder / _STATE.format(self.args.process_index)
        if file.is_file():
            state: dict[str, dict[str, Tensor]] = {}
            for name, tensor in read_tensors(file, "what methods go on from")[1].items():
                state.setdefault(name.rpartition("/")[0], {})[name.rpartition("/")[2]] = tensor
            session.load_state_dict(state)
        else:
            warnings.warn(
                f"{folder} says nothing of {', '.join(session.state_dict())} (it was saved without a session, or by "
                "fewer processes), which begins anew: the run will not be the one that was interrupted",
                stacklevel=3,
            )

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save the model; in a checkpoint also what the methods go on from, and the config beside sharded weights."""
        super().save_model(output_dir, *args, **kwargs)
        session = find_session(cast(nn.Module, self.model))
        if session is None:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        if self.is_fsdp_enabled and self.args.should_save and not (folder / "config.json").exists():
            session.view.config.save_pretrained(folder)
        if any((*args, *kwargs.values())) and (state := session.state_dict()):  # called by the Trainer itself
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {f"{method}/{name}": value for method, own in state.items() for name, value in own.items()}
            write_tensors(folder / _STATE.format(self.args.process_index), tensors, {})

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loss, logits and labels of a batch; no loss where nothing is predicted, which has no part in the mean."""
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        # What processes gather must be there in all of them.
        alone = self.args.world_size == 1 and has_loss_hooks(find_session(model))
        return (None if alone and predicts_nothing(inputs) else loss, *others)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the terms of the steps since the last log beside ``loss``."""
        if "loss" in logs:
            logs = {**logs, **self._take_terms()}
        super().log(logs, *args, **kwargs)

    def _counted(self, batches: list[dict[str, Any]]) -> Tensor:
        """Counts of a step, of this process or a mean of all; DataError where nothing is predicted in any."""
        found = [_counts(batch) for batch in batches]
        self._targets_here = sum(targets for targets, *_ in found)
        counts = torch.tensor(found, device=self.args.device).sum(0)
        total = self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts
        # A process that has no target may wait for others: only all together can tell.
        if not total[0] and all(map(predicts_nothing, batches)):
            raise no_target(int(total[1]), "optimiser step")
        return total / self.args.world_size if self.args.average_tokens_across_devices else counts

    def _agree(self) -> None:
        """Once a run, before anything is added up: all processes train with the same methods and options.

        :raises PluginConflict: another process has others, or none.
        """
        if self.args.world_size == 1 or getattr(self, "_agreed_run", None) is self.state:
            return
        self._agreed_run = self.state
        session = find_session(cast(nn.Module, self.model))
        here = session.options if session is not None else {}
        for rank, there in enumerate(gather_object([here])):
            if (both := unlike(there, here)) is not None:
                others, own = (text if text != "nothing" else "no session" for text in both)
                raise PluginConflict(
                    f"process {rank} trains with {others}, and process {self.args.process_index} with {own}; attach "
                    "the same methods with the same options in all of them"
                )

    # -- one micro-batch ---------------------------------------------------------------------------------------------

    def _loss_context(self, model: nn.Module, inputs: dict[str, Any], items: Tensor | int | None) -> LossContext:
        context = LossContext(model, dict(inputs))
        counts = getattr(self, "_window", None)
        if not model.training:  # evaluation may come between the micro-batches of two steps
            counts = torch.tensor(_counts(inputs))
        else:
            context.accumulation_steps = int(getattr(self, "current_gradient_accumulation_steps", 1))
        if counts is not None:
            context.num_items_in_batch, context.num_examples_in_batch = counts[0] or None, counts[1] or None
            context.num_target_rows_in_batch = counts[2] or None
        return context

    def _divides(self, items: Tensor | int | None) -> bool:
        """Whether ``training_step`` will divide the loss by the accumulation steps."""
        declared = getattr(self, "loss_is_scaled_for_ga", None)  # since transformers 5.19
        if declared is not None:
            return not declared
        scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        return not scaled

    # -- logging -----------------------------------------------------------------------------------------------------

    def _note_terms(self, terms: Mapping[str, Tensor]) -> None:
        run = getattr(self, "_terms_run", None)
        if run is not self.state:  # another call of train()
            self._terms_run = self.state
            self._term_sums: dict[str, Tensor] = {}
            self._term_steps: dict[str, set[int]] = {}
        for name, value in terms.items():
            self._term_sums[name] = value.float() + self._term_sums.get(name, 0.0)
            self._term_steps.setdefault(name, set()).add(self.state.global_step)

    def _take_terms(self) -> dict[str, float]:
        sums: dict[str, Tensor] = getattr(self, "_term_sums", {})
        seen: dict[str, set[int]] = getattr(self, "_term_steps", {})
        names = sorted(sums)
        if self.args.world_size > 1 and has_loss_hooks(find_session(cast(nn.Module, self.model))):
            # A process that had no target has no terms, or others: all have to agree on what is added up.
            names = sorted({name for each in gather_object([names]) for name in each})
        if not names:
            return {}
        device = self.args.device
        totals = torch.stack([sums.get(name, torch.zeros(())).to(device) for name in names])
        steps = torch.tensor([float(len(seen.get(name, ()))) for name in names], device=device)
        if self.args.world_size > 1:
            totals, steps = self.accelerator.reduce(torch.stack([totals, steps]), "sum")
        self._term_sums, self._term_steps = {}, {}
        return dict(zip(names, (totals / steps).tolist(), strict=True))
