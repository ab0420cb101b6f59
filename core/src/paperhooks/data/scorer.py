"""Scoring a corpus with a method.

The machinery around the hook ``score_examples``: batches, units of rows written atomically, resuming, seeds.
What a score means belongs to the method; larger is better and NaN marks an example that cannot be scored.

A scoring folder is a store of units (:mod:`paperhooks.io.units`) with the merged ``scores.safetensors`` beside them.
Killing the process loses at most one unit. The processes of ``torch.distributed`` share the units; those that hold
parts of a model (FSDP2, tensor parallelism) do all of them together, since nobody knows how often a method calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pluggy
import torch
from torch import Tensor, nn
from tqdm import tqdm

from paperhooks.errors import DataError, HookError, PluginIncompatible
from paperhooks.hooks import specs
from paperhooks.hooks.specs import PROJECT
from paperhooks.io.corpus import Corpus, CorpusSource, Example
from paperhooks.io.files import local_path, plain
from paperhooks.io.hashing import model_digest
from paperhooks.io.processes import Ranks
from paperhooks.io.tensors import write_tensors
from paperhooks.io.units import UnitStore, read_result
from paperhooks.models.forward import evaluation_mode
from paperhooks.models.rounds import in_step, ranks_of
from paperhooks.models.tokenizers import tokenizer_digest
from paperhooks.plugins.installed import catalog
from paperhooks.plugins.methods import describe_method, implemented_hooks

if TYPE_CHECKING:
    from paperhooks.models.view import ModelView

__all__ = ["find_method", "open_corpus", "read_scores", "score"]

#: What the units of a scoring folder are.
KIND: Final = "scores of a method"


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
        A file or folder of records, records in memory, or rows of token ids; see :mod:`paperhooks.io.corpus`.
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
    scorer = _Scorer(find_method(method), named, tokenizer, batch_size, seed)
    corpus, store = open_corpus(examples), UnitStore(out, KIND)

    def digests() -> dict[str, Any]:
        return {
            "corpus": corpus.fingerprint(),
            "models": {role: model_digest(model) for role, model in scorer.models.items()},
        }

    together = any(ranks_of(model).in_step for model in scorer.models.values())
    ranks = Ranks(replica=0, replicas=1, leader=Ranks().first, in_step=True) if together else Ranks()
    with store.begin(_decides(scorer, unit_rows, len(corpus), seed), costly=digests, together=together):
        scores = torch.cat(_units(store, scorer, corpus, unit_rows, progress, ranks))
        header = {"run": store.run, "rows": len(scores), "unscored": int((~scores.isfinite()).sum())}
        if ranks.first:
            store.confirm()
            write_tensors(store.folder / "scores.safetensors", {"scores": scores}, header)
    return scores


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


def _units(
    store: UnitStore, scorer: _Scorer, corpus: Corpus, unit_rows: int, progress: bool, ranks: Ranks
) -> list[Tensor]:
    """The scores of all units; this process makes those of its share that are missing."""
    units = [range(start, min(start + unit_rows, len(corpus))) for start in range(0, len(corpus), unit_rows)]
    found = {number: scores for number in range(len(units)) if (scores := _read(store, number)) is not None}
    ranks.meet()  # all have read before one writes: what is missing is shared out
    mine = [number for number in range(len(units)) if number not in found][ranks.replica :: ranks.replicas]
    error: Exception | None = None
    try:
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=len(corpus), unit="rows", disable=not progress))
            bar.update(sum(map(len, found.values())))
            for model in scorer.models.values():
                stack.enter_context(in_step(model))
            for number in mine:
                rows = units[number]
                found[number] = scorer.unit(corpus, rows)
                if ranks.leader:
                    store.write(_name(number), {"scores": found[number]}, {"start": rows.start})
                bar.update(len(rows))
    except Exception as raised:
        error = raised
    ranks.meet(error)
    every = [found[number] if number in found else _read(store, number) for number in range(len(units))]
    if any(scores is None for scores in every):
        raise DataError(f"units that another process has made are gone from {store.folder}; start the run again")
    return [scores for scores in every if scores is not None]


def _read(store: UnitStore, number: int) -> Tensor | None:
    found = store.read(_name(number))
    return None if found is None else found[1]["scores"]


def _name(number: int) -> str:
    return f"unit-{number:06d}"


def read_scores(scores: str | Path | Tensor, corpus: Corpus) -> Tensor:
    """Scores float32 [n] of the rows of a corpus: as given, or of a scoring folder.

    :raises DataError: there are none, or they are of another corpus.
    """
    if isinstance(scores, Tensor):
        values = scores.detach().float().cpu().reshape(-1)
    else:
        folder = local_path(scores)
        manifest, tensors = read_result(folder, KIND, "scores.safetensors", "scores; run paperhooks.score first")
        if manifest["corpus"] != plain(corpus.fingerprint()):
            raise DataError(f"{folder} holds scores of another corpus than {corpus.name}; name the one that was scored")
        values = tensors["scores"]
    if len(values) != len(corpus):
        raise DataError(f"there are {len(values)} scores for {len(corpus)} rows of {corpus.name}")
    return values


def open_corpus(source: CorpusSource | Corpus) -> Corpus:
    """The corpus of a source."""
    return source if isinstance(source, Corpus) else Corpus(source)


def find_method(method: Any) -> Any:
    """A method by name or as it is; raises PluginIncompatible for one that scores nothing."""
    found = catalog().create_method(method) if isinstance(method, str) else method
    hooks = implemented_hooks(type(found))
    if "score_examples" not in hooks:
        name = method if isinstance(method, str) else type(found).__name__
        raise PluginIncompatible(f"{name} does not score examples; it implements {', '.join(hooks) or 'no hook'}")
    return found


def _decides(scorer: _Scorer, unit_rows: int, rows: int, seed: int) -> dict[str, Any]:
    return {
        "method": describe_method(scorer.method),
        "rows": rows,
        "tokenizer": tokenizer_digest(scorer.tokenizer),
        "unit_rows": unit_rows,
        "seed": seed,
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block and put the user's random state back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
