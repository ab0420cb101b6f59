"""Forward passes over the texts of one side, and nothing kept but the norms of what the matrices read.

A run with a folder writes a part every few batches; started again, it goes on behind the last one. Several processes
(``accelerate launch``, ``torchrun``) share the samples and end with the same statistics.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from paperhooks import Artefact, DataError, ModelError, ModelView, active_session
from paperhooks.compat import origin
from paperhooks.io import Ranks, choice, config_digest, hash_json
from paperhooks.models import calibrate, find_tokenizer, running_model
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
    needs_tokenizer,
    read_records,
    samples_digest,
    tokenized,
)

__all__ = ["CoverageWarning", "Keep", "Parts", "Piece", "TokenScope", "collect", "gathered", "joined", "summed_calls"]

#: Which tokens count: all (the official code), those of answers, or all but the first, which draws attention.
TokenScope: TypeAlias = Literal["all", "answer", "no_first"]
#: Keep the norms of every sample, or their sums only (for models whose inputs are many).
Keep: TypeAlias = Literal["samples", "sums"]
#: Samples a piece: what an interrupted run loses at most.
_PIECE: Final = 64
_KIND: Final = "mathneuro-part"


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
    _warn_uncovered(view, coverage)
    records = read_records(data)
    if tokenizer is None and needs_tokenizer(records):
        tokenizer = find_tokenizer(inner)
    limit = getattr(view.text_config, "max_position_embeddings", None) if max_length is None else max_length
    texts = tokenized(records, tokenizer, template=template, max_length=limit, truncate=truncate)
    order = (
        torch.arange(len(texts)) if samples is None else drawn(len(texts), samples, seed=seed, replacement=replacement)
    )
    used = sorted(set(order.tolist()))
    if batch_tokens is None:
        batch_tokens = 1024 if getattr(inner, "device", torch.device("cpu")).type == "cpu" else 16384
    work = _Work(view, coverage, [texts[i] for i in used], token_scope, keep, batch_size, batch_tokens, progress)
    identity = _identity(work, seed)
    found = work.run(Parts(Path(out), identity) if out is not None else None)
    place = {old: new for new, old in enumerate(used)}
    statistics = Statistics(
        coverage=coverage,
        inputs=found.inputs,
        norms=found.values if keep == "samples" else {},
        sums=found.values if keep == "sums" else {},
        tokens=found.tokens,
        rows=torch.tensor([place[i] for i in order.tolist()], dtype=torch.int64),
        about={**identity, "name": name, "calls": found.calls, "tokenizer": _name_of(tokenizer)},
        model_class=type(inner).__name__,
        config_hash=identity["config"],
    )
    if out is not None and Ranks().first:
        statistics.save(Path(out) / "statistics.safetensors")
    return statistics


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


def _identity(work: _Work, seed: int) -> dict[str, Any]:
    """Everything that determines the statistics, as plain data."""
    view = work.view
    return {
        "config": config_digest(view.model),
        "model": origin(view.config),
        "dtype": str(next(view.model.parameters()).dtype),
        "texts": samples_digest(work.texts),
        "token_scope": work.token_scope,
        "keep": work.keep,
        "matrices": hash_json([m.name for m in work.coverage.matrices]),
        "seed": seed,
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Norms [N, D] (or sums [2, D]) by input, counted tokens [N] and calls by module."""

    inputs: Mapping[str, str]
    values: Mapping[str, Tensor]
    tokens: Tensor
    calls: Mapping[str, int]


@dataclass(eq=False)
class _Work:
    """One pass over the texts."""

    view: ModelView
    coverage: Coverage
    texts: Sequence[Sample]
    token_scope: TokenScope
    keep: Keep
    batch_size: int
    batch_tokens: int
    progress: bool
    _calls: dict[str, int] = field(default_factory=dict)

    def run(self, parts: Parts | None) -> _Found:
        ranks = Ranks()
        pieces = list(parts.read()) if parts is not None else []
        ranks.meet()  # all have read before one writes: the samples are shared out by what was done before
        done = {i for piece in pieces for i in piece.samples}
        mine = [i for i in range(len(self.texts)) if i not in done][ranks.index :: ranks.count]
        new = self._pieces(batches_by_length(self.texts, mine, self.batch_size, self.batch_tokens), parts)
        tokens = torch.tensor([int(self._counted(text).sum()) for text in self.texts])
        inputs, values = joined(gathered([*pieces, *new], ranks), self.keep)
        return _Found(inputs, values, tokens, summed_calls(self._calls, ranks))

    def _pieces(self, batches: Sequence[Sequence[int]], parts: Parts | None) -> list[Piece]:
        recorder = NormRecorder(self.coverage.matrices)
        pieces: list[Piece] = []
        open_ones = [Piece([], {}, {})]

        def feed() -> Iterator[dict[str, Tensor]]:
            bar = tqdm(total=sum(map(len, batches)), desc="collect", unit="text", disable=not self.progress)
            with bar:
                for batch in batches:
                    inputs, counted = self._padded(batch)
                    recorder.begin(counted)
                    yield inputs  # the model reads it before this goes on
                    bar.update(len(batch))
                    open_ones[0] = open_ones[0].extended(batch, recorder.finish(batch), self.keep)
                    if len(open_ones[0].samples) >= _PIECE:
                        close()

        def close() -> None:
            if parts is not None:
                parts.write(open_ones[0])
            pieces.append(open_ones[0])
            open_ones[0] = Piece([], {}, {})

        if batches:
            linear = [m.module for m in self.coverage.matrices if m.expert is None]
            with _routed(self.view, recorder):
                calls = calibrate(self.view, feed(), dict.fromkeys(linear), recorder.receive, progress=False)
            self._calls.update(calls)
        if open_ones[0].samples:
            close()
        return pieces

    def _padded(self, batch: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs padded on the right, and which of their tokens count."""
        texts = [self.texts[i] for i in batch]
        ids = pad_sequence([torch.tensor(text.ids) for text in texts], True, _pad_token(self.view))
        mask = pad_sequence([torch.ones(len(text.ids), dtype=torch.int64) for text in texts], True)
        counted = pad_sequence([self._counted(text) for text in texts], True)
        return {"input_ids": ids, "attention_mask": mask}, counted

    def _counted(self, text: Sample) -> Tensor:
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


@contextmanager
def _routed(view: ModelView, recorder: NormRecorder) -> Iterator[None]:
    """Hooks on the modules that hold experts, which get more than one argument."""
    with ExitStack() as stack:
        for name in dict.fromkeys(m.module for m in recorder.matrices if m.expert is not None):

            def receive(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                given = (*args, *kwargs.values())
                with torch.no_grad():
                    recorder.receive_routed(name, module, given[0], given[1])

            stack.callback(view.model.get_submodule(name).register_forward_pre_hook(receive, with_kwargs=True).remove)
        yield


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Norms [n, D] of ``samples``, or their sums [2, D], by input."""

    samples: Sequence[int]
    inputs: Mapping[str, str]
    values: Mapping[str, Tensor]

    def extended(self, samples: Sequence[int], norms: Norms, keep: Keep) -> Piece:
        """With a further batch; what matrices share stays what they shared in all batches."""
        new = {k: _sums(v) for k, v in norms.values.items()} if keep == "sums" else norms.values
        added = Piece(samples, norms.inputs, new)
        if not self.samples:
            return added
        inputs, values = joined([self, added], keep, in_order=False)
        return Piece([*self.samples, *samples], inputs, values)


def _sums(norms: Tensor) -> Tensor:
    wide = norms.double()
    return torch.stack([wide.sum(0), wide.square().sum(0)])


def joined(pieces: Sequence[Piece], keep: Keep, *, in_order: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """All pieces as one: rows by sample number, or sums added up."""
    inputs = refined([piece.inputs for piece in pieces])
    spread = [Norms(piece.inputs, piece.values).spread(inputs) for piece in pieces]
    if keep == "sums":
        return inputs, {own: torch.stack([each[own] for each in spread]).sum(0) for own in spread[0]}
    order = torch.tensor([i for piece in pieces for i in piece.samples]).argsort()
    values = {}
    for own in list(spread[0]):
        rows = torch.cat([each.pop(own) for each in spread])
        values[own] = rows[order] if in_order else rows
    return inputs, values


def gathered(pieces: list[Piece], ranks: Ranks) -> list[Piece]:
    """The pieces of all processes; those that several have read from disk count once."""
    if ranks.count == 1:
        return pieces
    told = _told([(list(p.samples), dict(p.inputs), dict(p.values)) for p in pieces])
    seen: set[int] = set()
    found = []
    for samples, inputs, values in (piece for each in told for piece in each):
        if not seen & set(samples):
            found.append(Piece(samples, inputs, values))
            seen |= set(samples)
    return found


def summed_calls(calls: Mapping[str, int], ranks: Ranks) -> dict[str, int]:
    """Calls by module, over all processes."""
    if ranks.count == 1:
        return dict(calls)
    told = _told(dict(calls))
    names = dict.fromkeys(name for each in told for name in each)
    return {name: sum(each.get(name, 0) for each in told) for name in names}


def _told(value: Any) -> list[Any]:
    """The values of all processes."""
    from torch import distributed

    told: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(told, value)
    return told


@dataclass(frozen=True, eq=False)
class Parts:
    """Finished pieces in a folder, each a file of its own, so that an interrupted run loses a few batches at most."""

    folder: Path
    identity: Mapping[str, Any]

    def read(self) -> Iterable[Piece]:
        """What an earlier run left; raises DataError for parts of another one."""
        for file in sorted((self.folder / "parts").glob("*.safetensors")):
            artefact = Artefact.load(file)
            if artefact.kind != _KIND or artefact.data["identity"] != self.identity:
                raise DataError(
                    f"{file} belongs to a run with other texts, model or options; use another folder, or delete it"
                )
            yield Piece(artefact.data["samples"], artefact.data["inputs"], artefact.tensors)

    def write(self, piece: Piece) -> None:
        """Keep a piece."""
        data = {"identity": self.identity, "samples": list(piece.samples), "inputs": dict(piece.inputs)}
        name = f"{min(piece.samples):08d}-{hash_json(list(piece.samples))[:12]}.safetensors"
        Artefact("mathneuro", kind=_KIND, data=data, tensors=piece.values).save(self.folder / "parts" / name)
