"""Forward passes over the texts of one side, and nothing kept but the norms of what the matrices read.

A run with a folder keeps what it has in parts; started again, it makes those that are missing, and ends with the same
statistics, byte for byte. Several processes (``accelerate launch``, ``torchrun``) share the parts, by replicas of the
model: of one that tensor parallelism spreads over them they read the same texts, and each has a part of some inputs.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from paperhooks import ModelError, ModelView, active_session
from paperhooks.compat import origin
from paperhooks.io import Ranks, UnitStore, choice, class_name, config_entries, hash_json, model_digest
from paperhooks.models import calibrate, find_tokenizer, in_step, ranks_of, running_model
from paperhooks.weights import warn_of_config
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from paperhooks_mathneuro.matrices import Coverage, HeadChoice, find_matrices
from paperhooks_mathneuro.statistics.norms import NormRecorder, Norms, refined
from paperhooks_mathneuro.statistics.statistics import Statistics, drawn
from paperhooks_mathneuro.texts import (
    TEMPLATE,
    Sample,
    batches_by_length,
    check_vocabulary,
    needs_tokenizer,
    read_records,
    samples_digest,
    tokenized,
)

__all__ = ["KIND", "CoverageWarning", "Keep", "Piece", "StatisticParts", "TokenScope", "collect", "gathered", "joined"]

#: Which tokens count: all (the official code), those of answers, or all but the first, which draws attention.
TokenScope: TypeAlias = Literal["all", "answer", "no_first"]
#: Keep the norms of every sample, or their sums only (for models whose inputs are many).
Keep: TypeAlias = Literal["samples", "sums"]
#: Texts a part: what an interrupted run loses at most.
_PART: Final = 64
#: What a folder of parts holds.
KIND: Final = "mathneuro-statistics"


class CoverageWarning(UserWarning):
    """Some matrices of the decoder are not scored."""


def collect(
    model: nn.Module,
    data: Any,
    *,
    tokenizer: Any = None,
    name: str = "",
    samples: int | None = None,
    replacement: bool = False,
    seed: int = 0,
    token_scope: TokenScope = "all",
    template: str = TEMPLATE,
    max_length: int | None = None,
    truncate: bool = False,
    head: HeadChoice = "no",
    include: str | None = None,
    exclude: str | None = None,
    keep: Keep = "samples",
    batch_size: int = 8,
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Statistics:
    """Statistics of one side: how strongly its texts drive every input channel of the scored matrices.

    The model is called without gradient and without cache, in eval mode; mode, hooks and weights are left as they were.

    :param model: a stock transformers model, or one wrapped for several processes.
    :param data: records (see :mod:`paperhooks_mathneuro.texts`), a file of them, or ``hub:NAME:SPLIT``.
    :param tokenizer: for texts; found by the model's name when missing.
    :param name: what the side is called in reports.
    :param samples: draw so many texts at random, with ``seed``; without it all are read, in order. ``replacement``
        draws with replacement, as the official code does (each text is still read once).
    :param token_scope: which tokens count in the norms. "answer" needs records with a question and an answer.
    :param max_length: longest text; by default the model's ``max_position_embeddings``. Longer ones are errors unless
        ``truncate``.
    :param head, include, exclude: which matrices; see :func:`paperhooks_mathneuro.find_matrices`.
    :param batch_size, batch_tokens: most texts, and most tokens with padding, that the model reads at once. Batches do
        not change the statistics beyond rounding. Without ``batch_tokens``, 1,024 on the CPU, where larger batches cost
        memory and gain nothing, and 16,384 elsewhere.
    :param out: a folder for parts, so that an interrupted run goes on; the result is in ``statistics.safetensors``.
    :raises DataError: data that cannot be used, an activation that is NaN or infinite, or a folder of another run.
    :raises ModelError: a model that is attached, or has no matrices. Warns (:class:`CoverageWarning`) with the share of
        the decoder's parameters that is not scored.
    """
    inner = running_model(model)
    if active_session(inner) is not None:
        raise ModelError("the model is attached to a session; close it, or collect what the session changes by hand")
    choice("token_scope", token_scope, get_args(TokenScope))
    choice("keep", keep, get_args(Keep))
    view = ModelView.from_model(inner)
    coverage = find_matrices(view, head=head, include=include, exclude=exclude)
    _refuse_parts(view, coverage, exclude)
    _warn_uncovered(view, coverage)
    records = read_records(data)
    if tokenizer is None and needs_tokenizer(records):
        tokenizer = find_tokenizer(inner)
    limit = getattr(view.text_config, "max_position_embeddings", None) if max_length is None else max_length
    texts = tokenized(records, tokenizer, template=template, max_length=limit, truncate=truncate)
    check_vocabulary(texts, inner)
    order = (
        torch.arange(len(texts)) if samples is None else drawn(len(texts), samples, seed=seed, replacement=replacement)
    )
    used = sorted(set(order.tolist()))
    if batch_tokens is None:
        batch_tokens = 1024 if getattr(inner, "device", torch.device("cpu")).type == "cpu" else 16384
    work = _Work(view, coverage, [texts[i] for i in used], token_scope, keep, batch_size, batch_tokens, progress)
    decides = {
        "texts": samples_digest(work.texts),
        "token_scope": token_scope,
        "keep": keep,
        "matrices": hash_json([m.name for m in coverage.matrices]),
        "head": head, "include": include, "exclude": exclude,
        "samples": samples, "replacement": replacement, "seed": seed,
    }  # fmt: skip
    place = {old: new for new, old in enumerate(used)}
    with _begun(work, decides, out) as (weights, parts):
        found = work.run(parts)
        statistics = Statistics(
            coverage=coverage,
            inputs=found.inputs,
            norms=found.values if keep == "samples" else {},
            sums=found.values if keep == "sums" else {},
            tokens=torch.tensor([int(work.counted(text).sum()) for text in work.texts]),
            rows=torch.tensor([place[i] for i in order.tolist()], dtype=torch.int64),
            about={**decides, "name": name, "calls": found.calls, "tokenizer": _name_of(tokenizer)}
            | {"model": origin(view.config)},
            model_class=class_name(inner),
            config=config_entries(inner),
            weights=weights,
        )
        if parts is not None and work.ranks.first:
            parts.store.confirm()
            statistics.save(parts.store.folder / "statistics.safetensors")
    return statistics


@contextmanager
def _begun(
    work: _Work, decides: Mapping[str, Any], out: str | Path | None
) -> Iterator[tuple[str, StatisticParts | None]]:
    """The digest of the weights, and the folder ``out`` held for this run, if there is one."""
    model = work.view.model
    if out is None:
        yield model_digest(model), None
        return
    store, config = UnitStore(out, KIND), config_entries(model)
    about = {"config": config, "samples": work.part_size}
    digests = lambda: {"weights": model_digest(model)}  # noqa: E731
    with store.begin(decides, costly=digests, about=about, together=work.ranks.in_step):
        first = store.manifest["about"]
        warn_of_config(f"parts in {out}, which are made again", first["config"], model)
        work.part_size = int(first["samples"])
        yield (
            store.manifest["weights"],
            StatisticParts(store, hash_json(config), [m.name for m in work.coverage.matrices]),
        )


def _refuse_parts(view: ModelView, coverage: Coverage, exclude: str | None) -> None:
    """Raise ModelError where a process would see some tokens only, or a part of the experts."""
    parameters = {one.parameter: view.model.get_parameter(one.parameter) for one in coverage.uncovered}
    spread = [name for name, weight in parameters.items() if weight.ndim == 3 and hasattr(weight, "full_tensor")]
    experts = [name for name in spread if exclude is None or not re.search(exclude, name)]
    if "cp" in view.spread.kinds or experts:
        which = f"{experts[0]} is a part of its experts" if experts else "each process reads some of the tokens"
        raise ModelError(
            f"{type(view.model).__name__} is {view.spread}: here {which}, whose statistics would not be whole. Collect "
            "with the model in one process, or replicated (DDP)" + ("; or leave experts out" if experts else "")
        )


def _warn_uncovered(view: ModelView, coverage: Coverage) -> None:
    hard = [one for one in coverage.uncovered if "left out by" not in one.reason]
    if hard:
        warnings.warn(f"{type(view.model).__name__}: {coverage}", CoverageWarning, stacklevel=3)
    if any(getattr(m, "active_adapters", None) and hasattr(m, "base_layer") for m in view.decoder.modules()):
        warnings.warn(
            "adapters are active: their effect is in the statistics, but only the base layers are scored",
            CoverageWarning, stacklevel=3,
        )  # fmt: skip


def _name_of(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__) if tokenizer is not None else ""


@dataclass(eq=False)
class _Work:
    """One pass over the texts, in parts that are the same in every run: ``part_size`` texts of similar length each."""

    view: ModelView
    coverage: Coverage
    texts: Sequence[Sample]
    token_scope: TokenScope
    keep: Keep
    batch_size: int
    batch_tokens: int
    progress: bool

    def __post_init__(self) -> None:
        self.ranks = ranks_of(self.view.model)
        # Several replicas need parts enough to share, of short and of long texts.
        count = self.ranks.replicas
        share = _PART if count == 1 else min(_PART, math.ceil(len(self.texts) / (4 * count)))
        self.part_size = max(share, self.batch_size)

    def run(self, parts: StatisticParts | None) -> Piece:
        """All texts; what ``parts`` has already is taken from there."""
        ranks, order = self.ranks, sorted(range(len(self.texts)), key=lambda i: len(self.texts[i].ids))
        wanted = [order[start : start + self.part_size] for start in range(0, len(order), self.part_size)]
        kept = {n: parts.read(n, samples) for n, samples in enumerate(wanted)} if parts is not None else {}
        found = {n: piece for n, piece in kept.items() if piece is not None}
        ranks.meet()  # all have read before one writes: the parts are shared out by what was done before
        mine = [n for n in range(len(wanted)) if n not in found][ranks.replica :: ranks.replicas]
        error: Exception | None = None
        try:
            with (
                tqdm(
                    total=sum(len(wanted[n]) for n in mine), desc="collect", unit="text", disable=not self.progress
                ) as bar,
                in_step(self.view.model),
            ):
                for n in mine:
                    found[n] = self._piece(wanted[n], bar)
                    if parts is not None and ranks.leader:
                        parts.write(n, found[n])
        except Exception as raised:
            error = raised
        ranks.meet(error)
        return joined([piece for _, piece in sorted(gathered(found, ranks).items())], self.keep)

    def _piece(self, samples: Sequence[int], bar: tqdm[Any]) -> Piece:
        mesh = self.view.spread.tensor_mesh
        recorder = NormRecorder(self.coverage.matrices, None if mesh is None else mesh.get_group())
        piece = Piece([], {}, {})

        def feed() -> Iterator[dict[str, Tensor]]:
            nonlocal piece
            for batch in batches_by_length(self.texts, samples, self.batch_size, self.batch_tokens):
                inputs, counted = self._padded(batch)
                recorder.begin(counted)
                yield inputs  # the model reads it before this goes on
                bar.update(len(batch))
                piece = piece.extended(batch, recorder.finish([self.texts[i].place for i in batch]), self.keep)

        linear = [m.module for m in self.coverage.matrices if m.expert is None]
        routed = [m.module for m in self.coverage.matrices if m.expert is not None]
        calls = calibrate(
            self.view, feed(), dict.fromkeys(linear), recorder.receive, routed=dict.fromkeys(routed),
            receive_routed=recorder.receive_routed, progress=False,
        )  # fmt: skip
        return replace(piece, calls={name: calls[name] for name in dict.fromkeys(linear)})

    def _padded(self, batch: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs padded on the right, and which of their tokens count."""
        texts = [self.texts[i] for i in batch]
        ids = pad_sequence([torch.tensor(text.ids) for text in texts], True, _pad_token(self.view))
        mask = pad_sequence([torch.ones(len(text.ids), dtype=torch.int64) for text in texts], True)
        counted = pad_sequence([self.counted(text) for text in texts], True)
        return {"input_ids": ids, "attention_mask": mask}, counted

    def counted(self, text: Sample) -> Tensor:
        """Which tokens of a text count: bool [T]."""
        counted = torch.ones(len(text.ids), dtype=torch.bool)
        if self.token_scope == "answer":
            counted[: text.answer_start] = False
        elif self.token_scope == "no_first" and len(text.ids) > 1:
            counted[0] = False
        return counted


def _pad_token(view: ModelView) -> int:
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        token = getattr(view.text_config, name, None)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int) and token >= 0:
            return token
    return 0  # masked out, so that any token will do


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Norms [n, D] of ``samples``, or their sums [2, D], by input, and how often each module was called for them."""

    samples: Sequence[int]
    inputs: Mapping[str, str]
    values: Mapping[str, Tensor]
    calls: Mapping[str, int] = field(default_factory=dict)

    def extended(self, samples: Sequence[int], norms: Norms, keep: Keep) -> Piece:
        """With a further batch; what matrices share stays what they shared in all batches."""
        new = {k: _sums(v) for k, v in norms.values.items()} if keep == "sums" else norms.values
        added = Piece(samples, norms.inputs, new)
        return joined([self, added], keep, in_order=False) if self.samples else added


def _sums(norms: Tensor) -> Tensor:
    wide = norms.double()
    return torch.stack([wide.sum(0), wide.square().sum(0)])


def joined(pieces: Sequence[Piece], keep: Keep, *, in_order: bool = True) -> Piece:
    """All pieces as one: rows by sample number, or sums added up."""
    samples = [i for piece in pieces for i in piece.samples]
    inputs = refined([piece.inputs for piece in pieces])
    spread = [Norms(piece.inputs, piece.values).spread(inputs) for piece in pieces]
    calls: Counter[str] = Counter()
    for piece in pieces:
        calls.update(piece.calls)
    if keep == "sums":
        return Piece(
            samples, inputs, {own: torch.stack([each[own] for each in spread]).sum(0) for own in spread[0]}, calls
        )
    order = torch.tensor(samples).argsort()
    values = {}
    for own in list(spread[0]):
        rows = torch.cat([each.pop(own) for each in spread])
        values[own] = rows[order] if in_order else rows
    return Piece(sorted(samples) if in_order else samples, inputs, values, calls)


def gathered(pieces: dict[int, Piece], ranks: Ranks) -> dict[int, Piece]:
    """The pieces of all processes by number."""
    if ranks.count == 1:
        return pieces
    from torch import distributed

    told: list[Any] = [None] * ranks.count
    distributed.all_gather_object(told, pieces)
    return {number: piece for each in told for number, piece in each.items()}


@dataclass(frozen=True, eq=False)
class StatisticParts:
    """Finished pieces in a folder, so that an interrupted run goes on.

    :param config: a hash of the model's config: pieces of another one are made again. :param matrices: their names.
    """

    store: UnitStore
    config: str
    matrices: Sequence[str]

    def read(self, number: int, samples: Sequence[int]) -> Piece | None:
        """The piece of these samples, or None where there is none that can be used."""
        unit = self.store.read(f"{number:06d}")
        if unit is None or unit[0]["config"] != self.config:
            return None
        header, tensors = unit
        # In the order of the matrices, as in a piece that was just made.
        return Piece(samples, {name: header["inputs"][name] for name in self.matrices}, tensors, header["calls"])

    def write(self, number: int, piece: Piece) -> None:
        """Keep a piece."""
        header = {"config": self.config, "inputs": piece.inputs, "calls": piece.calls}
        self.store.write(f"{number:06d}", piece.values, header)
