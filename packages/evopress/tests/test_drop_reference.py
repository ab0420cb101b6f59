"""Sublayers left out by a choice of levels: the reference logits and tokens, under every way of generating."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scored_models as made
import torch
from paperhooks import CompressionRequest, ModelView
from paperhooks.hooks import Levels
from paperhooks.testing import fingerprint
from paperhooks_evopress import SublayerDrop
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "reference"
#: Of each state its letters, a layer each, and the tokens that it chooses without a cache.
STATES = json.loads((FOLDER / "drop_forward.json").read_text())
VALUES = load_file(FOLDER / "drop_forward.safetensors")


@pytest.fixture(scope="module")
def offered() -> Iterator[tuple[Any, Levels]]:
    """The model that the values were measured on, and what may be left out of it."""
    view = ModelView.from_model(made.reference_model())
    offer = SublayerDrop().compression_levels
    request = CompressionRequest("test", offers=[lambda view, modules, _: offer(view, modules)])
    names = [name for name, sublayer in view.sublayers.items() if sublayer.kind != "layer"]
    with request.levels(view, names) as levels:
        yield view, levels


def stand(offered: tuple[ModelView, Levels], state: str) -> Any:
    """The model with the sublayers of a state left out."""
    view, levels = offered
    levels.switch(dict.fromkeys(made.letters(view, STATES[state]["letters"]), "dropped"))
    return view.model


@pytest.mark.parametrize("state", STATES)
def test_the_reference_logits(offered: tuple[ModelView, Levels], state: str) -> None:
    view, levels = offered
    levels.restore()
    ids, mask = VALUES["ids"], VALUES["attention_mask"]
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)  # padding counts, as it did there
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        own, before = view.model(**inputs).logits, fingerprint(view.model)
        whole = {name: sum(p.numel() for p in view.model.get_submodule(name).parameters()) for name in levels}
        size = view.model.num_parameters()
        model = stand(offered, state)
        assert model.num_parameters() == size - sum(whole[name] for name in levels.choice)
        torch.testing.assert_close(model(ids[:1]).logits[0], VALUES[f"alone.{state}"], atol=1e-4, rtol=1e-4)
        logits = model(**inputs).logits
        torch.testing.assert_close(logits[1][mask[1].bool()], VALUES[f"padded.{state}"], atol=1e-4, rtol=1e-4)
        levels.restore()
        assert torch.equal(view.model(**inputs).logits, own)
    assert fingerprint(view.model).differences(before) == []


def tokens(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> list[list[int]]:
    """Ten greedy tokens for each row, or what ``options`` say."""
    given = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return model.generate(ids, attention_mask=mask, **given)[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("state", STATES)
def test_every_way_of_generating_gives_the_reference_tokens(offered: tuple[ModelView, Levels], state: str) -> None:
    model, prompt = stand(offered, state), VALUES["prompt"]
    alone = prompt, torch.ones_like(prompt)
    batch = torch.cat([prompt, torch.cat([torch.zeros_like(prompt[:, :3]), prompt[:, :5]], 1)])
    mask = torch.ones_like(batch)
    mask[1, :3] = 0
    assert tokens(model, *alone, use_cache=False) == [STATES[state]["tokens"]]
    for ids, real in (alone, (batch, mask)):
        wanted = tokens(model, ids, real, use_cache=False)
        for way in ({}, {"prefill_chunk_size": 3}, {"cache_implementation": "static", "disable_compile": True}):
            assert tokens(model, ids, real, **way) == wanted, way
        beams = {"num_beams": 3, "max_new_tokens": 6}
        assert tokens(model, ids, real, **beams) == tokens(model, ids, real, **beams, use_cache=False)
