"""Training data as torch and transformers want it: views of a corpus that copy nothing, and a collator.

With :class:`SelectedDataset` and :class:`TrainingCollator` the stock ``transformers.Trainer`` trains on what was
selected, with no plugin attached:

>>> data = SelectedDataset(shards, selection)  # doctest: +SKIP
>>> trainer = Trainer(model, arguments, train_dataset=data, data_collator=TrainingCollator(eos_id))  # doctest: +SKIP
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from paperhooks import DataError
from paperhooks.io import Ranks
from paperhooks.models import check_ids
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from paperhooks_miniplm.algorithm import IGNORED, Array, sequence_means
from paperhooks_miniplm.corpus.collator import collate
from paperhooks_miniplm.corpus.record_rows import StreamRows, vocabulary_size
from paperhooks_miniplm.corpus.row_numbers import row_numbers, rows_digest
from paperhooks_miniplm.corpus.rows import Row, RowSource, count_rows

__all__ = ["SelectedDataset", "StreamDataset", "TrainingCollator", "sequence_mean_loss"]

logger = logging.getLogger(__name__)


class SelectedDataset(Dataset[dict[str, Tensor]]):
    """Rows of a corpus by an index: item i is ``{"input_ids": int64 [n]}`` of the i-th chosen row.

    :param source: the corpus; nothing of it is read until an item is asked for.
    :param rows: row numbers [K] in the order to present them, a bool mask [N], or a
        :class:`~paperhooks.data.Selection`; all rows by default.
    :param vocabulary: of the model; ids must be below it.
    :raises DataError: row numbers that are no integers or lie outside the corpus, a mask of another length, or a corpus
        that can only be read in order, for which there is :class:`StreamDataset`; when read, an id that is not in the
        vocabulary, with its row.

    Can be pickled if the source can, for workers of any start method.
    """

    def __init__(self, source: RowSource, rows: Any = None, *, vocabulary: int | None = None) -> None:
        if isinstance(source, StreamRows):
            raise DataError(f"{source.name} can only be read in order; use StreamDataset, or export the chosen rows")
        self.source, self.vocabulary = source, vocabulary
        self.rows = row_numbers(source, rows)

    def __len__(self) -> int:
        return len(self.source) if self.rows is None else len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several items in one reading; data loaders prefer it."""
        return _items(self.source, [self._row(int(index)) for index in indices], self.vocabulary)

    def _row(self, index: int) -> int:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"item {index} was asked for, and there are {size}")
        return index % size if self.rows is None else int(self.rows[index])


class StreamDataset(IterableDataset[dict[str, Tensor]]):
    """Rows of a corpus in order, split over ranks and workers, able to stop and go on.

    Blocks of ``block`` rows are dealt to the ranks in turn, and a rank's blocks to the workers of its data loader. With
    ``block`` equal to the batch size of the loader, batches come in corpus order however many workers there are.

    :param source, rows, vocabulary: as in :class:`SelectedDataset`; of a corpus that can only be read in order,
        ascending rows.
    :param rank, world: this process and how many there are, for a loop of one's own. Leave them alone inside
        ``transformers.Trainer`` or ``accelerate``, which deal out batches themselves. With more than one process the
        rows that do not make a whole round are left out, so that all ranks have equally many.
    :raises DataError: as :class:`SelectedDataset`, or a rank, world or block that makes no sense.

    :meth:`state_dict` tells how far *this* object has been iterated. A loader without workers iterates it; workers have
    copies, whose states ``torchdata.stateful_dataloader`` collects.
    """

    def __init__(
        self,
        source: RowSource,
        rows: Any = None,
        *,
        rank: int = 0,
        world: int = 1,
        block: int = 1,
        vocabulary: int | None = None,
    ) -> None:
        if not 0 <= rank < world or block < 1:
            raise DataError(
                f"rank {rank} of {world} with blocks of {block} rows; expected 0 <= rank < world, block >= 1"
            )
        self.source, self.vocabulary = source, vocabulary
        self.rows = row_numbers(source, rows)
        self.rank, self.world, self.block = rank, world, block
        self._given = 0
        self._from = 0
        self._shards = 0
        self._loaded = False
        self._identity: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Rows that this rank gives, over all its workers, in a whole epoch."""
        total, share = self._total(), self.block * self.world
        return total if self.world == 1 else total // share * self.block

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        shard, shards = self._shard()
        self._begin(shards)
        while (start := (self._from + self._given // self.block * shards + shard) * self.block) < self._usable():
            begun = self._given % self.block
            places = range(start + begun, min(start + self.block, self._usable()))
            for item in _items(self.source, [self._row(place) for place in places], self.vocabulary):
                self._given += 1
                yield item
            if len(places) < self.block - begun:
                break
        self._given, self._from = 0, 0  # the next iteration is another epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands, as plain data; of use with the same rows in the same order only."""
        return {
            "from_block": self._from,
            "given": self._given,
            "shards": self._shards or self._shard()[1],
            "block": self.block,
            "rows": self._total(),
            "source": self._fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, at the next iteration.

        The number of ranks and workers may differ where all of them had given the same whole number of blocks.

        :raises DataError: a state of other rows or another block size, or, at the iteration, one in mid-block for
            another number of ranks and workers.
        """
        for name, wanted in (("block", self.block), ("rows", self._total()), ("source", self._fingerprint())):
            if state.get(name) != wanted:
                raise DataError(
                    f"the state of the data stream is of other data: its {name} is {state.get(name)}, here it is "
                    f"{wanted}; use the corpus, selection and block size that it was saved with"
                )
        self._from, self._given, self._shards = state["from_block"], state["given"], state["shards"]
        self._loaded = True

    def _begin(self, shards: int) -> None:
        """Start at the first row or, once after a state was loaded, where it says, for any number of shards."""
        if not self._loaded:
            self._from, self._given = 0, 0
        elif self._given and self._shards != shards:
            if self._given % self.block:
                raise DataError(
                    f"the data stream stopped inside a block for {self._shards} ranks times workers and cannot go on "
                    f"with {shards}; use the same number, or save after whole blocks of {self.block} rows"
                )
            self._from, self._given = self._from + self._given // self.block * self._shards, 0
        self._shards, self._loaded = shards, False

    def _shard(self) -> tuple[int, int]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return number * self.world + self.rank, workers * self.world

    def _total(self) -> int:
        return count_rows(self.source) if self.rows is None else len(self.rows)

    def _usable(self) -> int:
        return self._total() if self.world == 1 else len(self) * self.world

    def _row(self, place: int) -> int:
        return place if self.rows is None else int(self.rows[place])

    def _fingerprint(self) -> dict[str, Any]:
        if self._identity is None:
            self._identity = {**self.source.fingerprint(), "selection": rows_digest(self.rows)}
        return self._identity


@dataclass(frozen=True)
class TrainingCollator:
    """Batches for a Hugging Face model's own loss, such that it sees exactly the official mask.

    Those models move the labels by one themselves, so ``labels[t + 1]`` is -100 where ``input_ids[t]`` is padding or
    the end of a document (section 2.4). Rows are cut to ``max_length`` + 1 ids, all of which the model reads: with
    absolute positions that end at 1024, ``max_length`` is at most 1023.

    eos_id
        The end-of-sequence token; None masks padding only.
    pad_id
        The token to pad with; the end-of-sequence token by default, or 0 where there is none.
    pad_to
        Ids of every row of the batch; the longest row's by default.
    mask_after_eos
        False predicts the first token of every document from the end of the one before.
    vocabulary
        Ids must be below it; that of the tokenizer in :meth:`from_tokenizer`. DataError names the row of the batch.

    A batch in which nothing is predicted is logged: beside others of an optimiser step it does not count, but a model's
    own loss is NaN where a whole step has no target. The losses of this package refuse such a step.
    """

    eos_id: int | None
    pad_id: int | None = None
    max_length: int = 1024
    pad_to: int | None = None
    mask_after_eos: bool = True
    vocabulary: int | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, **options: Any) -> TrainingCollator:
        """With the end and padding tokens of a tokenizer. Raises DataError for one without an end token."""
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"{type(tokenizer).__name__} has no end-of-sequence token, so documents in a row cannot be told apart; "
                "set tokenizer.eos_token, or give TrainingCollator(eos_id=None) to mask padding only"
            )
        known = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
        return cls(**{**known, "vocabulary": vocabulary_size(tokenizer), **options})

    def __call__(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels`` int64 [B, T].

        :param items: what a dataset gives: mappings with ``input_ids``, :class:`Row` objects, or lists of ids.
        """
        pad = self.pad_id if self.pad_id is not None else self.eos_id or 0
        batch = collate(
            [_ids(item) for item in items],
            max_length=self.max_length,
            pad_id=pad,
            # Without an end token the padding token in a row is an ordinary one.
            eos_id=self.eos_id,
            pad_to=None if self.pad_to is None else self.pad_to - 1,
            mask_after_eos=self.mask_after_eos and self.eos_id is not None,
            vocabulary=self.vocabulary,
        )
        return self._shifted(batch)

    def _shifted(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counted = batch["loss_mask"].bool()
        if not bool(counted.any()):
            logger.warning("no row of this batch of %d has a token to predict: nothing is learnt from it", len(counted))
        first = batch["input_ids"][:, :1]
        return {
            "input_ids": torch.cat([first, batch["label"]], 1),
            # The first id is always attended to: a row without any would have no attention at all.
            "attention_mask": torch.cat([torch.ones_like(first), batch["attention_mask"]], 1),
            "labels": torch.cat([torch.full_like(first, IGNORED), batch["label"].masked_fill(~counted, IGNORED)], 1),
        }


def sequence_mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The official next-token loss, a mean over rows of each row's mean, for a Trainer without a plugin.

    >>> trainer = Trainer(..., compute_loss_func=sequence_mean_loss)  # doctest: +SKIP
    >>> trainer.loss_is_scaled_for_ga = False  # doctest: +SKIP

    The second line makes the Trainer average the micro-batches of an accumulated batch. Holds the logits [B, T, V];
    ``Distil(weight=0)`` does not.

    :param outputs: of the model, with ``logits`` [B, T, V]. :param labels: int64 [B, T], moved by one here, as in the
        model's own loss; where nothing is predicted the loss is 0, with a gradient of 0.
    :param num_items_in_batch: targets of the whole optimiser step, as the Trainer counts them.
    :raises DataError: a step in which nothing is predicted; without a number this batch is taken for one.
    """
    targets = labels[:, 1:].to(outputs.logits.device)
    counted = targets != IGNORED
    if not num_items_in_batch and Ranks().count == 1 and not bool(counted.any()):
        raise DataError(
            f"no row of this batch of {len(labels)} has a token to predict, so there is nothing to learn in this step: "
            "rows of fewer than two ids, or with nothing but ends of documents before their last; leave them out"
        )
    logits = outputs.logits[:, :-1].float().transpose(1, 2)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    means, count = sequence_means(losses, counted)
    return means.sum() / (count > 0).sum().clamp(min=1)


def _items(source: RowSource, numbers: list[int], vocabulary: int | None) -> list[dict[str, Tensor]]:
    found = source.read(numbers)
    for number, row in zip(numbers, found, strict=True):
        check_ids(f"row {number} of {source.name}", row.ids, vocabulary)
    return [{"input_ids": torch.from_numpy(row.ids)} for row in found]


def _ids(item: Any) -> Array:
    if isinstance(item, Row):
        return item.ids
    return np.asarray(item["input_ids"] if isinstance(item, Mapping) else item)
