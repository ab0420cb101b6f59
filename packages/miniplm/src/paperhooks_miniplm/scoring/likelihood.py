"""Negative log-likelihoods of rows under one model: sums and counts, from which every normalisation follows later.

For a row of ids with n entries the model reads the first n - 1 and predicts the last n - 1 (section 2.4). A prediction
counts unless it is made from the end token: where padding is the end token, as in the official code, the first token of
every further document in a row is not predicted. The logits [B, T, V] never stand in memory: only counted positions
reach the head, a chunk at a time, in float32; sums are float64.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from paperhooks import DataError, ModelView, UnsupportedModel
from paperhooks.logprobs import Head, token_logprobs
from paperhooks.models import check_ids, evaluation_mode, view_of
from torch import Tensor, nn

from paperhooks_miniplm.algorithm import IGNORED, Array, counted_inputs, negative_log_likelihood

__all__ = ["LogLikelihood", "OverLong", "RowScores", "ScoringWarning", "fitted", "labels_of", "longest_readable"]

#: What happens to rows longer than the model may read: cut (and counted), read in pieces, or refused.
OverLong: TypeAlias = Literal["truncate", "split", "error"]

logger = logging.getLogger(__name__)


class ScoringWarning(UserWarning):
    """Scoring goes on, but slower or with rows left out."""


@dataclass(frozen=True, slots=True, eq=False)
class RowScores:
    """Scores of some rows.

    nll
        Summed negative log-likelihood of every row's counted tokens, float64 [n], natural logarithm; NaN for a row that
        could not be scored.
    count
        Counted tokens, int64 [n]; 0 for a row with nothing to predict.
    cut
        Rows that were cut to the length limit, bool [n].
    """

    nll: Array
    count: Array
    cut: Array


def labels_of(ids: Tensor, lengths: Tensor, end: int | None) -> Tensor:
    """What every position is to predict: int64 [B, T - 1], -100 where nothing counts.

    :param ids: int64 [B, T], padded on the right. :param lengths: real ids of each row, int64 [B].
    :param end: the end token, from which nothing is predicted; None predicts from all.
    """
    labels = ids[:, 1:].clone()
    there = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    counted = there & counted_inputs(ids[:, :-1], () if end is None else (end,))
    return labels.masked_fill(~counted, IGNORED)


def fitted(
    rows: Sequence[Array], max_length: int, over_long: OverLong, numbers: Sequence[int] | None = None
) -> tuple[list[Array], list[int], Array]:
    """Rows as pieces of at most ``max_length`` + 1 ids, the row that each piece belongs to, and which were cut, bool.

    Pieces of a split row overlap by one id, so that every token but the first is predicted once. Raises DataError for a
    row that is too long with "error".
    """
    pieces, owners, cut = [], [], np.zeros(len(rows), dtype=bool)
    for number, ids in enumerate(rows):
        if len(ids) <= max_length + 1:
            pieces.append(ids)
            owners.append(number)
        elif over_long == "error":
            named = numbers[number] if numbers else number
            raise DataError(
                f"row {named} has {len(ids)} ids, more than max_length + 1 = {max_length + 1}; pass "
                "over_long='truncate' or 'split'"
            )
        elif over_long == "truncate":
            cut[number] = True
            pieces.append(ids[: max_length + 1])
            owners.append(number)
        else:
            starts = range(0, len(ids) - 1, max_length)
            pieces += [ids[start : start + max_length + 1] for start in starts]
            owners += [number] * len(starts)
    return pieces, owners, cut


@dataclass(eq=False)
class LogLikelihood:
    """A model that scores rows; the settings are those of section 2.4.

    model
        A stock causal language model, in its own dtype and on its own device.
    end
        The end token, from which nothing is predicted; None predicts from every token.
    max_length
        Most tokens that the model reads of a row; rows are at most one id longer.
    batch_tokens
        Rows times longest row of a batch, by default 2,048 on a CPU, whose caches hold no more, and 16,384 elsewhere;
        halved, for good, when memory does not suffice.
    sort
        Rows of similar length together, so that little is padding.
    chunk
        Positions that the head sees at once.
    view
        What core found in the model.

    Raises DataError for a ``max_length`` above what the model can read.
    """

    model: nn.Module
    end: int | None = None
    max_length: int = 1024
    over_long: OverLong = "truncate"
    batch_tokens: int | None = None
    sort: bool = True
    chunk: int = 512
    full_logits: bool = False
    view: ModelView = field(init=False, repr=False)
    _head: Head | None = field(init=False, repr=False)
    _budget: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.over_long not in ("truncate", "split", "error"):
            raise DataError(f"over_long is {self.over_long!r}; expected 'truncate', 'split' or 'error'")
        self.view = view_of(self.model)
        self._budget = _default_batch(self.view) if self.batch_tokens is None else self.batch_tokens
        if min(self.max_length, self._budget, self.chunk) < 1:
            raise DataError("max_length, batch_tokens and chunk must be at least 1")
        limit = longest_readable(self.view)
        if limit is not None and self.max_length > limit:
            raise DataError(f"max_length is {self.max_length}, but the model reads at most {limit} tokens")
        self._head = None if self.full_logits else _head(self.view)

    @property
    def vocabulary(self) -> int:
        """Number of ids that the model knows."""
        embeddings: Any = self.view.model.get_input_embeddings()  # type: ignore[operator]
        return int(embeddings.weight.shape[0])

    def score(self, rows: Sequence[Array], *, first: int = 0, numbers: Sequence[int] | None = None) -> RowScores:
        """Scores of rows of ids, in their order; the same whatever rows are scored together, up to rounding.

        :param first: number of the first row in the corpus, for messages. :param numbers: of all rows, where they do
            not follow each other.
        :raises DataError: an id that the model does not know, naming row and id.
        """
        numbers = range(first, first + len(rows)) if numbers is None else numbers
        for number, ids in zip(numbers, rows, strict=True):
            check_ids(f"row {number}", ids, self.vocabulary)
        pieces, owners, cut = fitted(rows, self.max_length, self.over_long, numbers)
        nll, count = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
        sums, counts = self._all(pieces)
        np.add.at(nll, owners, sums)
        np.add.at(count, owners, counts)
        bad = np.flatnonzero(~np.isfinite(nll))
        if len(bad) and self.view.model.dtype != torch.float32:
            nll[bad] = self._again([rows[i] for i in bad.tolist()])
        return RowScores(np.where(np.isfinite(nll), nll, np.nan), count, cut)

    def _all(self, pieces: Sequence[Array]) -> tuple[Array, Array]:
        while True:
            try:
                return self._once(pieces)
            except (RuntimeError, MemoryError) as error:
                # Ranks that wait for parts of a call have lost it, whatever is read next.
                lost = self.view.spread.in_step or self._budget <= max(map(len, pieces), default=1)
                if lost or not _out_of_memory(error):
                    raise
            # Outside the handler: the traceback holds the tensors that did not fit.
            self._budget = max(1, self._budget // 2)
            logger.warning("out of memory: going on with %d tokens a batch", self._budget)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _once(self, pieces: Sequence[Array]) -> tuple[Array, Array]:
        nll, count = np.zeros(len(pieces)), np.zeros(len(pieces), dtype=np.int64)
        sums = []
        # FSDP2 may keep gathered weights for the next backward pass, which takes none of inference mode.
        mode = torch.no_grad if self.view.spread.in_step else torch.inference_mode
        with evaluation_mode(self.view.model), mode():
            for batch in self._batches(pieces):
                found, count[batch] = self._batch([pieces[i] for i in batch])
                sums.append((batch, found))
        # Only now wait for a GPU: it is never idle while the next batch is made.
        if sums:
            nll[[i for batch, _ in sums for i in batch]] = torch.cat([found for _, found in sums]).cpu().numpy()
        return nll, count

    def _batches(self, pieces: Sequence[Array]) -> Iterator[list[int]]:
        usable = [i for i, ids in enumerate(pieces) if len(ids) > 1]
        if self.sort:
            usable.sort(key=lambda i: len(pieces[i]))
        batch: list[int] = []
        longest = 0
        for i in usable:
            longest = max(longest, len(pieces[i]))
            if batch and longest * (len(batch) + 1) > self._budget:
                yield batch
                batch, longest = [], len(pieces[i])
            batch.append(i)
        if batch:
            yield batch

    def _batch(self, rows: Sequence[Array]) -> tuple[Tensor, Array]:
        """Summed negative log-likelihoods [B], float64 where the model is, and how many were counted, int64 [B]."""
        lengths = torch.tensor([len(ids) for ids in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for row, each in enumerate(rows):
            ids[row, : len(each)] = torch.from_numpy(np.ascontiguousarray(each, dtype=np.int64))
        labels = labels_of(ids, lengths, self.end)
        mask = (torch.arange(ids.shape[1] - 1) < (lengths - 1)[:, None]).long()
        inputs = {"input_ids": ids[:, :-1], "attention_mask": mask}
        if bool(mask.all()):
            del inputs["attention_mask"]  # kernels are faster without one
        device = getattr(self.view.model, "device", torch.device("cpu"))
        if device.type != "meta":  # offloaded: accelerate moves the inputs
            inputs = {name: each.to(device, non_blocking=True) for name, each in inputs.items()}
        tokens = self._logprobs(inputs, labels)
        exact = torch.float32 if tokens.device.type == "mps" else torch.float64
        return -tokens.to(exact).sum(-1), (labels != IGNORED).sum(-1).numpy()

    def _logprobs(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        if self._head is not None:
            return self._head.run(
                self.view, inputs, lambda hidden, head: token_logprobs(hidden, head, labels, chunk=self.chunk)
            )
        found = []
        for row in range(len(labels)):  # one at a time: these logits stand in memory in full
            own = {name: each[row : row + 1] for name, each in inputs.items()}
            logits = self.view.model(**own, use_cache=False).logits[0].float()
            wanted = labels[row].to(logits.device, non_blocking=True)
            nll = negative_log_likelihood(logits, wanted.clamp(min=0))
            found.append(-nll.masked_fill(wanted < 0, 0.0)[None])
        return torch.cat(found)

    def _again(self, rows: Sequence[Array]) -> Array:
        """Rows whose sum overflowed, once more with a float32 copy of the model; NaN where that does not help."""
        if self.view.spread.in_step:
            warnings.warn(
                f"{len(rows)} rows gave NaN or infinity in {self.view.model.dtype}; a model that is {self.view.spread} "
                "is not copied to score them in float32: load it in bfloat16 or float32",
                ScoringWarning, stacklevel=4,
            )  # fmt: skip
            return np.full(len(rows), np.nan)
        warnings.warn(
            f"{len(rows)} rows gave NaN or infinity in {self.view.model.dtype}; they are scored again in float32",
            ScoringWarning, stacklevel=4,
        )  # fmt: skip
        try:
            wide = copy.deepcopy(self.view.model).float()
        except (RuntimeError, MemoryError):
            return np.full(len(rows), np.nan)
        again = LogLikelihood(
            wide, self.end, self.max_length, self.over_long, self._budget, self.sort, self.chunk, self.full_logits
        )
        return again.score(rows).nll


def longest_readable(view: ModelView) -> int | None:
    """Most tokens that a model can read, or None where its config sets no limit."""
    limit = getattr(view.text_config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def _default_batch(view: ModelView) -> int:
    device: Any = getattr(view.model, "device", torch.device("cpu"))
    return 2048 if device.type == "cpu" else 16384


def _head(view: ModelView) -> Head | None:
    try:
        return Head.from_model(view)
    except UnsupportedModel as error:
        warnings.warn(f"scoring with full logits, a row at a time: {error}", ScoringWarning, stacklevel=4)
        return None


def _out_of_memory(error: Exception) -> bool:
    # The CPU's allocator has no class of its own for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )
