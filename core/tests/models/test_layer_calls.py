"""Layers i to j from a hidden state: bit for bit what the model computes, or refused by name."""

from __future__ import annotations

import linecache
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import paperhooks.models.layer_calls as layer_calls_module
import paperhooks.models.layer_doubles as layer_doubles_module
import pytest
import torch
from methods import Damp
from paperhooks import Traits, attach, hookimpl
from paperhooks.errors import UnsupportedModel
from paperhooks.models import LayerCalls, ModelView, calibrate, evaluation_mode, last_hidden_state
from paperhooks.testing import TEXT_FAMILIES, VLM_FAMILIES, tiny_llama, tiny_text, tiny_vlm, vlm_inputs
from paperhooks.testing.interrupts import count_lines, interrupted, moments
from paperhooks.weights import Structure
from torch import Tensor, nn

WINDOW = {family: {"sliding_window": 3} for family in ("mistral", "mixtral", "phi3", "gemma2", "gemma3")}
PADS = {"left": [[0, 0, 1, 1, 1, 1, 1], [1] * 7], "right": [[1, 1, 1, 1, 1, 0, 0], [1] * 7], "none": None}


@pytest.fixture(autouse=True)
def _without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def batch_of(pad: str = "left", seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(seed))
    mask = PADS[pad]
    return {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": torch.tensor(mask)}


def view_of(family: str = "llama", **options: Any) -> ModelView:
    return ModelView.from_model(tiny_text(family, **{**WINDOW.get(family, {}), **options}))


def whole(calls: LayerCalls) -> Tensor:
    return calls.output(calls.run(calls.embeddings))


def splits_equal_the_model(view: ModelView, batch: dict[str, Any]) -> None:
    expected = last_hidden_state(view, batch)
    calls = LayerCalls.of(view, batch)
    assert len(calls) == len(view.layers)
    for place in range(len(calls) + 1):
        prefix = calls.run(calls.embeddings, 0, place)
        assert torch.equal(calls.output(calls.run(prefix, place)), expected), place


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_layers_one_by_one_are_the_model(family: str, attention: str, pad: str) -> None:
    splits_equal_the_model(view_of(family, attn_implementation=attention), batch_of(pad))


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma3"])
def test_a_model_of_one_layer(family: str) -> None:
    splits_equal_the_model(view_of(family, layers=1), batch_of())


def test_layers_of_both_kinds_take_part() -> None:
    """gemma3 has a full layer after every five that slide: two masks, and rotary tables of two bases."""
    view = view_of("gemma3", layers=7)
    assert set(view.layer_types) == {"full_attention", "sliding_attention"}
    splits_equal_the_model(view, batch_of())


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", [family for family in VLM_FAMILIES if family != "qwen3_vl"])
def test_prompts_with_images(family: str, pad: str) -> None:
    model = tiny_vlm(family, layers=3)
    splits_equal_the_model(ModelView.from_model(model), vlm_inputs(model, [[3, 12, 5], [2, 4, 3]], pad=pad))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    view = ModelView.from_model(tiny_text("qwen3").to(dtype))
    assert LayerCalls.of(view, batch_of()).embeddings.dtype == dtype
    splits_equal_the_model(view, batch_of())


def test_an_edited_model_from_any_hidden_state() -> None:
    view = view_of("qwen3")
    batch = batch_of()
    calls = LayerCalls.of(view, batch)
    prefix = calls.run(calls.embeddings, 0, 2)
    before = calls.output(calls.run(prefix, 2))
    view.layers[2].mlp.down_proj.weight.mul_(0.5)
    view.layers[3].self_attn.o_proj.weight.zero_()
    after = calls.output(calls.run(prefix, 2))
    assert torch.equal(after, last_hidden_state(view, batch))
    assert not torch.equal(after, before)
    assert torch.equal(prefix, calls.run(calls.embeddings, 0, 2)), "what was given is left as it was"


def test_the_layer_that_stands_in_the_list_is_the_one_that_runs() -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Through(GradientCheckpointingLayer):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            return hidden_states + 1

    view = view_of()
    calls = LayerCalls.of(view, batch_of())
    own = view.decoder.layers[1]
    view.decoder.layers[1] = Through()
    changed = whole(calls)
    assert torch.equal(changed, last_hidden_state(view, batch_of()))
    assert torch.equal(changed, whole(LayerCalls.of(view, batch_of()))), "recorded with it in the list"
    view.decoder.layers[1] = own
    assert torch.equal(whole(calls), last_hidden_state(view, batch_of()))
    del view.decoder.layers[3]
    with pytest.raises(UnsupportedModel, match="has 3 layers, and 4 calls were recorded"):
        calls.run(calls.embeddings, 0, 1)


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "bloom"])
def test_skipped_layers_before_and_after_the_calls_were_recorded(family: str) -> None:
    view = view_of(family)
    names = {id(module): name for name, module in view.model.named_modules()}
    calls, structure = LayerCalls.of(view, batch_of()), Structure(view.model)
    own = whole(calls)
    for index in (0, 2):
        structure.skip(names[id(view.layers[index])])
        changed = last_hidden_state(view, batch_of())
        assert torch.equal(whole(calls), changed)
        splits_equal_the_model(view, batch_of())
    structure.undo()
    assert torch.equal(whole(calls), own)


def test_layers_inside_checkpoint_wrappers() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tiny_llama()
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = checkpoint_wrapper(layer)
    splits_equal_the_model(ModelView.from_model(model), batch_of())


@pytest.mark.parametrize("what", ["decoder", "layers"])
def test_a_compiled_model(what: str) -> None:
    view = view_of()
    for module in (view.decoder,) if what == "decoder" else view.layers:
        module.compile(backend="eager")
    view.model(**batch_of())
    splits_equal_the_model(view, batch_of())
    torch.compiler.reset()


def test_an_offloaded_model() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny_text("gemma3")
    expected = last_hidden_state(model, batch_of())
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    view = ModelView.from_model(model)
    assert view.spread.kinds == ("offload",)
    splits_equal_the_model(view, batch_of())
    calls = LayerCalls.of(view, batch_of())
    assert torch.equal(whole(calls), expected)
    assert all(p.device.type == "meta" for p in view.layers[0].parameters()), "its weights are elsewhere again"


def test_gradients_flow_as_in_the_model() -> None:
    def gradients(compute: Any) -> list[Tensor]:
        model = tiny_llama(layers=3)
        compute(ModelView.from_model(model)).square().sum().backward()
        return [p.grad for p in model.model.parameters()]

    with torch.enable_grad():
        ours = gradients(lambda view: whole(LayerCalls.of(view, batch_of())))
        theirs = gradients(lambda view: last_hidden_state(view, batch_of()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# -- nothing is left on the model --------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> list[Any]:
    return [
        [(name, id(module), module.training, sorted(vars(module))) for name, module in model.named_modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("training", [False, True])
def test_modules_hooks_mode_and_random_state_are_as_before(training: bool) -> None:
    view = view_of("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    view.model.train(training)
    before = state_of(view.model)
    whole(LayerCalls.of(view, batch_of()))
    assert state_of(view.model) == before


#: Lines that undo: Python interrupts at calls and loops, and so not between the end of a block and these.
UNDOING = ('attributes["_modules"] = before', "with ExitStack() as stack:")


def line_at(place: str) -> str:
    file, _, line = place.rpartition(":")
    return linecache.getline(file, int(line or 0))


@pytest.mark.parametrize("step", ["of", "output"])
def test_an_interrupt_at_any_moment_leaves_the_layers(step: str) -> None:
    view = view_of(layers=2)
    layers = list(view.decoder.layers)
    calls = LayerCalls.of(view, batch_of())
    hidden = calls.embeddings
    files = [layer_calls_module.__file__, layer_doubles_module.__file__]

    def work() -> None:
        LayerCalls.of(view, batch_of()) if step == "of" else calls.output(hidden)

    for moment in moments(count_lines(work, files), 150):
        if line_at(interrupted(work, files, moment)).strip() in UNDOING:
            view.decoder.layers[0], view.decoder.layers[1] = layers
            view.decoder._forward_pre_hooks.clear()
        assert [a is b for a, b in zip(view.decoder.layers, layers, strict=True)] == [True, True], moment
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in view.model.modules()), moment
    assert torch.equal(calls.output(calls.run(hidden)), last_hidden_state(view, batch_of()))


def test_an_error_of_the_model_comes_through_and_leaves_the_layers() -> None:
    view = view_of()
    layers = list(view.decoder.layers)
    with pytest.raises(IndexError):
        LayerCalls.of(view, {"input_ids": torch.tensor([[5, 1000]])})
    assert all(a is b for a, b in zip(view.decoder.layers, layers, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in view.model.modules())


def test_hooks_on_layers_see_the_run_alone() -> None:
    view = view_of()
    seen: list[int] = []
    handle = view.layers[1].register_forward_hook(lambda *_: seen.append(1))
    calls = LayerCalls.of(view, batch_of())
    assert seen == []
    calls.output(calls.run(calls.embeddings))
    handle.remove()
    assert seen == [1]


def test_another_thread_sees_the_layers() -> None:
    view = view_of()
    expected = last_hidden_state(view, batch_of())
    found: list[Tensor] = []

    def elsewhere(*_: Any) -> None:
        def call() -> None:
            with torch.no_grad():
                found.append(view.model(**batch_of(), use_cache=False, output_hidden_states=True).hidden_states[-1])

        if not found:
            found.append(expected)
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()

    handle = view.decoder.norm.register_forward_pre_hook(elsewhere)
    LayerCalls.of(view, batch_of())
    handle.remove()
    assert torch.equal(found[1], expected)


@pytest.mark.parametrize("family", ["llama", "mixtral", "bloom"])
def test_a_model_that_collects_what_its_layers_give(family: str) -> None:
    """transformers puts its collecting hooks on what stands in the list at the first call."""
    view = view_of(family, output_hidden_states=True, output_router_logits=True)
    assert torch.equal(whole(LayerCalls.of(view, batch_of())), last_hidden_state(view, batch_of()))
    output = view.model(**batch_of(), use_cache=False)
    assert len(output.hidden_states) == len(view.layers) + 1


# -- refused by name ---------------------------------------------------------------------------------------------------


def test_a_decoder_that_adds_image_features_between_layers() -> None:
    model = tiny_vlm("qwen3_vl")
    view = ModelView.from_model(model)
    with pytest.raises(UnsupportedModel, match="Qwen3VLTextModel works on the hidden states between layers 0 and 1"):
        LayerCalls.of(view, vlm_inputs(model))
    splits_equal_the_model(view, vlm_inputs(model, [[7], [4]]))  # without images it does not


def test_layers_that_share_keys_and_values() -> None:
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 100, "vocab_size_per_layer_input": 100}
    config = Gemma3nTextConfig(
        **sizes, **more, hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    view = ModelView.from_model(Gemma3nForCausalLM(config).eval())
    with pytest.raises(UnsupportedModel, match=r"Gemma3nTextModel hands layer 0 .*layers hand things to later ones"):
        LayerCalls.of(view, batch_of())


@contextmanager
def forward_of(view: ModelView, forward: Any) -> Iterator[None]:
    view.decoder.forward = forward
    try:
        yield
    finally:
        del view.decoder.forward


def loop(view: ModelView, step: Any, order: Any = None, end: Any = None) -> Any:
    """A forward of llama's decoder that calls ``step(layer, hidden, states so far)`` for each layer."""

    def forward(input_ids: Tensor, **kwargs: Any) -> Any:
        hidden = view.decoder.embed_tokens(input_ids)
        tables = view.decoder.rotary_emb(hidden, position_ids=torch.arange(hidden.shape[1])[None])
        states = [hidden]
        for index in order or range(len(view.layers)):
            call = {"position_embeddings": tables, "attention_mask": None}
            hidden = step(view.decoder.layers[index], hidden, states, call)
            states.append(hidden)
        hidden = view.decoder.norm(hidden if end is None else end(states))
        return SimpleNamespace(last_hidden_state=hidden, cache=None, past_key_values=None, hidden_states=None,
                               attentions=None)  # fmt: skip

    return forward


def plain(layer: nn.Module, hidden: Tensor, states: list[Tensor], call: dict[str, Any]) -> Tensor:
    return layer(hidden, **call)


def in_place(layer: nn.Module, hidden: Tensor, states: list[Tensor], call: dict[str, Any]) -> Tensor:
    return layer(hidden, **call).mul_(0.5)


def reading_another(layer: nn.Module, hidden: Tensor, states: list[Tensor], call: dict[str, Any]) -> Tensor:
    return layer(hidden, earlier=(states[len(states) // 2] * 2,), **call)


def adding_up(layer: nn.Module, hidden: Tensor, states: list[Tensor], call: dict[str, Any]) -> Tensor:
    if len(states) == 1:
        states[0] = states[0].clone()  # the sum, in a tensor of its own
    else:
        states[0] += hidden
    return layer(hidden, earlier=states[0], **call)


def reading_embeddings(layer: nn.Module, hidden: Tensor, states: list[Tensor], call: dict[str, Any]) -> Tensor:
    return layer(hidden_states=hidden, earlier={"first": states[0]}, **call)


def with_a_cache(layer: nn.Module, hidden: Tensor, states: list[Tensor], call: dict[str, Any]) -> Tensor:
    from transformers import DynamicCache

    return layer(hidden, memory=DynamicCache(), **call)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ({"step": in_place}, "works on the hidden states between layers 0 and 1"),
        ({"step": reading_another}, "hands layer 1 'earlier', which is made of what earlier layers give"),
        ({"step": adding_up}, "hands layer 1 'earlier', which is made of what earlier layers give"),
        ({"step": with_a_cache}, "hands layer 0 'memory', a DynamicCache"),
        ({"step": plain, "order": (0, 2, 1, 3)}, "called layer 2 where layer 1 was expected"),
        ({"step": plain, "order": (0, 1, 1, 2, 3)}, "called layer 1 where layer 2 was expected"),
        ({"step": plain, "order": (0, 1, 2)}, "called 3 of its 4 layers"),
        ({"step": plain, "end": lambda states: states[-1] + states[1]}, "reads what earlier layers than the last give"),
    ],
    ids=["in place", "another state", "a sum", "cache", "order", "twice", "left out", "earlier states"],
)
def test_decoders_that_do_more_than_call_their_layers(forward: dict[str, Any], message: str, inference: bool) -> None:
    view = view_of()
    mode = torch.inference_mode(inference)
    with mode, forward_of(view, loop(view, **forward)), pytest.raises(UnsupportedModel, match=f"LlamaModel {message}"):
        LayerCalls.of(view, batch_of("none"))


@pytest.mark.parametrize("family", ["mistral", "bloom", "mixtral"])
def test_inference_mode(family: str) -> None:
    view = view_of(family)
    calls = LayerCalls.of(view, batch_of())
    with torch.inference_mode():
        splits_equal_the_model(view, batch_of())
        hidden = calls.run(calls.embeddings, 0, 2)
    assert torch.equal(calls.output(calls.run(hidden, 2)), last_hidden_state(view, batch_of()))


@pytest.mark.parametrize("step", [plain, reading_embeddings])
def test_what_is_the_same_for_all_hidden_states_may_be_handed_on(step: Any) -> None:
    view = view_of()
    with forward_of(view, loop(view, step)):
        splits_equal_the_model(view, batch_of("none"))


def test_attached_methods_are_refused_with_the_way_out() -> None:
    model = tiny_llama()
    with attach(model, Damp()) as session:
        model(**batch_of())
        with pytest.raises(UnsupportedModel, match="close the session"):
            LayerCalls.of(session.view, batch_of())
    view = ModelView.from_model(model)
    calls = LayerCalls.of(view, batch_of())
    with attach(model, Damp()):
        model(**batch_of())
        for call in (calls.run, calls.output):
            with pytest.raises(UnsupportedModel, match="close the session"):
                call(calls.embeddings)
    assert torch.equal(whole(calls), last_hidden_state(view, batch_of()))


class Weights:
    """Works on the weights alone."""

    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def setup(self, view: ModelView) -> None:
        weight = view.layers[1].mlp.down_proj.weight
        view.journal.write(weight, weight.detach() / 2)


def test_a_session_that_changes_weights_alone_is_no_obstacle() -> None:
    model = tiny_llama()
    with attach(model, Weights()) as session:
        assert torch.equal(whole(LayerCalls.of(session.view, batch_of())), last_hidden_state(model, batch_of()))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2), (5, None)])
def test_layers_that_are_not_there(start: int, stop: int | None) -> None:
    calls = LayerCalls.of(view_of(), batch_of())
    with pytest.raises(IndexError, match=r"LlamaModel has 4; expected 0 <= start <= stop <= 4"):
        calls.run(calls.embeddings, start, stop)


@pytest.mark.parametrize("shape", [(1, 7, 32), (2, 6, 32), (2, 7, 16), (7, 32)])
def test_hidden_states_of_another_shape(shape: tuple[int, ...]) -> None:
    calls = LayerCalls.of(view_of(), batch_of())
    for call in (calls.run, calls.output):
        with pytest.raises(ValueError, match=r"layers of this batch read \[2, 7, 32\] torch.float32"):
            call(torch.zeros(shape))
        with pytest.raises(ValueError, match="int64"):
            call(torch.zeros(2, 7, 32, dtype=torch.int64))


def test_a_layer_that_writes_into_what_it_reads() -> None:
    view = view_of()
    calls = LayerCalls.of(view, batch_of())
    hidden = calls.run(calls.embeddings, 0, 1)
    before = hidden.clone()
    view.layers[1].forward = lambda hidden_states, **kwargs: hidden_states.add_(1)
    assert torch.equal(calls.run(hidden, 1, 2), before + 1)
    assert torch.equal(hidden, before)


def test_a_layer_that_changes_the_shape() -> None:
    view = view_of()
    calls = LayerCalls.of(view, batch_of())
    view.layers[1].forward = lambda hidden_states, **kwargs: hidden_states[:, 1:]
    with pytest.raises(UnsupportedModel, match=r"layer 1 \(LlamaDecoderLayer\) gave \[2, 6, 32\]"):
        calls.run(calls.embeddings)


# -- those who need it: one block at a time in bounded memory ----------------------------------------------------------

BATCHES = [batch_of(seed=seed) for seed in range(3)]


def block_linears(view: ModelView, index: int) -> dict[str, nn.Module]:
    names = {module: name for name, module in view.model.named_modules()}
    return {names[m]: m for m in view.layers[index].modules() if isinstance(m, nn.Linear)}


@contextmanager
def hessians_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Sums of X^T X of the inputs of some modules."""
    sums: dict[str, Tensor] = {}

    def add(name: str, hidden: Tensor) -> None:
        rows = hidden.flatten(0, -2)
        sums[name] = sums.get(name, 0) + rows.T @ rows

    handles = [
        m.register_forward_pre_hook(lambda _, args, name=name: add(name, args[0])) for name, m in modules.items()
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_hessians_of_one_block_at_a_time(family: str) -> None:
    view = view_of(family)
    expected: dict[str, Tensor] = {}

    def receive(name: str, module: nn.Module, hidden: Tensor, batch: Any) -> None:
        rows = hidden.flatten(0, -2)
        expected[name] = expected.get(name, 0) + rows.T @ rows

    names = [name for index in range(len(view.layers)) for name in block_linears(view, index)]
    calibrate(view, BATCHES, names, receive, progress=False)
    with evaluation_mode(view.model):
        calls = [LayerCalls.of(view, batch) for batch in BATCHES]
        states = [each.embeddings for each in calls]
        for index in range(len(view.layers)):
            with hessians_of(block_linears(view, index)) as sums:
                states = [each.run(hidden, index, index + 1) for each, hidden in zip(calls, states, strict=True)]
            for name, value in sums.items():
                assert torch.equal(value, expected.pop(name)), name
    assert expected == {}


def test_blocks_that_read_what_compressed_blocks_give() -> None:
    view = view_of("qwen2")
    names = {index: list(block_linears(view, index)) for index in range(len(view.layers))}

    def compress(index: int) -> None:
        for module in block_linears(view, index).values():
            module.weight.copy_((module.weight * 4).round() / 4)

    def reference(index: int) -> dict[str, Tensor]:
        with hessians_of(block_linears(view, index)) as sums:
            for batch in BATCHES:
                last_hidden_state(view, batch)
        return sums

    calls = [LayerCalls.of(view, batch) for batch in BATCHES]
    states = [each.embeddings for each in calls]
    for index in names:
        with hessians_of(block_linears(view, index)) as sums:
            for each, hidden in zip(calls, states, strict=True):
                each.run(hidden, index, index + 1)
        expected = reference(index)
        assert [torch.equal(sums[name], expected[name]) for name in names[index]] == [True] * len(names[index])
        compress(index)
        states = [each.run(hidden, index, index + 1) for each, hidden in zip(calls, states, strict=True)]
    for each, hidden, batch in zip(calls, states, BATCHES, strict=True):
        assert torch.equal(each.output(hidden), last_hidden_state(view, batch))
