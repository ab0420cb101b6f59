"""What means over a batch are divided by: its target tokens, its rows, and examples as methods count them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from paperhooks.errors import DataError, HookError

if TYPE_CHECKING:
    from paperhooks.models.view import ModelView

__all__ = [
    "CountHook",
    "batch_rows",
    "batch_target_rows",
    "batch_targets",
    "method_examples",
    "no_target",
    "predicts_nothing",
]


class CountHook(Protocol):
    """One method's implementation of ``count_examples``."""

    @property
    def method(self) -> str:
        """The method's name."""

    @property
    def function(self) -> Any:
        """What is asked, with view and batch."""


def batch_targets(batch: Mapping[str, Any]) -> int:
    """Labels of a batch that are predicted: position 0 of ``labels`` is none."""
    shifted, labels = batch.get("shift_labels"), batch.get("labels")
    if isinstance(shifted, Tensor):
        return int(shifted.ne(-100).sum())
    return int(labels[..., 1:].ne(-100).sum()) if isinstance(labels, Tensor) else 0


def predicts_nothing(batch: Mapping[str, Any]) -> bool:
    """Whether a batch has labels for every position, int [B, T], and none of them is predicted."""
    shifted = batch.get("shift_labels")
    labels = shifted if isinstance(shifted, Tensor) else batch.get("labels")
    tokens = isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point()
    return tokens and batch_targets(batch) == 0


def no_target(rows: int, what: str = "batch") -> DataError:
    """The error for an optimiser step in which nothing is predicted.

    :param rows: how many it has. :param what: what has them.
    """
    return DataError(
        f"no row of this {what} of {rows} has a token to predict (its labels are -100, or come after the end of a "
        "document), so there is nothing to learn in this step; leave such rows out of the dataset"
    )


def batch_target_rows(batch: Mapping[str, Any]) -> int:
    """Rows of a batch in which something is predicted; 0 for labels that are not [B, T, ...]."""
    shifted, labels = batch.get("shift_labels"), batch.get("labels")
    targets = shifted if isinstance(shifted, Tensor) else labels[..., 1:] if isinstance(labels, Tensor) else None
    return 0 if targets is None or targets.ndim < 2 else int(targets.ne(-100).flatten(1).any(1).sum())


def batch_rows(batch: Mapping[str, Any]) -> int:
    """Rows of a batch: the first dimension of its first tensor."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)


def method_examples(hooks: Iterable[CountHook], view: ModelView, batch: Mapping[str, Any]) -> dict[str, int]:
    """Examples of a batch by method, of those that say a number.

    :raises HookError: an answer that is no whole number of at least 0.
    """
    found = {hook.method: hook.function(view, batch) for hook in hooks}
    for method, number in found.items():
        if number is not None and not (isinstance(number, int) and not isinstance(number, bool) and number >= 0):
            raise HookError(
                f"count_examples of {method!r} returned {number!r}; expected a whole number of at least 0, or None"
            )
    return {method: number for method, number in found.items() if number is not None}
