"""Loss hooks inside ``transformers.Trainer``.

>>> from transformers import Trainer
>>> class HooksTrainer(HooksTrainerMixin, Trainer): ...

Works with any subclass of Trainer that keeps ``compute_loss``, ``get_batch_samples`` and ``log``. The Trainer's own
``compute_loss_func`` is no door for methods: it sees outputs and labels only, and counts tokens where a method may
count sequences.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from transformers.trainer_utils import get_last_checkpoint

from paperhooks.errors import HookError, PluginConflict
from paperhooks.hooks.batch_counts import batch_rows, method_examples, predicts_nothing
from paperhooks.hooks.loss import LossContext
from paperhooks.hooks.running_mean import RunningMean
from paperhooks.io.tensors import read_tensors, write_tensors
from paperhooks.sessions.method_options import unlike
from paperhooks.training.accumulated_counts import AccumulatedCounts
from paperhooks.training.logged_means import EvaluatedMeans, LoggedMeans
from paperhooks.training.loss import compute_loss, find_session, has_loss_hooks

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer

    from paperhooks.sessions.session import Session
else:
    _Trainer = object

__all__ = ["HooksTrainerMixin"]

#: The file of a checkpoint that holds the methods' state, one a process: as the Trainer keeps states of generators.
_STATE: Final = "paperhooks_state_{}.safetensors"


def _with_target_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with its targets beside the labels, which the Trainer takes away before it calls the model."""
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        return inputs
    return {**inputs, "target_mask": labels != -100}


class HooksTrainerMixin(_Trainer):  # type: ignore[misc, valid-type, unused-ignore]
    """Put before Trainer: ``class MyTrainer(HooksTrainerMixin, Trainer)``. Attach methods to the model, then train.

    The loss hooks of the model's open session decide the loss; every term is logged as ``loss/<method>/<name>``, per
    optimiser step, averaged over the steps since the last log and the processes in which it was there, and so is what a
    hook logs beside them (:meth:`LossContext.log`). Gradients of an accumulated batch equal those of one big batch,
    also with unequal counts of tokens or examples (``count_examples``) or micro-batches without any target; only an
    optimiser step without one raises DataError.

    In evaluation, terms and figures stand beside ``eval_loss``, with ``eval_`` in front, and batches without a target
    are left out of the mean. A method that owns the loss is asked for it, also where the batch has no labels. Without
    an open session, or with one that has no loss hooks, this is the stock Trainer.

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
        context.session, context.run_backward = session, self._backward_part
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
        self._note(context, loss)
        if not return_outputs:
            return loss
        return loss, (context.outputs if context.forward_ran else {"loss": loss.detach()})

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of one optimiser step; counts their target tokens and sequences for the hooks."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._agree()
        session = find_session(cast(nn.Module, self.model))
        self._window = self._counted(session, batches) if batches and has_loss_hooks(session) else None
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

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate, with the means of terms and figures among the metrics. See ``Trainer.evaluation_loop``."""
        self._evaluated: EvaluatedMeans | None = None
        if has_loss_hooks(find_session(cast(nn.Module, self.model))):
            self._evaluated = EvaluatedMeans()
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            if self._evaluated is not None:
                found = self._evaluated.take(self.args.process_index, *self._together())
                output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        finally:
            self._evaluated = None
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Loss, logits and labels of a batch; no loss where nothing is predicted, which has no part in the mean.

        Where a method owns the loss and nothing else is wanted, or the batch has no labels, the loss alone.
        """
        session = find_session(model)
        labelled = bool(self.label_names) and all(inputs.get(name) is not None for name in self.label_names)
        if session is not None and session.implementations("compute_loss") and (prediction_loss_only or not labelled):
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, others = self.compute_loss(model, inputs).detach(), [None, None]
        else:
            loss, *others = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        # What processes gather must be there in all of them.
        alone = self.args.world_size == 1 and has_loss_hooks(session)
        return (None if alone and predicts_nothing(inputs) else loss, *others)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the terms and figures of the steps since the last log beside ``loss``."""
        if "loss" in logs:
            means: LoggedMeans | None = getattr(self, "_means", None)
            hooks = has_loss_hooks(find_session(cast(nn.Module, self.model)))
            if hooks or means is not None:
                together, reduce, device = self._together()
                logs = {**logs, **(means or LoggedMeans()).take(together and hooks, reduce, device)}
        super().log(logs, *args, **kwargs)

    def _counted(self, session: Session | None, batches: list[dict[str, Any]]) -> AccumulatedCounts:
        """Counts of a step, of this process or a mean of all; DataError where nothing is predicted in any."""
        several = self.args.world_size > 1
        own = AccumulatedCounts.of(session, batches, check=not several)
        self._targets_here = bool(own.counts[0])
        if not several:
            return own
        device = self.args.device
        mean = own.mean(lambda counts: self.accelerator.reduce(counts.to(device), "sum"), self.args.world_size)
        return mean if self.args.average_tokens_across_devices else own

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
        counts: AccumulatedCounts | None = getattr(self, "_window", None)
        if not model.training:  # evaluation may come between the micro-batches of two steps
            counts = AccumulatedCounts.of(find_session(model), [inputs], check=False)
        elif counts is None:
            steps = int(getattr(self, "current_gradient_accumulation_steps", 1))
            return LossContext(model, dict(inputs), accumulation_steps=steps)
        return counts.context(model, dict(inputs))

    def _backward_part(self, part: Tensor) -> None:
        """As ``training_step`` does with the loss, when it has divided it."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise HookError(
                "DeepSpeed takes one backward pass a micro-batch, and a method asks for gradients in parts "
                "(context.backward); use another way to spread the model, or the method without it"
            )
        self.accelerator.backward(part)

    def _divides(self, items: Tensor | int | None) -> bool:
        """Whether ``training_step`` will divide the loss by the accumulation steps."""
        declared = getattr(self, "loss_is_scaled_for_ga", None)  # since transformers 5.19
        if declared is not None:
            return not declared
        scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        return not scaled

    # -- logging -----------------------------------------------------------------------------------------------------

    def _note(self, context: LossContext, loss: Tensor) -> None:
        """Keep the terms and figures of a micro-batch until they are logged."""
        if not context.model.training:
            self._note_evaluated(context, loss)
            return
        if getattr(self, "_means_run", None) is not self.state:  # another call of train()
            self._means, self._means_run = LoggedMeans(), self.state
        # Where a step is normalised by this process' own counts, one without targets has nothing to say of a term.
        if getattr(self, "_targets_here", True) or self.args.average_tokens_across_devices:
            self._means.note_terms(context.terms, self.state.global_step)
            self._means.note_figures(context.figures)

    def _note_evaluated(self, context: LossContext, loss: Tensor) -> None:
        evaluated: EvaluatedMeans | None = getattr(self, "_evaluated", None)
        if evaluated is None or context.session is None:
            return
        rows = batch_rows(context.inputs)
        hooks = context.session.implementations("count_examples")
        counted = method_examples(hooks, context.view, context.inputs)
        found = dict(context.figures)
        for name, value in context.terms.items():
            method = name.removeprefix("loss/").rpartition("/")[0]
            found[name] = RunningMean.of(value, counted.get(method, rows))
        owners = [hook.method for hook in context.session.implementations("compute_loss")]
        own = next((counted[method] for method in owners if method in counted), None)
        if own is not None:  # the Trainer's mean has every batch count alike
            found["loss"] = RunningMean.of(loss, own)
        evaluated.note(found, rows if own is None else own, self.accelerator.gradient_state)

    def _together(self) -> tuple[bool, Callable[[Tensor], Tensor], torch.device]:
        """Whether several processes log, how they add up, and where."""
        return self.args.world_size > 1, lambda sums: self.accelerator.reduce(sums, "sum"), self.args.device
