"""Digests, artefacts and edits of models whose weights are spread over two processes, and of those on a disk."""

from __future__ import annotations

from pathlib import Path

import cases_weights
import pytest
import torch
from paperhooks import Artefact
from paperhooks.io import tensor_digests
from paperhooks.testing import RankPool, tiny_llama
from paperhooks.weights import WeightJournal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["fsdp2", "tp"])
def test_digests_of_a_spread_model_are_those_of_the_plain_one(ranks: RankPool, kind: str, folder: Path) -> None:
    want = tensor_digests(tiny_llama())
    for found, bits, most in ranks.run(cases_weights.digests, kind, folder):
        assert found == want
        assert bits == want
        assert most == 1


@pytest.mark.parametrize("kind", ["fsdp2", "tp"])
def test_shards_are_not_edited_and_the_way_out_is_named(
    ranks: RankPool, kind: str, folder: Path, tmp_path: Path
) -> None:
    model = tiny_llama()
    journal = WeightJournal(model)
    journal.write_sparse(cases_weights.LAYER, torch.tensor([1]), torch.zeros(1))
    file = Artefact.from_journal(journal, method="zeros").save(tmp_path / "edit")
    for told in ranks.run(cases_weights.edits, kind, folder, file):
        assert len(told) == 5
        for text in told:
            assert text.startswith("UnsupportedModel: model.")
            assert "edit the model before it is sharded, or edit the gathered checkpoint" in text
