"""Identities of models: every bit of every tensor, wherever it is kept; what of a config counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from paperhooks.io import config_entries, hash_json, model_digest, sampled_digest, tensor_digests
from paperhooks.testing import fingerprint, tiny_llama
from transformers import LlamaForCausalLM

CPU = torch.device("cpu")


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


def on_disk(model: LlamaForCausalLM, folder: Path) -> None:
    disk_offload(model, folder, execution_device=CPU)


def whole_layers_on_disk(model: LlamaForCausalLM, folder: Path) -> None:
    disk_offload(model, folder, execution_device=CPU, preload_module_classes=["LlamaDecoderLayer"])


def some_layers_on_disk(model: LlamaForCausalLM, folder: Path) -> None:
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{n}": "disk" if n % 2 else "cpu" for n in range(len(model.model.layers))}
    dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def with_a_hook_of_their_own(model: LlamaForCausalLM, folder: Path) -> None:
    cpu_offload(model, execution_device=CPU)
    for module in model.modules():
        add_hook_to_module(module, ModelHook(), append=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("place", [on_disk, whole_layers_on_disk, some_layers_on_disk, with_a_hook_of_their_own])
def test_weights_elsewhere_count_bit_for_bit(place, tied: bool, tmp_path: Path) -> None:
    """Their digest is that of the plain model, and nothing is loaded by reading it."""
    found = []
    for odd in (0, 1):
        model = tiny_llama(tie_word_embeddings=tied)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] += odd
        want = tensor_digests(model)
        place(model, tmp_path / str(odd))
        before = fingerprint(model)
        assert tensor_digests(model) == want
        found.append(before)
        assert model.model.layers[1].mlp.up_proj.weight.is_meta
        assert fingerprint(model) == before
    odd_places = [place for place in found[0].differences(found[1]) if place.endswith(":bits")]
    assert odd_places == ["model.layers.1.mlp.up_proj.weight:bits"]


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


def test_some_entries_tell_trained_models_apart(tmp_path: Path) -> None:
    """Also of one whose weights lie on disk; what a sample cannot see is a single entry in between."""
    model, trained = tiny_llama(), tiny_llama()
    known = sampled_digest(model)
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight[0, 1] += 1
        assert sampled_digest(trained) == known != sampled_digest(tiny_llama(seed=1))
        trained.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    assert sampled_digest(trained) != known
    on_disk(model, tmp_path)
    assert sampled_digest(model) == known
