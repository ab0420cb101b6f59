"""The few names of transformers and torch that core relies on and that their documentation does not promise.

When one of these fails after an upgrade, the place that uses it is named beside it.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from paperhooks.testing import TEXT_FAMILIES, tiny_llama, tiny_llava, tiny_text
from torch import nn

VERSION = f"transformers {transformers.__version__}, torch {torch.__version__}"


def test_decoder_layers_are_gradient_checkpointing_layers() -> None:
    """Used by modelview to find the decoder's layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for model in (tiny_llama(), tiny_llava().model.language_model):
        layers = getattr(model, "model", model).layers
        assert all(isinstance(layer, GradientCheckpointingLayer) for layer in layers), VERSION


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_the_config_names_the_attention_kernel(attn: str) -> None:
    """Used by modelview and by the tiny models."""
    assert tiny_llama(attn_implementation=attn).config._attn_implementation == attn, VERSION


@pytest.mark.parametrize("table", ["_forward_pre_hooks", "_forward_hooks"])
@pytest.mark.parametrize(
    "suffix", ["", "_with_kwargs", "_always_called"], ids=["plain", "with_kwargs", "always_called"]
)
def test_modules_keep_their_hooks_in_tables_by_id(table: str, suffix: str) -> None:
    """Used by session to find what is attached, and to clean copies."""
    if table == "_forward_pre_hooks" and suffix == "_always_called":
        pytest.skip("torch has no such table")
    module = nn.Linear(1, 1)
    assert hasattr(module, table + suffix), VERSION
    register = module.register_forward_pre_hook if "pre" in table else module.register_forward_hook
    handle = register(lambda *a: None, with_kwargs=True, **({} if "pre" in table else {"always_call": True}))
    assert handle.id in getattr(module, table + suffix), VERSION
    handle.remove()
    assert handle.id not in getattr(module, table + suffix), VERSION


def test_an_instance_may_carry_its_own_loss_function() -> None:
    """Used by session for the loss on the kept tokens: the property ``loss_function`` looks for ``_loss_function``."""
    model = tiny_llama()
    called = []

    def loss(logits, labels, **kwargs):
        called.append(sorted(kwargs))
        return logits.sum()

    model._loss_function = loss
    ids = torch.arange(3, 9)[None]
    model(input_ids=ids, labels=ids)
    assert called, VERSION
    del model.__dict__["_loss_function"]
    assert model.loss_function is not loss, VERSION


@pytest.mark.parametrize("family", sorted(TEXT_FAMILIES))
def test_decoder_layers_take_the_hidden_states_first(family: str) -> None:
    """Used by torchhooks: the first argument of a layer's forward is what the layer before it returned."""
    model = tiny_text(family)
    layer = next(m for m in model.modules() if isinstance(m, nn.ModuleList))[0]
    assert next(iter(inspect.signature(layer.forward).parameters)) == "hidden_states", VERSION
