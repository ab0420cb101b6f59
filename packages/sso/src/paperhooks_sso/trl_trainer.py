"""``trl.DPOTrainer`` that trains on six rows a prompt, with the loss of an attached method.

Everything else is TRL's: its arguments, checkpoints, adapters, chat templates and callbacks. Two of its own names are
overridden, here alone; they were there in TRL 1.16.
"""

from __future__ import annotations

from typing import Any, Final

from paperhooks import HooksTrainerMixin
from paperhooks.errors import require

_trl: Any = require("trl", "paperhooks-sso[trl]", "to train by trl.DPOTrainer")

__all__ = ["TRAINED_COLUMNS", "HooksDPOTrainer"]

#: Columns of a pairs file that the collator reads.
TRAINED_COLUMNS: Final = (
    "id", "plain_prompt", "good_prompt", "bad_prompt", "chosen_ids", "rejected_ids", "ordinary_ids", "reference",
)  # fmt: skip
#: Arguments of TRL that change its own loss, and what they are where it is left alone.
_OWN_LOSS: Final = {
    "use_weighting": False, "precompute_ref_log_probs": False, "ld_alpha": None, "label_smoothing": 0.0,
    "loss_weights": None,
}  # fmt: skip


class HooksDPOTrainer(HooksTrainerMixin, _trl.DPOTrainer):  # type: ignore[misc, name-defined, unused-ignore]
    """Attach :class:`~paperhooks_sso.SSO` to the model, give its collator, then train as with ``DPOTrainer``.

    The dataset holds records of a pairs file, which are neither tokenised nor renamed. The attached method's reference
    is the one that counts; TRL wants a ``ref_model`` too, which may be the same.

    :raises ValueError: no data collator, or an argument that would change TRL's own loss, which is not asked.
    """

    def __init__(self, *args: Any, data_collator: Any = None, **kwargs: Any) -> None:
        if data_collator is None:
            raise ValueError("HooksDPOTrainer needs the collator of the method: data_collator=SSO(...).collator()")
        given = kwargs.get("args") or next((each for each in args if isinstance(each, _trl.DPOConfig)), None)
        for name, usual in _OWN_LOSS.items():
            if given is not None and getattr(given, name, usual) != usual:
                raise ValueError(
                    f"{name}={getattr(given, name)!r} belongs to the loss of DPOTrainer, and the method has its "
                    "own; leave it out"
                )
        super().__init__(*args, data_collator=data_collator, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(TRAINED_COLUMNS)
