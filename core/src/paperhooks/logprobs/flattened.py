"""Several sequences in one row of a batch, told by ``position_ids`` that do not go on where they were.

transformers keeps such sequences apart where it is given neither an attention mask nor a cache; with a mask, be it full
of ones, every token sees all before it, whatever its position. So a full mask is left out, any other is refused, and
whether a model does keep them apart is tried.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.compat import attention_kernel
from paperhooks.errors import DataError, UnsupportedModel
from paperhooks.models.engines import given_up_again
from paperhooks.models.forward import evaluation_mode, last_hidden_state, ordinary_tokens
from paperhooks.models.view import ModelView
from paperhooks.tokens.host import on_host

__all__ = ["check_kept_apart", "last_tokens", "row_positions", "sequence_numbers", "without_full_mask"]

#: Lengths of the two sequences of a row that a model is tried with.
_TRIED = (3, 2)


def sequence_numbers(position_ids: Tensor) -> Tensor:
    """The sequence that every position of a batch belongs to, int64 [B, T], numbered from 0 on through all rows.

    A row is one sequence where its positions grow by one from token to token, and a new one begins wherever they do
    not, as transformers has it.

    :param position_ids: int64 [B, T] on any device.

    >>> sequence_numbers(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]))
    tensor([[0, 0, 0, 1, 1],
            [2, 2, 2, 2, 2]])
    """
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids.diff(dim=1) != 1
    return begins.reshape(-1).cumsum(0).reshape(position_ids.shape) - 1


def row_positions(batch: Mapping[str, Any], rows: int) -> Tensor | None:
    """The positions of a batch, int64 [B, T], where a model may tell sequences by them; None where it cannot.

    Of positions [4, B, T] that have those of images too, those of the text; one row of them stands for all.
    """
    positions, mask = batch.get("position_ids"), batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim != 2:
        return None  # a mask of the user's own says who sees whom
    if isinstance(positions, Tensor) and positions.ndim == 3 and len(positions) == 4:
        positions = positions[0]
    if not isinstance(positions, Tensor) or positions.ndim != 2:
        return None
    return positions.expand(rows, -1) if len(positions) == 1 else positions


def last_tokens(batch: Mapping[str, Any], rows: int) -> Tensor | None:
    """Where a sequence of a row ends for another to begin, bool [B, T] on the device of the positions; None without.

    :raises DataError: positions begin anew, and a mask keeps the model from telling the sequences apart.
    """
    positions, mask = row_positions(batch, rows), batch.get("attention_mask")
    if positions is None:
        return None
    if isinstance(mask, Tensor):
        _refuse(*on_host(positions, mask))
        return None
    ends = torch.zeros_like(positions, dtype=torch.bool)
    ends[:, :-1] = positions.diff(dim=1) != 1
    return ends


def without_full_mask(batch: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
    """The batch without its attention mask, where this is full of ones and positions begin anew."""
    positions, mask = row_positions(batch, rows), batch.get("attention_mask")
    if positions is None or not isinstance(mask, Tensor):
        return batch
    known: Any = on_host(positions, mask)
    if not bool(known[1].all()) or not bool(_anew(known[0]).any()):
        return batch
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def _anew(positions: Tensor) -> Tensor:
    """Where positions go back, or stay at 0, bool [B, T - 1]. A jump ahead is no beginning where there is a mask."""
    steps = positions.diff(dim=1)
    return (steps < 0) | ((steps == 0) & (positions[:, 1:] == 0))


def _refuse(positions: Any, mask: Any) -> None:
    real = mask.bool()
    wrong = _anew(positions) & real[:, 1:] & real[:, :-1]
    if bool(wrong.any()):
        row, token = wrong.nonzero()[0].tolist()
        raise DataError(
            f"position_ids begin anew at token {token + 1} of row {row}, and the batch has an attention_mask: with one "
            "the model does not keep the sequences of a row apart; leave out attention_mask and padding, or give each "
            "sequence a row of its own"
        )


def check_kept_apart(model: nn.Module, view: ModelView, rows: int) -> None:
    """Try two sequences in a row: what the second gives must not depend on the first.

    Costs two forwards of at most two rows of five tokens, in eval mode and without gradient.

    :param model: what is called. :param rows: of the batch; kernels treat one and several differently.
    :raises UnsupportedModel: it depends on it, or the model takes no ``position_ids``.
    """
    name = type(view.model).__name__
    if "position_ids" not in inspect.signature(view.model.forward).parameters:
        raise UnsupportedModel(f"{name} takes no position_ids, so it cannot tell sequences of one row apart; {_ADVICE}")
    one, two, three = ordinary_tokens(view, 3).tolist()
    positions = torch.tensor([[i for n in _TRIED for i in range(n)]] * min(rows, 2))
    with evaluation_mode(view.model), torch.no_grad(), given_up_again(model):
        found, other = (
            _second(model, view, [*first, three, one], positions) for first in ([one, two, three], [two, three, two])
        )
    difference = float((found - other).abs().max())
    if not difference <= 1e-4 * float(found.abs().max()):
        kernel = attention_kernel(view.text_config)
        raise UnsupportedModel(
            f"{name} does not keep apart sequences that lie in one row (attention {kernel!r}, {rows} rows): what comes "
            f"second depends on the first, by up to {difference:.3g}; {_ADVICE}"
        )


_ADVICE = "give each sequence a row of its own, with an attention_mask"


def _second(model: nn.Module, view: ModelView, ids: list[int], positions: Tensor) -> Tensor:
    device: Any = getattr(view.model, "device", torch.device("cpu"))
    inputs = {"input_ids": torch.tensor([ids] * len(positions)), "position_ids": positions}
    if device.type != "meta":
        inputs = {name: each.to(device) for name, each in inputs.items()}
    return last_hidden_state(model, inputs, view=view)[:, _TRIED[0] :].float()
