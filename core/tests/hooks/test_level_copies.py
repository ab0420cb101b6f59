"""Levels that another process is sent: the same values on a copy of the model, held or read where they lie."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from compression_methods import LINEARS, Nearest
from paperhooks import DataError, Level, ModelView
from paperhooks.hooks import Levels, portable_offers
from paperhooks.io import model_digest
from paperhooks.testing import fingerprint, tiny_llama
from torch import nn

UP = "model.layers.0.mlp.up_proj"
LABELS = ("2 bits", "4 bits")


def offered_levels(model: nn.Module) -> Levels:
    view = ModelView.from_model(model)
    return Levels(view, Nearest().compression_levels(dict(view.modules(LINEARS))))


def logits_at(model: nn.Module, levels: Levels) -> list[torch.Tensor]:
    found = []
    with levels, torch.no_grad():
        for label in LABELS:
            levels.switch(dict.fromkeys(levels, label))
            found.append(model(torch.tensor([[5, 6, 7, 8, 9]])).logits)
    return found


@pytest.mark.parametrize("stored", [False, True])
def test_a_copy_has_the_same_values(tmp_path: Path, stored: bool) -> None:
    model = tiny_llama(layers=2)
    before = fingerprint(model)
    levels = offered_levels(model)
    levels.prepare(tmp_path if stored else None, progress=False)
    wanted = logits_at(model, levels)
    levels.switch(dict.fromkeys(levels, LABELS[0]))
    sent = pickle.dumps((portable_offers(levels), model))
    assert fingerprint(model) == before
    offers, copy = pickle.loads(sent)
    assert len(sent) < sum(each.nbytes for each in model.parameters()) * (1.5 if stored else 4)
    made = Levels(ModelView.from_model(copy), offers)
    assert {name: [(each.label, dict(each.cost)) for each in own] for name, own in made.items()} == {
        name: [(each.label, dict(each.cost)) for each in own] for name, own in levels.items()
    }
    assert all(torch.equal(one, other) for one, other in zip(logits_at(copy, made), wanted, strict=True))
    assert model_digest(copy) == model_digest(model)


def test_values_that_are_gone_are_named(tmp_path: Path) -> None:
    model = tiny_llama(layers=1)
    levels = offered_levels(model)
    levels.prepare(tmp_path / "database", progress=False)
    offers, name = portable_offers(levels), next(iter(levels))
    (tmp_path / "database" / "units" / f"{name}.safetensors").unlink()
    with pytest.raises(DataError, match=rf"database has no values of {name} at '2 bits'; it has to lie where all"):
        Levels(ModelView.from_model(model), offers).switch({name: LABELS[0]})
    (tmp_path / "database").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="manifest"):
        Levels(ModelView.from_model(model), offers).switch({name: LABELS[0]})


def test_what_was_not_prepared_is_made_and_goes_along() -> None:
    model, calls = tiny_llama(layers=1), []
    up = model.get_submodule(UP)

    def prepare():
        calls.append(1)
        return Nearest().compression_levels({UP: up})[UP][0].prepare()

    levels = Levels(ModelView.from_model(model), {UP: [Level("x", "as it is", {}), Level("x", "made", {}, prepare)]})
    for _ in range(2):
        offers = pickle.loads(pickle.dumps(portable_offers(levels)))
    assert calls == [1]
    assert [each.label for each in offers[UP]] == ["as it is", "made"]
    assert offers[UP][0].prepare is None
    assert set(offers[UP][1].prepare()) == {"weight"}
