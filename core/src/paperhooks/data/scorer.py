"""Scoring a corpus with a method and keeping the best part of it.

The machinery around the hook ``score_examples``: batches, units of rows written atomically, resuming, seeds, selection.
What a score means belongs to the method; larger is better and NaN marks an example that cannot be scored.

A scoring folder holds ``result.json`` (method, options, corpus and model hashes; other ones are refused),
``units/unit-000000.safetensors`` and the merged ``scores.safetensors``. Killing the process loses at most one unit.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from paperhooks.data.selection import Selection, best_rows, write_selection
from paperhooks.errors import DataError, HookError, PluginIncompatible
from paperhooks.hooks import specs
from paperhooks.hooks.specs import PROJECT
from paperhooks.io.corpus import Corpus, CorpusSource, Example
from paperhooks.io.files import atomic_path
from paperhooks.io.hashing import hash_json, model_digest
from paperhooks.models.forward import evaluation_mode
from paperhooks.plugins.installed import catalog
from paperhooks.plugins.methods import describe_method, implemented_hooks
from paperhooks.reports.run_folder import RunFolder

if TYPE_CHECKING:
    from paperhooks.models.view import ModelView

__all__ = ["score", "select"]

logger = logging.getLogger(__name__)


def score(
    models: nn.Module | Mapping[str, nn.Module],
    examples: CorpusSource | Corpus,
    method: Any,
    *,
    out: str | Path,
    tokenizer: Any = None,
    batch_size: int = 16,
    unit_rows: int = 1024,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Score every example of a corpus; returns float32 [n] in the corpus' order, NaN where there is no score.

    models
        One model (its role is then called ``model``), or role to model, as the method expects them.
    examples
        A ``.jsonl`` file or records in memory, see :mod:`paperhooks.io.corpus`.
    method
        A plugin's method by name, or an instance.
    tokenizer
        Turns texts into ``input_ids`` where the records have none.
    batch_size, unit_rows
        Examples a hook call, and rows a file. ``batch_size`` may change when an interrupted run goes on.

    Raises DataError for a corpus or folder that cannot be used, PluginIncompatible for a method that scores nothing,
    HookError when the hook's answer has the wrong shape or type.
    """
    if batch_size < 1 or unit_rows < 1:
        raise DataError(f"batch_size = {batch_size} and unit_rows = {unit_rows} must be at least 1")
    named = {"model": models} if isinstance(models, nn.Module) else dict(models)
    scorer = _Scorer(_resolve(method), named, tokenizer, batch_size, seed)
    corpus, run = _open(examples), RunFolder(out)
    run.start("score", inputs=_inputs(scorer, corpus, unit_rows), seed=seed)
    with run.timed("score"):
        scores = torch.cat(list(_units(run, scorer, corpus, unit_rows, progress)))
    _save(run.path / "scores.safetensors", {"scores": scores}, {"run": run.result["inputs_hash"]})
    unscored = int((~scores.isfinite()).sum())
    run.record(rows=len(scores), unscored=unscored)
    run.finish()
    return scores


def select(
    method: Any,
    *,
    corpus: CorpusSource | Corpus,
    ratio: float,
    out: str | Path,
    models: Mapping[str, nn.Module] | None = None,
    teacher: nn.Module | None = None,
    reference: nn.Module | None = None,
    scores: str | Path | Tensor | None = None,
    tokenizer: Any = None,
    batch_size: int = 16,
    unit_rows: int = 1024,
    seed: int = 0,
    progress: bool = False,
) -> Selection:
    """Score a corpus and write its best ``floor(ratio * n)`` examples, in the corpus' order.

    ``teacher`` and ``reference`` are the usual roles of ``models``. ``scores`` (the folder of an earlier
    :func:`score`, or a tensor [n]) skips scoring, so that several ratios share one scoring. Writes
    ``selected.jsonl``, ``selection.safetensors`` (rows and scores) and a report; examples whose score is not finite are
    never selected, and of equal scores the earlier row wins.

    Raises DataError for a ratio outside (0, 1], and what :func:`score` raises.
    """
    if not 0 < ratio <= 1:
        raise DataError(f"ratio is {ratio}; it must be above 0 and at most 1")
    opened, chosen = _open(corpus), _resolve(method)
    roles = {**(models or {}), **{k: v for k, v in (("teacher", teacher), ("reference", reference)) if v is not None}}
    if scores is None:
        options = {"tokenizer": tokenizer, "batch_size": batch_size, "unit_rows": unit_rows, "seed": seed}
        scores = score(roles, corpus, chosen, out=Path(out) / "scoring", progress=progress, **options)
    values = _read_scores(scores)
    if len(values) != len(opened):
        raise DataError(f"there are {len(values)} scores for {len(opened)} rows of {opened.name}")
    run = RunFolder(out)
    inputs = {"method": describe_method(chosen), "corpus": opened.digest, "ratio": ratio, "scores": _digest(values)}
    run.start("select", inputs=inputs, seed=seed)
    with run.timed("select"):
        return write_selection(run, opened, values, best_rows(values, int(ratio * len(values))))


class _Scorer:
    """A method, its models and the hook call."""

    def __init__(self, method: Any, models: Mapping[str, nn.Module], tokenizer: Any, batch: int, seed: int) -> None:
        from paperhooks.models.view import ModelView

        self.method, self.models, self.tokenizer, self.batch, self.seed = method, models, tokenizer, batch, seed
        self.views: dict[str, ModelView] = {role: ModelView.from_model(model) for role, model in models.items()}
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(specs.OfflineHooks)
        manager.register(method)
        self.hook = manager.hook.score_examples

    def unit(self, corpus: Corpus, rows: range) -> Tensor:
        """Scores [len(rows)] of some consecutive rows, the same in whatever order units are computed."""
        with evaluation_mode(*self.models.values()), torch.no_grad(), _seeded(self.seed + rows.start):
            batches = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
            return torch.cat([self.call(corpus.examples(batch, self.tokenizer)) for batch in batches])

    def call(self, examples: Sequence[Example]) -> Tensor:
        """One hook call; checks the answer."""
        answer = self.hook(views=self.views, examples=examples)
        where, n = f"{type(self.method).__name__}.score_examples", len(examples)
        if not isinstance(answer, Tensor):
            raise HookError(f"{where} returned {type(answer).__name__}; expected a tensor [{n}]")
        if answer.shape != (n,) or not answer.is_floating_point():
            raise HookError(f"{where} returned {list(answer.shape)} {answer.dtype}; expected [{n}] of a floating type")
        return answer.detach().float().cpu()


def _units(run: RunFolder, scorer: _Scorer, corpus: Corpus, unit_rows: int, progress: bool) -> Iterator[Tensor]:
    identity = run.result["inputs_hash"]
    with tqdm(total=len(corpus), unit="rows", disable=not progress) as bar:
        for number, start in enumerate(range(0, len(corpus), unit_rows)):
            rows = range(start, min(start + unit_rows, len(corpus)))
            file = run.path / "units" / f"unit-{number:06d}.safetensors"
            scores = _load_unit(file, identity, rows)
            if scores is None:
                scores = scorer.unit(corpus, rows)
                _save(file, {"scores": scores}, {"run": identity, "start": str(start)})
            bar.update(len(rows))
            yield scores


def _load_unit(file: Path, identity: str, rows: range) -> Tensor | None:
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as handle:
            header = handle.metadata() or {}
            scores: Tensor = handle.get_tensor("scores")
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s) and is computed again", file, error)
        return None
    if header != {"run": identity, "start": str(rows.start)} or scores.shape != (len(rows),):
        logger.warning("%s does not belong to this run and is computed again", file)
        return None
    return scores


def _save(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with atomic_path(file) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def _read_scores(scores: str | Path | Tensor) -> Tensor:
    if isinstance(scores, Tensor):
        return scores.detach().float().cpu().reshape(-1)
    file = Path(scores) / "scores.safetensors" if Path(scores).is_dir() else Path(scores)
    try:
        with safe_open(file, framework="pt") as handle:
            return handle.get_tensor("scores")  # type: ignore[no-any-return]
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} holds no scores: {error}; run paperhooks.score first") from error


def _open(source: CorpusSource | Corpus) -> Corpus:
    return source if isinstance(source, Corpus) else Corpus(source)


def _resolve(method: Any) -> Any:
    found = catalog().create_method(method) if isinstance(method, str) else method
    hooks = implemented_hooks(type(found))
    if "score_examples" not in hooks:
        name = method if isinstance(method, str) else type(found).__name__
        raise PluginIncompatible(f"{name} does not score examples; it implements {', '.join(hooks) or 'no hook'}")
    return found


def _inputs(scorer: _Scorer, corpus: Corpus, unit_rows: int) -> dict[str, Any]:
    vocabulary: dict[str, int] = getattr(scorer.tokenizer, "get_vocab", dict)()
    return {
        "method": describe_method(scorer.method),
        "corpus": corpus.digest,
        "rows": len(corpus),
        "models": {role: model_digest(model) for role, model in scorer.models.items()},
        "tokenizer": hash_json(vocabulary) if vocabulary else None,
        "unit_rows": unit_rows,
    }


def _digest(scores: Tensor) -> str:
    return hashlib.sha256(scores.contiguous().numpy().data).hexdigest()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block and put the user's random state back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
