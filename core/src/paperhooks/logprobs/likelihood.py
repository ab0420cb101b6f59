"""Negative log-likelihoods of rows under one model: sums and counts, from which every normalisation follows later.

For a row of ids with n entries the model reads the first n - 1 and predicts the last n - 1. All predictions count, or
those that the caller names, but for those that are made from an end token: what begins the next document of a row
cannot be known. The logits [B, T, V] never stand in memory: only counted positions reach the head, a chunk at a time,
in float32; sums are float64.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from paperhooks.errors import DataError, UnsupportedModel
from paperhooks.logprobs.head import Head
from paperhooks.logprobs.tokens import token_logprobs
from paperhooks.models.batches import length_batches
from paperhooks.models.forward import evaluation_mode, view_of
from paperhooks.models.tokenizers import check_ids
from paperhooks.models.view import ModelView

__all__ = ["LogLikelihood", "OverLong", "RowScores", "ScoringWarning", "longest_readable", "row_pieces"]

Array: TypeAlias = npt.NDArray[Any]
#: What happens to rows longer than the model may read: cut (and counted), read in pieces, or refused.
OverLong: TypeAlias = Literal["truncate", "split", "error"]

#: What :func:`token_logprobs` does not look at.
_IGNORED: Final = -100

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


def row_pieces(
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


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Ids that are read at once, and which of them count as predicted, bool; None for all."""

    ids: Array
    counted: Array | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(eq=False)
class LogLikelihood:
    """A model that scores rows.

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
    batch_rows
        Most rows of a batch; as many as fit without it.
    head
        From :meth:`Head.from_model`, where it is there already.
    view
        What core found in the model.

    Raises DataError for a ``max_length`` above what the model can read and for an ``end`` that it does not know, and
    UnsupportedModel for one whose layers see the tokens that follow.
    """

    model: nn.Module
    end: int | None = None
    max_length: int = 1024
    over_long: OverLong = "truncate"
    batch_tokens: int | None = None
    sort: bool = True
    chunk: int = 512
    full_logits: bool = False
    batch_rows: int | None = None
    head: Head | None = field(default=None, repr=False)
    view: ModelView = field(init=False, repr=False)
    _head: Head | None = field(init=False, repr=False)
    _budget: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.over_long not in ("truncate", "split", "error"):
            raise DataError(f"over_long is {self.over_long!r}; expected 'truncate', 'split' or 'error'")
        self.view = view_of(self.model)
        if not self.view.causal:
            raise UnsupportedModel(
                f"{type(self.view.model).__name__} is an encoder: its layers see the tokens that they are to predict; "
                "use a causal language model, or set is_decoder=True in the config of a model that was trained as one"
            )
        check_ids("end", () if self.end is None else self.end, self.vocabulary)
        self._budget = _default_batch(self.view) if self.batch_tokens is None else self.batch_tokens
        if min(self.max_length, self._budget, self.chunk, self.batch_rows or 1) < 1:
            raise DataError("max_length, batch_tokens, batch_rows and chunk must be at least 1")
        limit = longest_readable(self.view)
        if limit is not None and self.max_length > limit:
            raise DataError(f"max_length is {self.max_length}, but the model reads at most {limit} tokens")
        self._head = None if self.full_logits else self.head or _head(self.view)

    @property
    def vocabulary(self) -> int:
        """Number of ids that the model knows."""
        embeddings: Any = self.view.model.get_input_embeddings()  # type: ignore[operator]
        return int(embeddings.weight.shape[0])

    def score(
        self,
        rows: Sequence[Array],
        *,
        first: int = 0,
        numbers: Sequence[int] | None = None,
        counted: Sequence[Array] | None = None,
    ) -> RowScores:
        """Scores of rows of ids, in their order; the same whatever rows are scored together, up to rounding.

        :param counted: for every row which of its ids count as predicted, bool [n]; the first is never predicted.
        :param first: number of the first row in the corpus, for messages. :param numbers: of all rows, where they do
            not follow each other.
        :raises DataError: an id that the model does not know, naming row and id.
        """
        numbers = range(first, first + len(rows)) if numbers is None else numbers
        _check_rows(rows, numbers, self.vocabulary)
        read, owners, cut = row_pieces(rows, self.max_length, self.over_long, numbers)
        wanted: Sequence[Array | None] = [None] * len(read)
        if counted is not None:
            _check_counted(rows, counted, numbers)
            wanted = row_pieces(counted, self.max_length, self.over_long, numbers)[0]
        pieces = [_Piece(*each) for each in zip(read, wanted, strict=True)]
        nll, count = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
        sums, counts = self._all(pieces)
        np.add.at(nll, owners, sums)
        np.add.at(count, owners, counts)
        bad = np.flatnonzero(~np.isfinite(nll))
        if len(bad) and self.view.model.dtype != torch.float32:
            again = bad.tolist()
            nll[bad] = self._again([rows[i] for i in again], counted and [counted[i] for i in again])
        return RowScores(np.where(np.isfinite(nll), nll, np.nan), count, cut)

    def _all(self, pieces: Sequence[_Piece]) -> tuple[Array, Array]:
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

    def _once(self, pieces: Sequence[_Piece]) -> tuple[Array, Array]:
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

    def _batches(self, pieces: Sequence[_Piece]) -> Iterator[list[int]]:
        usable = [i for i, piece in enumerate(pieces) if len(piece) > 1]
        if self.sort:
            usable.sort(key=lambda i: len(pieces[i]))
        return length_batches(usable, list(map(len, pieces)), self._budget, self.batch_rows)

    def _batch(self, rows: Sequence[_Piece]) -> tuple[Tensor, Array]:
        """Summed negative log-likelihoods [B], float64 where the model is, and how many were counted, int64 [B]."""
        lengths = torch.tensor([len(piece) for piece in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        wanted = torch.arange(ids.shape[1]) < lengths[:, None]
        for row, piece in enumerate(rows):
            ids[row, : len(piece)] = torch.from_numpy(np.ascontiguousarray(piece.ids, dtype=np.int64))
            if piece.counted is not None:
                wanted[row, : len(piece)] &= torch.from_numpy(np.ascontiguousarray(piece.counted, dtype=bool))
        labels = ids[:, 1:].masked_fill(~self._predicted(ids, wanted), _IGNORED)
        mask = (torch.arange(ids.shape[1] - 1) < (lengths - 1)[:, None]).long()
        inputs = {"input_ids": ids[:, :-1], "attention_mask": mask}
        if bool(mask.all()):
            del inputs["attention_mask"]  # kernels are faster without one
        device = getattr(self.view.model, "device", torch.device("cpu"))
        if device.type != "meta":  # offloaded: accelerate moves the inputs
            inputs = {name: each.to(device, non_blocking=True) for name, each in inputs.items()}
        tokens = self._logprobs(inputs, labels)
        exact = torch.float32 if tokens.device.type == "mps" else torch.float64
        return -tokens.to(exact).sum(-1), (labels != _IGNORED).sum(-1).numpy()

    def _predicted(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Which predictions count, bool [B, T - 1]: of wanted ids, and not from an end token."""
        return wanted[:, 1:] if self.end is None else wanted[:, 1:] & (ids[:, :-1] != self.end)

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
            chosen = logits.gather(-1, wanted.clamp(min=0)[:, None])[:, 0] - logits.logsumexp(-1)
            found.append(chosen.masked_fill(wanted < 0, 0.0)[None])
        return torch.cat(found)

    def _again(self, rows: Sequence[Array], counted: Sequence[Array] | None) -> Array:
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
            wide, self.end, self.max_length, self.over_long, self._budget, self.sort, self.chunk, self.full_logits,
            self.batch_rows,
        )  # fmt: skip
        return again.score(rows, counted=counted).nll


def _check_rows(rows: Sequence[Array], numbers: Sequence[int], vocabulary: int) -> None:
    if len(rows) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers for {len(rows)} rows")
    try:
        check_ids("a row", np.concatenate(rows) if rows else (), vocabulary)  # one look at all of them is cheap
    except (DataError, ValueError):
        for number, ids in zip(numbers, rows, strict=True):
            check_ids(f"row {number}", ids, vocabulary)
        raise


def _check_counted(rows: Sequence[Array], counted: Sequence[Array], numbers: Sequence[int]) -> None:
    if len(rows) != len(counted):
        raise DataError(f"counted names the ids of {len(counted)} rows, and there are {len(rows)}")
    for number, ids, wanted in zip(numbers, rows, counted, strict=True):
        if len(ids) != len(wanted):
            raise DataError(f"row {number} has {len(ids)} ids, and counted tells of {len(wanted)}")


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
