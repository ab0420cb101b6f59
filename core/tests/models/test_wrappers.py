"""Methods go to the model that really runs, whatever wraps it: adapters, parallel wrappers, value heads."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from methods import Damp, KeepRows
from paperhooks import Traits, UnsupportedModel, active_session, attach, hookimpl, strip
from paperhooks.models import running_model
from paperhooks.testing import fingerprint, tiny_llama, tiny_vlm, vlm_inputs
from paperhooks.training.loss import find_session
from torch import nn

peft = pytest.importorskip("peft")
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def lora(model: nn.Module, seed: int = 0, **options):
    """A LoRA wrapper whose adapters change the output."""
    torch.manual_seed(seed)
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(model, peft.LoraConfig(**{**settings, **options})).eval()


class ValueHead(nn.Module):
    """A model beside a head of its own, as reinforcement learning has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.pretrained_model = model
        self.head = nn.Linear(32, 1)

    def forward(self, **inputs):
        return self.pretrained_model(**inputs)


WRAPPERS = {
    "peft": lora,
    "data parallel": nn.DataParallel,
    "value head": ValueHead,
    "two deep": lambda m: ValueHead(lora(m)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapper_and_the_model_inside_do_the_same(kind):
    wrapper = WRAPPERS[kind](tiny_llama())
    inner = running_model(wrapper)
    found = []
    for target in (wrapper, inner):
        with attach(target, Damp(0.5)) as session, torch.no_grad():
            assert active_session(wrapper) is active_session(inner) is find_session(wrapper) is session
            found.append(wrapper(input_ids=IDS).logits)
    plain = wrapper(input_ids=IDS).logits
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], plain)
    assert active_session(wrapper) is None


def test_generate_of_an_adapter_model_runs_the_method_without_a_warning():
    wrapper = lora(tiny_llama())
    merged = lora(tiny_llama()).merge_and_unload()
    with attach(merged, Damp(0.5)):
        expected = merged.generate(IDS, max_new_tokens=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(wrapper, Damp(0.5)):
            assert wrapper.generate(input_ids=IDS, max_new_tokens=5).tolist() == expected.tolist()


def test_adapters_are_switched_disabled_and_unloaded_while_attached():
    wrapper = lora(tiny_llama())
    wrapper.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    references = {}
    for name in ("default", "other"):
        wrapper.set_adapter(name)
        with attach(wrapper, Damp(0.5)), torch.no_grad():
            references[name] = wrapper(input_ids=IDS).logits
    with attach(wrapper, Damp(0.5)), torch.no_grad():
        wrapper.set_adapter("default")
        assert torch.equal(wrapper(input_ids=IDS).logits, references["default"])
        wrapper.set_adapter("other")
        assert torch.equal(wrapper(input_ids=IDS).logits, references["other"])
        with wrapper.disable_adapter():
            base = wrapper(input_ids=IDS).logits
        unloaded = wrapper.unload()
        assert torch.equal(unloaded(input_ids=IDS).logits, base)
    with attach(tiny_llama(), Damp(0.5)) as session, torch.no_grad():
        assert torch.equal(session.view.model(input_ids=IDS).logits, base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unloaded.modules())


@pytest.mark.parametrize("target", ["wrapper", "inside"])
def test_undo_on_an_adapter_model_is_exact(target):
    wrapper = lora(tiny_llama())
    wrapper.generate(input_ids=IDS, max_new_tokens=2)
    before = fingerprint(wrapper)
    with attach(wrapper if target == "wrapper" else running_model(wrapper), KeepRows(2)):
        wrapper.generate(input_ids=IDS, max_new_tokens=2)
    assert fingerprint(wrapper).differences(before) == []
    with attach(wrapper, Damp(0.5)) as session:
        wrapper(input_ids=IDS)
        assert strip(wrapper) > 0
    assert session.closed
    assert fingerprint(wrapper).differences(before) == []


def test_a_compact_loss_works_through_an_adapter_model():
    @dataclass(eq=False)
    class Compact:
        traits = Traits(writes=frozenset({"tokens"}), training=True, layers=[2])

        @hookimpl
        def setup(self, view):
            view.use_compact_loss()

        @hookimpl
        def pre_attention(self, inputs):
            return inputs.select(torch.tensor([[0, 2, 3, 4]]))

    wrapper, losses = lora(tiny_llama()), []
    for target in (wrapper, running_model(wrapper)):
        with attach(target, Compact()):
            losses.append(wrapper(input_ids=IDS, labels=IDS).loss)
    assert losses[0].item() == losses[1].item() != wrapper(input_ids=IDS, labels=IDS).loss.item()


def test_prompt_tuning_lengthens_the_sequence_and_the_method_sees_it():
    seen = []

    @dataclass(eq=False)
    class Look:
        traits = Traits()

        @hookimpl
        def pre_attention(self, site, call, inputs):
            if site.index == 0:
                seen.append((call.input_ids, call.query_length, tuple(inputs.hidden_states.shape[:2])))

    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "num_layers": 4, "token_dim": 32}
    torch.manual_seed(0)
    config = peft.PromptTuningConfig(**settings, num_attention_heads=4)
    wrapper = peft.get_peft_model(tiny_llama(), config).eval()
    plain = wrapper.generate(input_ids=IDS, max_new_tokens=3, attention_mask=torch.ones_like(IDS))
    with attach(wrapper, Look()), torch.no_grad():
        wrapper(input_ids=IDS, attention_mask=torch.ones_like(IDS))
        assert wrapper.generate(input_ids=IDS, max_new_tokens=3, attention_mask=torch.ones_like(IDS)).tolist() == (
            plain.tolist()
        )
    assert seen[0] == (None, 8, (1, 8))


def test_several_models_in_one_wrapper_are_refused_by_their_places():
    both = nn.ModuleDict({"policy": tiny_llama(), "reference": tiny_llama()})
    with pytest.raises(UnsupportedModel, match=r"model.policy \(LlamaForCausalLM\), model.reference"):
        attach(both, Damp(0.5))
    one = tiny_llama()
    assert running_model(nn.ModuleList([one, one])) is one


@pytest.mark.parametrize("thing", ["gpt2", None, 3, Damp])
def test_what_is_no_loaded_model_is_refused(thing):
    with pytest.raises(UnsupportedModel, match="expected a loaded transformers model"):
        attach(thing, Damp(0.5))


def test_pictures_reach_the_model_inside():
    wrapper = lora(tiny_vlm("llava"))
    inputs = vlm_inputs(running_model(wrapper), ((3, 12, 5),))
    masks = []

    @dataclass(eq=False)
    class Look:
        traits = Traits()

        @hookimpl
        def pre_decoder(self, call):
            masks.append(call.image_mask)

    with attach(wrapper, Look()), torch.no_grad():
        wrapper(**inputs)
        embeds = wrapper.get_input_embeddings()(inputs["input_ids"])
        wrapper(inputs_embeds=embeds, mm_encoder_outputs=inputs["mm_encoder_outputs"])
    assert torch.equal(masks[0], inputs["input_ids"] == 95)
    assert torch.equal(masks[1], masks[0])
