"""Candidates that go through a map: dealt out, put together again, and an evaluator that is sent elsewhere."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import scored_models as made
import torch
from paperhooks import DataError, ModelView
from paperhooks.hooks import Levels
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks_evopress import EvoPress
from paperhooks_evopress.evaluator import (
    CandidateShare,
    Evaluator,
    EvaluatorSpec,
    RankMap,
    ScoreFunction,
    SharedEvaluator,
)

OPTIONS = {"most_perplexity": math.inf}


def rounding_levels(view: ModelView) -> Levels:
    names = [name for name, _ in view.modules("model.layers.*.mlp.*_proj")]
    return Levels(view, {name: made.rounding(view.model.get_submodule(name)) for name in names})


class ThreePlaces:
    """Scores each share by an evaluator of its own, sent as a process elsewhere would be."""

    workers = 3

    def __init__(self) -> None:
        self.sizes: list[list[int]] = []
        self.places: list[Evaluator] = []
        self.spec: EvaluatorSpec | None = None

    def begin(self, spec: EvaluatorSpec | None, error: Exception | None = None) -> None:
        if error is not None:
            raise error
        self.spec = spec

    def scores(self, score: ScoreFunction, shares: Sequence[CandidateShare]) -> list[list[float]]:
        if not self.places:
            sent = pickle.dumps(self.spec)
            self.places = [pickle.loads(sent).open() for _ in range(self.workers)]
        self.sizes.append([len(share.choices) for share in shares])
        return [share.scored_by(place.score) for share, place in zip(shares, self.places, strict=True)]


@pytest.mark.parametrize("folder", [None, "database"])
@pytest.mark.parametrize("survivors", [None, 2])
def test_a_map_gives_the_fitness_of_one_process(tmp_path: Path, folder: str | None, survivors: int | None) -> None:
    view = ModelView.from_model(tiny_llama(layers=2))
    before = fingerprint(view.model)
    levels, places, sequences = rounding_levels(view), ThreePlaces(), made.sequences_of([9, 14, 11, 20, 7, 16])
    with levels:
        levels.prepare(folder and tmp_path / folder, progress=False)
        choices = made.random_choices(levels, 8, share=0.5)
        alone = Evaluator(view, levels, sequences, **OPTIONS)
        shared = SharedEvaluator(view, levels, sequences, candidates=places, **OPTIONS)
        for few in (choices, choices[:2], choices[:1]):
            wanted = alone.score(few, 60, 0)
            found = shared.score(few, 60, 0, survivors)
            kept = range(len(few)) if survivors is None else sorted(range(len(few)), key=wanted.__getitem__)[:survivors]
            assert [found[place] for place in kept] == [wanted[place] for place in kept]
    assert places.sizes == [[3, 3, 2], [1, 1, 0], [1, 0, 0]]
    assert fingerprint(view.model) == before


def test_a_place_with_another_model_is_refused() -> None:
    view = ModelView.from_model(tiny_llama(layers=1))
    levels, sequences = rounding_levels(view), made.sequences_of([9, 14])
    spec = EvaluatorSpec.of(Evaluator(view, levels, sequences, **OPTIONS), levels, OPTIONS)
    assert spec.open().teacher_perplexity == spec.perplexity
    with pytest.raises(DataError, match=r"here are 2 sequences of 23 tokens, .*; give machines the same versions"):
        replace(spec, perplexity=spec.perplexity * 1.01).open()


def test_an_error_before_the_spec_is_raised() -> None:
    view = ModelView.from_model(tiny_llama(layers=1))
    for candidates in (RankMap(), ThreePlaces()):
        with pytest.raises(DataError, match=r"predicts nothing|usable|sequence"):
            SharedEvaluator(view, rounding_levels(view), [torch.tensor([5])], candidates=candidates, **OPTIONS)


def test_the_number_of_actors_decides_nothing() -> None:
    from paperhooks.plugins import describe_method

    assert describe_method(EvoPress(actors=4)) == describe_method(EvoPress())
    assert EvoPress(actors=4).actors == 4
    with pytest.raises(ValueError, match="actors"):
        EvoPress(actors=-1)
