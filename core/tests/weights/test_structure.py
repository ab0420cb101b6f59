"""Layers, attentions and MLPs that are skipped: the same logits under every cache, and everything back afterwards."""

from __future__ import annotations

import copy
import warnings

import paperhooks
import pytest
import torch
from paperhooks import ModelView
from paperhooks.errors import PluginConflict, UnsupportedModel
from paperhooks.models import calibrate, last_hidden_state
from paperhooks.testing import cache_argument, fingerprint, tiny_llama, tiny_llava, tiny_text, vlm_inputs
from paperhooks.weights import Structure, WeightJournal
from transformers import DynamicCache, StaticCache

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

SKIPPABLE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "mixtral")
#: Families with layers of several kinds of attention, whose cache has layers of several kinds.
MIXED = ("gemma2", "gemma3")


def model_of(family):
    if family == "llava":
        return tiny_llava()
    if family in MIXED:
        return tiny_text(family, layers=6, sliding_window=6)
    if family == "windowed":  # all layers slide
        return tiny_text("mistral", sliding_window=6)
    return tiny_text(family)


def names_of(model):
    structure = Structure(model)
    by_kind = {}
    for name, sublayer in structure.sublayers.items():
        by_kind.setdefault(sublayer.kind, []).append(name)
    return structure, by_kind


def ids_of(rows=2, length=9):
    return torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(1))


def choices(kinds):
    """What to skip, by name: the attention of layer 0, of the last one, several at once, a whole layer, an MLP."""
    attentions, layers, mlps = kinds["attention"], kinds["layer"], kinds["mlp"]
    return {
        "first attention": [attentions[0]],
        "last attention": [attentions[-1]],
        "all but one attention": attentions[:-1],
        "first layer": [layers[0]],
        "last layer": [layers[-1]],
        "first attention and layer 2": [attentions[0], layers[2]],
        "mlp": [mlps[1], mlps[-1]],
        "mixed": [attentions[0], mlps[0], attentions[2], layers[1]],
    }


CHOICES = tuple(choices({"attention": ["a"] * 3, "layer": ["l"] * 3, "mlp": ["m"] * 2}))


def zeroed(model, structure, names):
    """A copy of the model in which what is skipped gives zeros, or hands on what came in: by hooks, with everything
    else at its place. What skipping has to equal."""
    other = copy.deepcopy(model)
    for name in names:
        sublayer, module = structure.sublayers[name], other.get_submodule(name)
        if sublayer.kind != "layer":
            module.register_forward_hook(
                lambda m, args, out: (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else out * 0
            )
            continue
        module.register_forward_pre_hook(lambda m, args, kwargs: m.__dict__.update(came=args[0]), with_kwargs=True)
        module.register_forward_hook(
            lambda m, args, out: (
                (m.__dict__.pop("came"), *out[1:]) if isinstance(out, tuple) else m.__dict__.pop("came")
            )
        )
    return other


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("family", [*SKIPPABLE, "windowed", "llava"])
def test_skipping_equals_a_sublayer_that_gives_nothing(family, choice):
    model = model_of(family)
    structure, kinds = names_of(model)
    names, ids = choices(kinds)[choice], ids_of()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        wanted = zeroed(model, structure, names)(ids, attention_mask=mask).logits
        before, known = model(ids, attention_mask=mask).logits, fingerprint(model)
        parameters = dict(model.named_parameters())
        for name in names:
            structure.skip(name)
        skipped = {n for n in parameters if any(n.startswith(f"{name}.") for name in names)}
        assert set(dict(model.named_parameters())) == set(parameters) - skipped
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, wanted, rtol=0, atol=0)
        structure.undo()
        assert torch.equal(model(ids, attention_mask=mask).logits, before)
    assert fingerprint(model) == known
    assert list(dict(model.named_parameters())) == list(parameters)


def generated(model, mode, ids, mask):
    """Greedy tokens [B, T + 12] by a way of generating; ``"plain"`` uses no cache at all."""
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask}
    if mode == "plain":
        return model.generate(ids, **options, use_cache=False)
    if mode == "chunked":
        return model.generate(ids, **options, prefill_chunk_size=4)
    if mode == "static":
        return model.generate(ids, **options, cache_implementation="static", disable_compile=True)
    if mode == "given":
        return model.generate(ids, **options, **{cache_argument(model): DynamicCache()})
    return model.generate(ids, **options)


def beams(model, ids, mask, **options):
    return model.generate(ids, attention_mask=mask, max_new_tokens=8, num_beams=3, do_sample=False, **options)


@pytest.mark.parametrize("choice", ["first attention", "all but one attention", "first layer", "mixed"])
@pytest.mark.parametrize("family", [*SKIPPABLE, "windowed", "llava"])
def test_cached_generation_equals_uncached(family, choice):
    model = model_of(family)
    structure, kinds = names_of(model)
    for name in choices(kinds)[choice]:
        structure.skip(name)
    ids = ids_of()
    padded = torch.ones_like(ids)
    padded[0, :4] = 0
    ids[padded == 0] = 0
    for rows, mask in ((ids[1:], padded[1:]), (ids, padded)):
        wanted = generated(model, "plain", rows, mask)
        for mode in ("default", "chunked", "static", "given"):
            assert torch.equal(generated(model, mode, rows, mask), wanted), mode
        assert torch.equal(beams(model, rows, mask), beams(model, rows, mask, use_cache=False)), "beams"


def test_a_static_cache_and_a_cache_that_others_made_serve_it_too():
    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    structure.skip("model.layers.0.self_attn")
    name = cache_argument(model)
    with torch.no_grad():
        wanted = model(ids).logits
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
            found = [model(part, **{name: cache}).logits for part in ids.split(3, dim=1)]
            torch.testing.assert_close(torch.cat(found, 1), wanted)
            assert int(cache.get_seq_length()) == ids.shape[1]


def test_a_cache_that_was_filled_before_goes_on():
    """What layer 1 wrote is of no more use; its length still is."""
    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    cache, name = DynamicCache(config=model.config), cache_argument(model)
    other, own = zeroed(model, structure, ["model.layers.1.self_attn"]), DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :5], **{name: cache})
        model(ids[:, :5], **{name: own})
        structure.skip("model.layers.1.self_attn")
        found = model(ids[:, 5:], **{name: cache}).logits
        torch.testing.assert_close(found, other(ids[:, 5:], **{name: own}).logits)
    assert int(cache.get_seq_length(1)) == ids.shape[1]


def test_assisted_decoding_takes_tokens_back():
    model, assistant, ids = tiny_llama(), tiny_llama(seed=1), ids_of(1)
    structure, _ = names_of(model)
    structure.skip("model.layers.0.self_attn")
    structure.skip("model.layers.3")
    draft, _ = names_of(assistant)
    draft.skip("model.layers.0.self_attn")
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    wanted = model.generate(ids, **options, use_cache=False)
    assert torch.equal(model.generate(ids, **options, assistant_model=assistant), wanted)


def test_what_is_skipped_follows_the_model_to_other_dtypes_and_modes():
    model, ids = tiny_llama(), ids_of()
    wanted = copy.deepcopy(model).double().train()
    structure, _ = names_of(model)
    for name in ("model.layers.0", "model.layers.1.mlp", "model.layers.2.self_attn"):
        structure.skip(name)
    model.double().train()
    structure.undo()
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(model(ids).logits, wanted(ids).logits)


def test_gradient_checkpointing_that_was_switched_on_meanwhile_holds_for_the_layer_too():
    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    structure.skip("model.layers.1")
    model.train()
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    structure.undo()
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[1].mlp.up_proj.weight.grad is not None


def test_it_trains_without_what_is_skipped():
    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    structure.skip("model.layers.1.self_attn")
    structure.skip("model.layers.2")
    model.train()
    model(ids, labels=ids).loss.backward()
    unread = [name for name, p in model.named_parameters() if p.grad is None]
    assert unread == ["model.layers.1.input_layernorm.weight"]  # whose output nobody reads


def test_a_copy_keeps_its_own():
    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    structure.skip("model.layers.1")
    other = copy.deepcopy(model)
    skipped = model(ids).logits
    structure.undo()
    assert torch.equal(other(ids).logits, skipped)
    assert not torch.equal(model(ids).logits, skipped)


def test_the_view_goes_on_finding_layers_and_says_what_has_no_attention():
    model = tiny_llama()
    view = ModelView.from_model(model)
    structure, _ = names_of(model)
    structure.skip("model.layers.0.self_attn")
    structure.skip("model.layers.2")
    for each in (view, ModelView.from_model(model)):
        assert len(each.layers) == 4
        assert each.layers[2] is model.model.layers[2]
        assert [each.attention(i) is None for i in range(4)] == [True, False, True, False]
        assert each.layer_types == ("skipped", "full_attention", "skipped", "full_attention")
    structure.undo()
    assert view.layer_types == ("full_attention",) * 4
    assert view.attention(2) is not None


@pytest.mark.parametrize(
    "skipped", [["model.layers.0.self_attn"], ["model.layers.3"], ["model.layers.1.mlp", "model.layers.2"]]
)
def test_other_methods_attach_over_it(skipped):
    """Dropped tokens and idle hooks, on a model that has less: as on one whose parts give nothing."""
    from methods import KeepRows, Observer

    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    # A layer whose two parts give nothing, since a session's hooks at the last one have to see what it returns.
    parts = [p for n in skipped for p in ([n] if n.count(".") > 2 else [f"{n}.self_attn", f"{n}.mlp"])]
    other = zeroed(model, structure, parts)
    for name in skipped:
        structure.skip(name)
    observer = Observer()
    options = {"max_new_tokens": 6, "do_sample": False}
    with paperhooks.attach(model, observer, KeepRows(1)) as session, paperhooks.attach(other, KeepRows(1)):
        assert f"skipped: {', '.join(sorted(skipped))}" in session.describe()
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, other(ids).logits)
        assert torch.equal(model.generate(ids, **options), other.generate(ids, **options))
    assert [each[2] for each in observer.seen if each[1] == "post_layer"][:4] == [0, 1, 2, 3]


def test_a_method_for_layers_with_attention_does_not_act_where_it_is_skipped():
    from methods import EVERYTHING, Observer
    from paperhooks import Traits

    class Attending(Observer):
        traits = Traits(layers="attention", **EVERYTHING)

    model = tiny_llama()
    structure, _ = names_of(model)
    structure.skip("model.layers.1.self_attn")
    method = Attending()
    with paperhooks.attach(model, method):
        model(ids_of())
    assert [each[2] for each in method.seen if each[1] == "pre_attention"] == [0, 2, 3]


@pytest.mark.parametrize("when", ["before", "while attached"])
def test_hooks_of_a_session_go_on_running_where_a_layer_is_skipped(when):
    from methods import Damp, KeepRows

    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    parts = ["model.layers.2.self_attn", "model.layers.2.mlp"]
    other, plain = zeroed(model, structure, parts), model(ids).logits
    methods = lambda: (KeepRows(1), Damp())  # noqa: E731
    with paperhooks.attach(other, *methods()):
        wanted = other(ids).logits
    if when == "before":
        structure.skip("model.layers.2")
    session = paperhooks.attach(model, *methods())
    structure.skip("model.layers.2")
    torch.testing.assert_close(model(ids).logits, wanted)
    structure.undo()
    session.close()
    assert torch.equal(model(ids).logits, plain)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("asked", ["before", "while skipped"])
def test_hidden_states_and_attentions_keep_their_places(asked):
    """transformers hooks layers by their class when they are first asked for, and never again."""
    model, ids = tiny_llama(attn_implementation="eager"), ids_of()
    options = {"output_hidden_states": True, "output_attentions": True}
    reference = tiny_llama(attn_implementation="eager")(ids, **options)
    structure, _ = names_of(model)
    if asked == "before":
        model(ids, **options)
    structure.skip("model.layers.0.self_attn")
    structure.skip("model.layers.2")
    found = model(ids, **options)
    assert len(found.hidden_states) == len(reference.hidden_states) == 5
    assert torch.equal(found.hidden_states[3], found.hidden_states[2])
    assert [list(each.shape) for each in found.attentions][:2] == [[2, 0, 9, 0], [2, 4, 9, 9]]
    structure.undo()
    again = model(ids, **options)
    assert all(torch.equal(a, b) for a, b in zip(again.hidden_states, reference.hidden_states, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again.attentions, reference.attentions, strict=True))


def test_modes_of_what_is_skipped_are_those_of_the_model():
    from paperhooks.models import evaluation_mode

    model = tiny_llama().train()
    structure, _ = names_of(model)
    with evaluation_mode(model):
        structure.skip("model.layers.1")
        structure.skip("model.layers.2.mlp")
    model.eval()
    structure.undo()
    assert not [m for m in model.modules() if m.training]
    structure.skip("model.layers.1")
    model.train()
    with evaluation_mode(model):
        pass
    structure.undo()
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_that_is_frozen_meanwhile_is_so_with_what_comes_back(frozen):
    model = tiny_llama().requires_grad_(not frozen)
    structure, _ = names_of(model)
    structure.skip("model.layers.1")
    structure.skip("model.layers.0.self_attn")
    model.requires_grad_(not frozen)
    structure.undo()
    assert {p.requires_grad for p in model.parameters()} == {not frozen}
    structure.skip("model.layers.1")
    model.requires_grad_(frozen)
    structure.undo()
    assert {p.requires_grad for p in model.parameters()} == {frozen}
    model.model.layers[1].requires_grad_(not frozen)
    structure.skip("model.layers.1")
    structure.undo()
    assert {p.requires_grad for p in model.model.layers[1].parameters()} == {not frozen}


def test_copies_and_pickles_of_what_is_skipped(tmp_path):
    import pickle

    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    structure.skip("model.layers.0.self_attn")
    structure.skip("model.layers.2")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(ids).logits, model(ids).logits)
        assert other.model.layers[2].stands_for is not model.model.layers[2].stands_for


@pytest.mark.parametrize("family", ["opt", "bloom"])
def test_sublayers_that_do_more_than_add_are_refused_by_name(family):
    model = tiny_text(family)
    structure, kinds = names_of(model)
    attention = kinds["attention"][0]
    with pytest.raises(UnsupportedModel, match=f"{attention} cannot be skipped: .* does not only add"):
        structure.skip(attention)
    ids = ids_of()
    wanted = zeroed(model, structure, [kinds["layer"][1]])(ids).logits
    structure.skip(kinds["layer"][1])
    assert torch.equal(model(ids).logits, wanted)


def test_shared_keys_and_recurrent_states_are_refused_by_name():
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, Qwen3NextConfig, Qwen3NextForCausalLM

    common = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    shared = Gemma3nForCausalLM(Gemma3nTextConfig(
        **{**common, "intermediate_size": [64] * 4}, num_hidden_layers=4, num_kv_shared_layers=2, laurel_rank=4,
        vocab_size_per_layer_input=60, hidden_size_per_layer_input=8, activation_sparsity_pattern=[0.0] * 4,
        layer_types=["full_attention"] * 4,
    )).eval()  # fmt: skip
    recurrent = Qwen3NextForCausalLM(Qwen3NextConfig(
        **common, num_hidden_layers=4, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, full_attention_interval=2,
    )).eval()  # fmt: skip
    with pytest.raises(UnsupportedModel, match="keys and values that other layers make"):
        Structure(shared).skip("model.layers.0.self_attn")
    for name in ("model.layers.0.linear_attn", "model.layers.0"):
        with pytest.raises(UnsupportedModel, match=f"{name} cannot be skipped: .*no plain self-attention"):
            Structure(recurrent).skip(name)
    structure, ids = Structure(recurrent), ids_of(length=6).clamp(max=50)
    wanted = zeroed(recurrent, structure, ["model.layers.1.self_attn", "model.layers.2.mlp"])(ids).logits
    structure.skip("model.layers.1.self_attn")
    structure.skip("model.layers.2.mlp")
    torch.testing.assert_close(recurrent(ids).logits, wanted)


def test_layers_that_run_several_times_or_on_other_states_are_refused_by_name():
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    stacked = Gemma3nForCausalLM(Gemma3nTextConfig(
        vocab_size=60, hidden_size=32, intermediate_size=[64] * 2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, pad_token_id=0, num_hidden_layers=2, num_kv_shared_layers=0, laurel_rank=4,
        vocab_size_per_layer_input=60, hidden_size_per_layer_input=8, activation_sparsity_pattern=[0.0] * 2,
        layer_types=["full_attention"] * 2,
    )).eval()  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"not called with hidden states \[B, T, D\]"):
        Structure(stacked).skip("model.layers.0")
    model = tiny_llama()
    layer = model.model.layers[1]
    layer.forward = lambda hidden, **kwargs: type(layer).forward(layer, layer.mlp(hidden), **kwargs)
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.1\.mlp cannot be skipped: LlamaMLP runs several times"):
        Structure(model).skip("model.layers.1.mlp")
    Structure(model).skip("model.layers.0.mlp")


def test_an_interrupt_while_sublayers_are_found_leaves_no_hook(monkeypatch):
    model, ids, count = tiny_llama(), ids_of(), [0]
    before, real = model(ids).logits, torch.nn.Module.register_forward_hook

    def late(self, *args, **kwargs):
        handle = real(self, *args, **kwargs)
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return handle

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", late)
    with pytest.raises(KeyboardInterrupt):
        assert Structure(model).sublayers
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert torch.equal(model(ids).logits, before)


def test_errors_name_what_there_is():
    model = tiny_llama()
    structure, other = Structure(model), Structure(model)
    with pytest.raises(LookupError, match=r"no module 'model\.layers\.0\.self_atn'.*self_attn"):
        structure.skip("model.layers.0.self_atn")
    with pytest.raises(UnsupportedModel, match=r"up_proj is no layer, attention or MLP .*model\.layers\.0\.mlp"):
        structure.skip("model.layers.0.mlp.up_proj")
    structure.skip("model.layers.0.mlp")
    structure.skip("model.layers.0.mlp")
    assert structure.skipped == ("model.layers.0.mlp",)
    with pytest.raises(PluginConflict, match="skipped already"):
        other.skip("model.layers.0.mlp")
    with pytest.raises(LookupError, match=r"up_proj\.weight is part of model\.layers\.0\.mlp, which is skipped"):
        WeightJournal(model).write("model.layers.0.mlp.up_proj.weight", torch.zeros(64, 32))
    with pytest.raises(LookupError, match=r"up_proj is skipped in this model, with model\.layers\.0\.mlp"):
        calibrate(ModelView.from_model(model), [{"input_ids": ids_of()}], ["model.layers.0.mlp.up_proj"], print)
    structure.undo()


def test_the_trial_leaves_no_trace():
    model = tiny_llama().train()
    model.model.layers[1].eval()
    state, known = torch.random.get_rng_state(), fingerprint(model)
    assert Structure(model).sublayers
    assert fingerprint(model) == known
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [layer.training for layer in model.model.layers] == [True, False, True, True]


def test_the_journal_undoes_it_with_the_weights():
    model, ids = tiny_llama(), ids_of()
    before, known = model(ids).logits, fingerprint(model)
    journal = WeightJournal(model)
    journal.write("model.layers.1.mlp.up_proj.weight", torch.zeros(64, 32))
    journal.structure.skip("model.layers.1.mlp")
    journal.structure.skip("model.layers.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        journal.undo()
    assert torch.equal(model(ids).logits, before)
    assert fingerprint(model) == known


def test_a_method_may_skip_a_layer_while_it_is_attached():
    from dataclasses import dataclass

    from methods import EVERYTHING
    from paperhooks import Traits, hookimpl

    @dataclass(eq=False)
    class Shallow:
        traits = Traits(**{**EVERYTHING, "writes": frozenset({"weights"})})

        @hookimpl
        def setup(self, view):
            view.journal.structure.skip("model.layers.2")

        @hookimpl
        def post_layer(self, hidden_states):
            return None

    model, ids = tiny_llama(), ids_of()
    before, known = model(ids).logits, fingerprint(model)
    wanted = zeroed(model, Structure(model), ["model.layers.2"])(ids).logits
    with paperhooks.attach(model, Shallow()):
        assert torch.equal(model(ids).logits, wanted)
    assert torch.equal(model(ids).logits, before)
    assert fingerprint(model) == known


def test_hidden_states_are_read_without_the_last_layer():
    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    structure.skip("model.layers.3")
    with torch.no_grad():
        hidden = last_hidden_state(model, {"input_ids": ids})
        assert torch.equal(model.lm_head(hidden), model(ids).logits)


def test_the_text_part_of_a_vision_language_model_reads_images_without_its_first_attention():
    model = tiny_llava()
    structure, kinds = names_of(model)
    inputs = vlm_inputs(model)
    name = kinds["attention"][0]
    wanted = zeroed(model, structure, [name])(**inputs).logits
    structure.skip(name)
    assert torch.equal(model(**inputs).logits, wanted)


def test_it_runs_and_follows_to_a_device(accelerator):
    """Skipped on the host and moved, or skipped there: the same tokens; what comes back is where the model is."""
    model, ids = tiny_llama(), ids_of()
    structure, _ = names_of(model)
    before = model.generate(ids, max_new_tokens=6, do_sample=False)
    for name in ("model.layers.0.self_attn", "model.layers.2"):
        structure.skip(name)
    wanted = model.generate(ids, max_new_tokens=6, do_sample=False)
    model.to(accelerator)
    assert torch.equal(model.generate(ids.to(accelerator), max_new_tokens=6, do_sample=False).cpu(), wanted)
    structure.undo()
    assert {p.device.type for p in model.parameters()} == {accelerator.type}
    assert torch.equal(model.generate(ids.to(accelerator), max_new_tokens=6, do_sample=False).cpu(), before)
    other = Structure(model)
    for name in ("model.layers.0.self_attn", "model.layers.2"):
        other.skip(name)
    assert torch.equal(model.generate(ids.to(accelerator), max_new_tokens=6, do_sample=False).cpu(), wanted)


def test_a_model_that_accelerate_offloads_can_be_left_out_of():
    accelerate = pytest.importorskip("accelerate")
    model, ids = tiny_llama(), ids_of()
    wanted = zeroed(model, Structure(model), ["model.layers.1", "model.layers.0.self_attn"])(ids).logits
    before = model(ids).logits
    accelerate.cpu_offload(model, execution_device="cpu")
    structure = Structure(model)
    for name in ("model.layers.1", "model.layers.0.self_attn"):
        structure.skip(name)
    assert torch.equal(model(ids).logits, wanted)
    structure.undo()
    assert torch.equal(model(ids).logits, before)
