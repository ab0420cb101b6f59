"""``trl.DPOTrainer`` that trains on six rows a prompt, with the loss of an attached method.

Everything else is TRL's: its arguments, checkpoints, adapters, chat templates and callbacks. Two of its own names are
overridden, here alone; they were there in TRL 1.16.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from paperhooks import HooksTrainerMixin
from paperhooks.errors import require
from transformers import TrainingArguments

_trl: Any = require("trl", "paperhooks-sso[trl]", "to train by trl.DPOTrainer")

__all__ = ["TRAINED_COLUMNS", "HooksDPOTrainer"]

#: Columns of a pairs file that the collator reads.
TRAINED_COLUMNS: Final = (
    "id", "plain_prompt", "good_prompt", "bad_prompt", "chosen_ids", "rejected_ids", "ordinary_ids", "reference",
)  # fmt: skip
#: Arguments that DPOConfig adds to TrainingArguments and that do not touch its loss, its reference or its rows.
_KEPT: Final = (
    "activation_offloading", "dataset_num_proc", "disable_dropout", "model_init_kwargs", "pad_token",
    "router_aux_loss_coef", "trust_remote_code",
)  # fmt: skip


class HooksDPOTrainer(HooksTrainerMixin, _trl.DPOTrainer):  # type: ignore[misc, name-defined, unused-ignore]
    """Attach :class:`~paperhooks_sso.SSO` to the model, give its collator, then train as with ``DPOTrainer``.

    The dataset holds records of a pairs file, which are neither tokenised nor renamed. The attached method's reference
    is the one that counts; without adapters TRL wants a ``ref_model`` too, or loads one by the model's name: give it
    the same reference.

    :raises ValueError: no data collator, or an argument of ``DPOConfig`` that would change TRL's own loss, reference
        or rows, which are not asked: ``beta``, ``loss_type``, ``max_length`` and others.
    """

    def __init__(self, *args: Any, data_collator: Any = None, **kwargs: Any) -> None:
        if data_collator is None:
            raise ValueError("HooksDPOTrainer needs the collator of the method: data_collator=SSO(...).collator()")
        given = kwargs.get("args") or next((each for each in args if isinstance(each, _trl.DPOConfig)), None)
        if isinstance(given, _trl.DPOConfig):
            _check(given)
        super().__init__(*args, data_collator=data_collator, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(TRAINED_COLUMNS)


def _check(given: Any) -> None:
    """Nothing that would be ignored is set."""
    common = {each.name for each in fields(TrainingArguments)}
    usual = vars(_trl.DPOConfig(output_dir=given.output_dir, use_cpu=given.use_cpu, bf16=given.bf16))
    for name in (each.name for each in fields(given) if each.name not in common and each.name not in _KEPT):
        if name in usual and getattr(given, name) != usual[name]:
            raise ValueError(
                f"{name}={getattr(given, name)!r} belongs to the loss of DPOTrainer, and the method has its own, with "
                "options and rows of its own; leave it out"
            )
