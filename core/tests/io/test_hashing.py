"""Identities of models: every bit of every tensor, wherever it is kept; what of a config counts."""

from __future__ import annotations

import torch
from accelerate import cpu_offload
from paperhooks.io import config_entries, hash_json, model_digest, tensor_digests
from paperhooks.testing import tiny_llama


def test_every_bit_counts_and_offloaded_weights_are_read_too() -> None:
    model, other = tiny_llama(), tiny_llama()
    assert model_digest(model) == model_digest(other) == hash_json(tensor_digests(model))
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    digests = [model_digest(each) for each in (model, other)]
    assert digests[0] != digests[1]
    odd = [name for name, digest in tensor_digests(other).items() if digest != tensor_digests(model)[name]]
    assert odd == ["model.layers.1.mlp.up_proj.weight"]
    for each, digest in zip((model, other), digests, strict=True):
        cpu_offload(each, execution_device=torch.device("cpu"))
        assert next(each.parameters()).is_meta
        assert model_digest(each) == digest


def test_tied_weights_are_read_once(monkeypatch) -> None:
    from paperhooks.io import hashing

    read = []
    plain = hashing.tensor_digest
    monkeypatch.setattr(hashing, "tensor_digest", lambda tensor: read.append(1) or plain(tensor))
    found = tensor_digests(tiny_llama(tie_word_embeddings=True))
    assert found["lm_head.weight"] == found["model.embed_tokens.weight"]
    assert len(read) == len(found) - 1


def test_what_a_config_says_of_a_model_is_flat_and_without_circumstances() -> None:
    model = tiny_llama()
    found = config_entries(model)
    assert found["rope_parameters.rope_type"] == "default"
    assert not {"architectures", "dtype", "transformers_version", "_name_or_path"} & set(found)
    assert config_entries(torch.nn.Linear(1, 1)) == {"class": "Linear"}
