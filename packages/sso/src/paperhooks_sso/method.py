"""Self-Steering Optimization as a training objective: three pairs of answers a prompt, one loss.

>>> from paperhooks_sso import SSO
>>> with paperhooks.attach(model, SSO(preset="v1-ipo", reference=start)) as session:  # doctest: +SKIP
...     HooksTrainer(model, args, train_dataset=pairs, data_collator=session.methods["sso"].collator()).train()

It works where ``compute_loss`` of a session is asked: in ``transformers.Trainer`` or ``trl.DPOTrainer`` behind
:class:`paperhooks.HooksTrainerMixin`, or in a loop of your own (:func:`paperhooks.training.compute_loss`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from paperhooks import DataError, LossContext, ModelView, Traits, UnsupportedModel, hookimpl
from paperhooks.io import choice, flag, optional
from paperhooks.logprobs import Head, Reference
from torch import Tensor

from paperhooks_sso.algorithm import PRESETS, Objective, SSOLoss, Variant, sso_loss
from paperhooks_sso.batches import BatchPart, check_shared, examples_of, pair_sums, parts_of, sums_of
from paperhooks_sso.data import PairCollator, PairLayout
from paperhooks_sso.early_gradients import sums_in_turn

__all__ = ["SSO", "NotFinite"]

NotFinite: TypeAlias = Literal["raise", "skip"]

#: How many prompts a message names.
_NAMED = 5


@dataclass(eq=False)
class SSO:
    """Trains on pairs of answers that the model itself has written (arXiv 2410.17131).

    preset
        "v1-ipo" (the tables of the paper's first version), "v1-dpo" or "v2" (trains a generator of pairs, not the
        policy itself). What is given beside it takes the place of its values.
    reference
        What the loss compares with: a model, ``"base"`` for the trained model without its adapters, any
        :class:`paperhooks.logprobs.Reference`; or None where batches carry ``reference_logprobs`` or the loss has no
        reference. Columns that a batch carries go first.
    loss, variant, beta, alpha, beta_g, gamma, weight, gap, detach_weight, smoothing, simpo_margin
        See :class:`~paperhooks_sso.Objective`.

    Beyond the paper:

    not_finite
        What happens to a micro-batch with a log-probability that is NaN or infinite: "raise" an error that names its
        prompts, or "skip" it, which is counted and logged as ``skipped``.
    low_memory
        Have the gradient of one group made before the next one runs: the same gradients, for batches whose groups lie
        apart ("shared" and "group"), with a third less memory for activations where there are three groups. Fewer
        prompts at a time, accumulated, save more.

    Logs, as ``loss/<method>/<name>``, means over prompts: the parts ``L_plain``, ``L_good`` and ``L_bad``, margins,
    accuracies and log-probabilities of every group (:class:`~paperhooks_sso.SSOLoss`), ``weight``, and the lengths of
    all answers in tokens.

    :raises ValueError: an option that cannot be meant, such as a reference for a loss that has none.
    :raises PluginIncompatible: no model as a reference, or when attached one that is the trained model itself.
    :raises DataError: a batch that holds other columns, or no reference where there should be one.
    """

    preset: str | None = "v1-ipo"
    reference: Any = None
    loss: str | None = None
    variant: Variant | None = None
    beta: float | None = None
    alpha: float | None = None
    beta_g: float | None = None
    gamma: float | None = None
    weight: bool | None = None
    gap: bool | None = None
    detach_weight: bool | None = None
    smoothing: float | None = None
    simpo_margin: float | None = None
    not_finite: NotFinite = "raise"
    low_memory: bool = False

    traits: ClassVar[Traits] = Traits(
        writes=frozenset({"objective"}),
        training=True,
        compile=True,
        beams=True,
        assisted=True,
        static_cache=True,
        chunked_prefill=True,
        devices=("cpu", "cuda", "emulated"),
        dtypes=("float32", "bfloat16", "float16"),
        parallel=("ddp",),
    )
    objective: Objective = field(init=False, repr=False)
    _reference: Reference | None = field(default=None, init=False, repr=False)
    _head: Head | None = field(default=None, init=False, repr=False)
    _shares: bool = field(default=False, init=False, repr=False)
    _shared_width: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.preset = optional(choice, "preset", self.preset, tuple(PRESETS))
        self.not_finite = choice("not_finite", self.not_finite, get_args(NotFinite))
        self.low_memory = flag("low_memory", self.low_memory)
        if self.low_memory and self.not_finite == "skip":
            raise ValueError(
                "low_memory=True has gradients made before all groups are known, so that not_finite='skip' "
                "cannot leave a batch out; choose one of them"
            )
        names = {each.name for each in fields(Objective)}
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name in names}
        chosen = {**PRESETS.get(self.preset or "", {}), **{n: v for n, v in given.items() if v is not None}}
        self.objective = Objective(**chosen)
        for name in given:
            setattr(self, name, getattr(self.objective, name))
        self._reference = _reference_of(self.reference, self.objective)

    def collator(self, pad_id: int = 0, layout: PairLayout | None = None, **options: Any) -> PairCollator:
        """Makes batches of the groups that this objective takes; see there for the options.

        :param layout: by default "shared", which takes least, where the method is attached to a model whose attention
            keeps answers to one prompt apart, and "group" otherwise.
        """
        return PairCollator(pad_id, layout or ("shared" if self._shares else "group"), self.objective, **options)

    @hookimpl
    def setup(self, view: ModelView) -> None:
        """Find the model's head and look at its reference. See the class for what is raised."""
        if self._reference is not None:
            self._reference.check(view)
        self._head = Head.from_model(view)
        self._shares = view.sliding_window is None and _can_share(view, self._head)

    @hookimpl
    def teardown(self, view: ModelView) -> None:
        """Let go of the head."""
        self._head, self._shares = None, False

    @hookimpl
    def count_examples(self, batch: Mapping[str, Any]) -> int:
        """Prompts of a batch."""
        return examples_of(batch, self.objective.groups)

    @hookimpl
    def compute_loss(self, context: LossContext) -> Tensor:
        """The loss of one micro-batch, a mean over the prompts of the accumulated batch; logs its figures."""
        parts = parts_of(context.inputs, self.objective.groups)
        self._check_layout(context, parts)
        head = self._head or Head.from_model(context.model)
        references = self._references(context, parts)
        with _router_losses(context.view) as routed:
            if self.low_memory:
                sums = self._sums_in_turn(context, parts, references, head)
            else:
                sums = sums_of(parts, context.model, head)
        groups = pair_sums(parts, sums, references)
        if wrong := self._not_finite(context, sums, references):
            return self._skipped(context, wrong)
        found = sso_loss(groups, self.objective)
        self._log(context, found, parts, sums)
        loss = context.example_mean(found.examples)
        return loss + routed[0].to(loss.device) / context.accumulation_steps if routed else loss

    def _sums_in_turn(
        self, context: LossContext, parts: Sequence[BatchPart], references: Sequence[Tensor | None], head: Head
    ) -> list[tuple[Tensor, Tensor]]:
        """Sums of every part, of which one has its gradient already."""
        if len(parts) != len(self.objective.groups):
            raise DataError(
                "low_memory=True needs batches whose groups lie apart, and this one has all in one; collate it with "
                "the layout 'shared' or 'group'"
            )
        if getattr(context.view.text_config, "output_router_logits", False):
            raise UnsupportedModel(
                f"the balance loss of {type(context.view.model).__name__}'s experts is one for all groups; train it "
                "with low_memory=False, or with output_router_logits=False"
            )
        return sums_in_turn(context, parts, references, self.objective, head, self._raise_not_finite)

    def _references(self, context: LossContext, parts: Sequence[BatchPart]) -> list[Tensor | None]:
        if not self.objective.pair.reference:
            return [None for _ in parts]
        there = [part.reference for part in parts]
        if all(each is not None for each in there):
            return there
        if self._reference is None:
            raise DataError(
                f"the loss {self.loss!r} compares with a reference, and there is none: give SSO(reference=model), "
                "SSO(reference='base') for a model with adapters, or all records their six sums: the field 'reference'"
            )
        return [part.reference_sums(self._reference, context.model) for part in parts]

    def _check_layout(self, context: LossContext, parts: Sequence[BatchPart]) -> None:
        """Once for a width: that the model keeps apart what lies in one row."""
        width = max((part.columns["parts"].shape[1] for part in parts if part.shared), default=0)
        if width > self._shared_width:
            # Of the model itself: wrappers exchange buffers in every call, and other processes may have other widths.
            check_shared(context.view, self._head or Head.from_model(context.view), width)
            self._shared_width = width

    def _raise_not_finite(
        self, context: LossContext, sums: Sequence[tuple[Tensor, Tensor]], references: Sequence[Tensor | None]
    ) -> None:
        if wrong := self._not_finite(context, sums, references):
            self._skipped(context, wrong)

    def _not_finite(
        self, context: LossContext, sums: Sequence[tuple[Tensor, Tensor]], references: Sequence[Tensor | None]
    ) -> list[str]:
        """The prompts with a sum, of the policy or of the reference, that is none; empty where all are."""
        values = [own.detach() for own, _ in sums]
        there = [each.to(values[0].device) for each in references if each is not None]
        finite = torch.cat([each.isfinite() for each in (*values, *there)])  # one look, for one wait
        if bool(finite.all()):
            return []
        size = self.count_examples(context.inputs)
        at = sorted({int(row) % size for row in (~finite).nonzero()[:, 0]})
        ids = context.inputs.get("ids")
        return [str(each if ids is None else ids[each]) for each in at]

    def _skipped(self, context: LossContext, wrong: Sequence[str]) -> Tensor:
        """A loss of 0 that reaches every parameter, or the error."""
        if self.not_finite == "raise":
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            raise DataError(
                f"the log-probabilities of {', '.join(wrong[:_NAMED])}{more} are NaN or infinite in "
                f"{context.view.model.dtype}, those of the model or of its reference; train in bfloat16 or float32, "
                "look at these prompts, or leave such batches out: SSO(not_finite='skip')"
            )
        context.log("skipped", 1.0)
        learned = [p for p in context.model.parameters() if p.requires_grad]
        return sum((p.reshape(-1)[:0].sum().float() for p in learned), torch.zeros((), device=learned[0].device))

    def _log(
        self, context: LossContext, found: SSOLoss, parts: Sequence[BatchPart], sums: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        for name, value in {**found.parts, **found.figures}.items():
            context.log(name, value)
        if self.objective.weight and self.objective.variant != "v2":
            context.log("weight", found.weight)
        for part, (_, counts) in zip(parts, sums, strict=True):
            for group, chosen, rejected in part.split(counts):
                context.log(f"{group}_chosen_length", chosen)
                context.log(f"{group}_rejected_length", rejected)
        if self.not_finite == "skip":
            context.log("skipped", 0.0)


def _can_share(view: ModelView, head: Head) -> bool:
    try:
        check_shared(view, head, width=0)
    except Exception:  # models that take no such mask or positions fail in ways of their own
        return False
    return True


def _reference_of(given: Any, objective: Objective) -> Reference | None:
    if given is None:
        return None
    if not objective.pair.reference:
        raise ValueError(f"the loss {objective.loss!r} has no reference; leave reference out, or choose another loss")
    if isinstance(given, Reference):
        return given
    return Reference.without_adapters() if given == "base" else Reference.of(given)


@contextmanager
def _router_losses(view: ModelView) -> Iterator[list[Tensor]]:
    """The balance losses, with their weights, of models of experts that are asked for them; of each call inside."""
    config = view.text_config
    found: list[Tensor] = []
    if not getattr(config, "output_router_logits", False):
        yield found
        return

    def read(module: Any, args: Any, output: Any) -> None:
        loss = getattr(output, "aux_loss", None)
        if isinstance(loss, Tensor):
            found.append(loss * getattr(config, "router_aux_loss_coef", 0.0))

    handle = view.model.register_forward_hook(read)
    try:
        yield found
    finally:
        handle.remove()
