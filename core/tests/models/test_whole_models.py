"""Models of which something is missing are not used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paperhooks.cli.options import load_model
from paperhooks.errors import DataError
from paperhooks.io import model_digest
from paperhooks.models import whole_model
from paperhooks.testing import tiny_llama, tiny_llava
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_model_is_as_it_was_saved(tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert model_digest(whole_model(AutoModelForCausalLM, str(tmp_path))) == model_digest(model)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    for load in (lambda: whole_model(AutoModelForCausalLM, str(tmp_path)), lambda: load_model(str(tmp_path))):
        with pytest.raises(
            DataError, match=r"has no weights of model\.layers\.0\.mlp\.up_proj\.weight, which would be"
        ):
            load()


def test_other_kinds_of_models_are_whole(tmp_path: Path) -> None:
    tiny_llava().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).dtype == torch.float32
    with pytest.raises(DataError, match="has no weights that can be loaded"):
        whole_model(AutoModelForCausalLM, str(tmp_path / "nothing"))
