"""What scoring needs to know, as plain data that goes to any process, and the function that scores rows there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from paperhooks import DataError
from paperhooks.compat import origin
from paperhooks.errors import first_line
from paperhooks.io import (
    config_entries,
    differences,
    flag,
    hash_json,
    model_digest,
    optional,
    sampled_digest,
    whole,
)
from paperhooks.models import whole_model

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.flat_ids import FlatIds
from paperhooks_miniplm.corpus.parts import Parts
from paperhooks_miniplm.corpus.rows import check_tokenizer
from paperhooks_miniplm.scoring.jobs import decisions, end_token
from paperhooks_miniplm.scoring.likelihood import LogLikelihood, OverLong

__all__ = ["Scorer", "ScoringSpec", "named_tokenizer", "score_rows"]


@dataclass(frozen=True, slots=True)
class ScoringSpec:
    """A model and how it scores rows; plain data that can be pickled, and hashed.

    model, revision
        Folder or hub name of a causal language model, and the branch, tag or commit on the hub.
    tokenizer
        Folder or hub name; that of the model without.
    dtype, attention
        As transformers names them; "auto" and None take what the model's config says.
    end
        The end token; "auto" asks tokenizer and config. None predicts from every token, as ``mask_after_end=False``.
    max_length, over_long, mask_after_end, batch_tokens
        As for :func:`paperhooks_miniplm.score`.

    :raises ValueError: an end token that is no id, or another option of another kind; names it and its value.
    """

    model: str
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    attention: str | None = None
    end: int | Literal["auto"] | None = "auto"
    max_length: int = 1024
    over_long: OverLong = "truncate"
    mask_after_end: bool = True
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.end != "auto":  # a token's name would be equal to no id, and mask nothing
            optional(whole, "end", self.end, at_least=0)
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"dtype is {self.dtype!r}; expected 'auto', 'float32', 'bfloat16' or 'float16'")
        whole("max_length", self.max_length)
        flag("mask_after_end", self.mask_after_end)
        optional(whole, "batch_tokens", self.batch_tokens)

    def open(self, device: str = "cpu") -> Scorer:
        """The model, loaded once a process however many tasks the process runs; another spec takes its place.

        :raises DataError: no such model, or settings that it cannot have.
        """
        return _opened(self, device, _files_of(self.model))

    def identity(self, corpus: Parts) -> dict[str, Any]:
        """What decides the scores of a corpus, as plain data: that of the scoring folder that :func:`score` makes.

        It is taken once, where a run starts: the weights are read as a whole, and of the corpus what its index says.

        :raises DataError: the corpus was packed with another tokenizer.
        """
        likelihood, known = self.open().likelihood, self.load_tokenizer()
        check_tokenizer(corpus, known)
        decides = decisions(likelihood, len(corpus), corpus.unit_rows, known)
        return {**decides, "model": model_digest(likelihood.model), "corpus": corpus.fingerprint()}

    def load_tokenizer(self) -> Any:
        """The tokenizer; None where the model has none and none is named. Raises DataError for a name without one."""
        if self.tokenizer is not None:
            return named_tokenizer(self.tokenizer)
        try:
            return named_tokenizer(self.model, self.revision)
        except DataError:
            return None

    def settled(self) -> ScoringSpec:
        """The same with the end token found and folders by their whole paths, as processes elsewhere need it.

        A folder whose files have changed since this process loaded the model is read anew.
        """
        _files_of.cache_clear()
        placed = replace(self, model=_whole_path(self.model), tokenizer=self.tokenizer and _whole_path(self.tokenizer))
        return replace(placed, end=placed.open().likelihood.end)


def _whole_path(name: str) -> str:
    """Of a folder; the name of anything else."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def named_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub name; raises DataError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, **({} if revision is None else {"revision": revision}))
    except (OSError, ValueError) as error:
        raise DataError(f"{name!r} has no tokenizer: {first_line(error)}") from error


@lru_cache(maxsize=8)
def _files_of(name: str) -> tuple[tuple[Any, ...], ...]:
    """Names, sizes, times and places of a folder's files when a run last began in this process; none of another name.

    Workers go on with what they have loaded, whatever becomes of the folder.
    """
    if not os.path.isdir(name):
        return ()
    told = ((entry.name, entry.stat()) for entry in os.scandir(name) if entry.is_file())
    return tuple(sorted((file, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in told))


@lru_cache(maxsize=1)
def _loaded(
    name: str, revision: str | None, dtype: str, attention: str | None, device: str, files: tuple[tuple[Any, ...], ...]
) -> Any:
    from transformers import AutoModelForCausalLM

    options = {"revision": revision, "dtype": dtype, "attn_implementation": attention}
    options = {key: value for key, value in options.items() if value is not None}
    model = whole_model(AutoModelForCausalLM, name, **options)
    try:
        return model.to(device).eval()
    except (AssertionError, RuntimeError) as error:
        raise DataError(f"the device {device!r} cannot be used: {first_line(error)}") from error


@lru_cache(maxsize=1)
def _opened(spec: ScoringSpec, device: str, files: tuple[tuple[Any, ...], ...]) -> Scorer:
    model = _loaded(spec.model, spec.revision, spec.dtype, spec.attention, device, files)
    end = spec.end
    if not spec.mask_after_end:
        end = None
    elif end == "auto":
        end = end_token(model, spec.load_tokenizer())
    return Scorer(LogLikelihood(model, end, spec.max_length, spec.over_long, spec.batch_tokens), origin(model.config))


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """A loaded model that scores rows; see :meth:`ScoringSpec.open`.

    likelihood
        The model with its settings.
    name
        What it was loaded from.
    """

    likelihood: LogLikelihood
    name: str

    def loaded(self) -> dict[str, Any]:
        """What tells in milliseconds whether two processes have loaded the same model, as plain data."""
        model = self.likelihood.model
        return {
            "config": hash_json(config_entries(model)),
            "weights": sampled_digest(model),
            "dtype": str(self.likelihood.view.model.dtype),
            "attention": self.likelihood.view.attention_kernel,
            "end": self.likelihood.end,
        }

    def check(self, known: Mapping[str, Any]) -> None:
        """Raise DataError where another process, which said ``known`` of its model, has loaded another one."""
        odd = differences(known, self.loaded())
        if odd:
            raise DataError(
                f"{self.name} is another model here than where the run began: {'; '.join(odd)}; give every machine the "
                "same files, versions and settings"
            )


def score_rows(scorer: Scorer, ids: FlatIds, *, first: int = 0) -> dict[str, Array]:
    """Scores of rows: arrays in, arrays out. Equal rows in equal company give equal bits.

    :param first: number of the first row in its corpus, for messages.
    :return: ``nll``, summed negative log-likelihoods float64 [n], NaN where there is none; ``count``, counted tokens
        int64 [n]; ``cut``, rows cut to the longest length, bool [n].
    :raises DataError: an id that the model does not know, or a row too long with ``over_long="error"``, by its number.
    """
    found = scorer.likelihood.score(ids.rows, first=first)
    return {"nll": found.nll, "count": found.count, "cut": found.cut}
