"""Attaching, ordering, describing, and undoing."""

from __future__ import annotations

import copy
import gc
import io
import logging
import sys
import weakref
from dataclasses import dataclass

import methods
import paperhooks
import pytest
import torch
from methods import Damp, KeepRows, Observer, Quiet
from paperhooks import (
    HookError,
    PluginConflict,
    PluginIncompatible,
    PluginNotFound,
    Traits,
    UnsupportedModel,
    attach,
    hookimpl,
    strip,
)
from paperhooks.sessions import Session, active_session
from paperhooks.testing import TEXT_FAMILIES, MethodContract, fingerprint, tiny_llama, tiny_llava, tiny_text, vlm_inputs

IDS = torch.arange(3, 13)[None]


class TestDamp(MethodContract):
    prefill_waits = 0

    def make(self):
        return Damp()


class TestQuiet(MethodContract):
    changes_outputs = False
    prefill_waits = 0

    def make(self):
        return Quiet()


class TestKeepRows(MethodContract):
    """Rows are counted from the prompt's end, so padding shifts none of them."""

    recompute = False
    batch_independent = False

    def make(self):
        return KeepRows()


def test_hooks_run_in_the_users_order_and_undo_in_reverse():
    model, seen = tiny_llama(layers=2), []
    with attach(model, Observer("a", seen), _Second("b", seen)):
        model(IDS)
    names = [entry[:2] for entry in seen]
    assert names[:4] == [("a", "setup"), ("b", "setup"), ("a", "pre_decoder"), ("b", "pre_decoder")]
    assert [e for e in seen if e[1] == "post_layer"] == [(n, "post_layer", i) for i in range(2) for n in ("a", "b")]
    assert names[-2:] == [("b", "teardown"), ("a", "teardown")]


class _Second(Observer):
    pass


def test_tryfirst_is_honoured_inside_the_users_order():
    order = []

    @dataclass(eq=False)
    class Late:
        traits = Traits()

        @hookimpl
        def post_layer(self, hidden_states):
            order.append("late")

    @dataclass(eq=False)
    class Early:
        traits = Traits()

        @hookimpl(tryfirst=True)
        def post_layer(self, hidden_states):
            order.append("early")

    with attach(tiny_llama(layers=1), Late(), Early()) as session:
        session.view.model(IDS)
    assert order == ["early", "late"]


def test_frozen_chains_agree_with_pluggy():
    """The plain pluggy call and the frozen functions see the same implementations, order and arguments."""
    model, seen = tiny_llama(layers=1), []
    with attach(model, Observer("a", seen), _Second("b", seen)) as session:
        site, call = session._set.sites(session.view)[0], object()
        seen.clear()
        session._set.manager.hook.post_layer(site=site, call=call, hidden_states=None)
        through_pluggy = list(seen)
        seen.clear()
        for implementation in session.implementations("post_layer"):
            implementation.function(site, call, None)
        assert seen == through_pluggy == [("a", "post_layer", 0), ("b", "post_layer", 0)]
        model(IDS)


def test_an_unknown_hook_is_named():
    with attach(tiny_llama(layers=1), Quiet()) as session:
        with pytest.raises(LookupError, match="did you mean 'post_layer'"):
            session.implementations("post_layr")
        session.view.model(IDS)


def test_chained_results_reach_the_next_implementation():
    model = tiny_llama(layers=4)
    with attach(model, Damp(0.5)), torch.no_grad():
        once = model(IDS).logits
    with attach(model, Damp(0.25), _Doubling()), torch.no_grad():
        twice = model(IDS).logits
    assert torch.equal(once, twice)


@dataclass(eq=False)
class _Doubling:
    traits = Traits(layers=(2, 3))

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * 2


def test_describe_names_layers_and_hooks():
    with attach(tiny_llama(layers=4), Damp(), Quiet()) as session:
        table = session.describe()
        session.view.model(IDS)
    assert "LlamaForCausalLM (llama), attached" in table
    lines = [line.split() for line in table.splitlines()[2:]]
    assert ["0-1", "full_attention", "-", "pre_attention,", "post_layer"] in lines
    assert ["2-3", "full_attention", "post_layer", "pre_attention,", "post_layer"] in lines
    assert "closed" in session.describe()


def test_trace_logs_every_call_only_while_it_is_on(caplog):
    model = tiny_llama(layers=3)
    with attach(model, Damp()) as session, caplog.at_level(logging.INFO, "paperhooks.trace"):
        with session.trace():
            model(IDS)
        traced = len(caplog.records)
        model(IDS)
    assert traced == 1
    assert "post_layer damp layer 2 -> float32[1, 10, 32]" in caplog.text
    assert len([r for r in caplog.records if r.name == "paperhooks.trace"]) == 1


def test_never_fired_warns_with_the_reasons():
    with pytest.warns(UserWarning, match=r"none of its hooks ever ran.*model\.forward"):
        attach(tiny_llama(), Damp()).close()


def test_attaching_twice_is_refused():
    model = tiny_llama()
    with attach(model, Damp()) as session:
        with pytest.raises(PluginConflict, match="attached already"):
            attach(model, Quiet())
        assert active_session(model) is session
        model(IDS)
    assert active_session(model) is None


def test_a_method_twice_is_refused():
    with pytest.raises(PluginConflict, match="twice"):
        attach(tiny_llama(), Damp(), Damp())


@pytest.mark.parametrize("kind", ["objective", "positions"])
def test_two_writers_of_one_thing_conflict(kind):
    @dataclass(eq=False)
    class One:
        traits = Traits(writes=frozenset({kind}))

        @hookimpl
        def post_layer(self, hidden_states):
            return None

    class Two(One):
        pass

    with pytest.raises(PluginConflict, match=f"one and two both write the {kind}"):
        attach(tiny_llama(), One(), Two())


def test_what_is_no_method_is_refused():
    class Nothing:
        traits = Traits()

    with pytest.raises(PluginIncompatible, match="implements no hook"):
        attach(tiny_llama(), Nothing())
    with pytest.raises(PluginIncompatible, match="is not a method"):
        attach(tiny_llama(), object())
    with pytest.raises(PluginIncompatible, match="at least one"):
        attach(tiny_llama())


def test_wrong_arguments_and_wrappers_are_refused():
    @dataclass(eq=False)
    class Wrong:
        traits = Traits()

        @hookimpl
        def post_layer(self, hidden_state):
            return None

    @dataclass(eq=False)
    class Wrapper:
        traits = Traits()

        @hookimpl(wrapper=True)
        def post_layer(self, hidden_states):
            return (yield)

    with pytest.raises(PluginIncompatible, match="hidden_state"):
        attach(tiny_llama(), Wrong())
    with pytest.raises(PluginIncompatible, match="wrapper"):
        attach(tiny_llama(), Wrapper())


def test_an_unknown_name_is_not_found():
    with pytest.raises(PluginNotFound):
        attach(tiny_llama(), "no-such-plugin")


def test_an_error_in_setup_leaves_nothing_attached():
    model = tiny_llama()
    model(IDS)
    before, seen = fingerprint(model), []

    @dataclass(eq=False)
    class Broken:
        traits = Traits()

        @hookimpl
        def setup(self, view):
            view.defer(lambda: seen.append("undone"))
            raise RuntimeError("no")

        @hookimpl
        def teardown(self, view):
            seen.append("teardown")

    with pytest.raises(RuntimeError, match="no"):
        attach(model, Quiet(), Broken())
    assert seen == ["teardown", "undone"]
    assert fingerprint(model).differences(before) == []


def test_every_undo_entry_runs_even_if_one_raises():
    model, seen = tiny_llama(), []

    @dataclass(eq=False)
    class Deferring:
        traits = Traits()

        @hookimpl
        def setup(self, view):
            view.defer(lambda: seen.append("first"))
            view.defer(lambda: 1 / 0)
            view.defer(lambda: seen.append("last"))

        @hookimpl
        def post_layer(self, hidden_states):
            return None

    model(IDS)
    before = fingerprint(model)
    session = attach(model, Deferring())
    model(IDS)
    with pytest.raises(ExceptionGroup) as caught:
        session.close()
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
    assert seen == ["last", "first"]
    assert fingerprint(model).differences(before) == []


def test_an_error_in_a_hook_names_hook_method_and_layer_and_leaves_the_model_clean():
    model = tiny_llama()
    model(IDS)
    before = fingerprint(model)

    @dataclass(eq=False)
    class Failing:
        traits = Traits(layers=(1,))

        @hookimpl
        def pre_attention(self, inputs):
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom") as caught, attach(model, Failing()):
        model(IDS)
    assert "pre_attention of 'failing' at layer 1" in caught.value.__notes__[0]
    assert fingerprint(model).differences(before) == []
    model(IDS)


@pytest.mark.parametrize(
    ("result", "message"),
    [(torch.zeros(1, 2, 3), r"expected float32\[1, 10, 32\]"), ("x", "returned str")],
)
def test_a_wrong_result_is_a_hook_error(result, message):
    @dataclass(eq=False)
    class Wrong:
        traits = Traits(layers=(0,))

        @hookimpl
        def post_layer(self, hidden_states):
            return result

    with pytest.raises(HookError, match=message), attach(tiny_llama(), Wrong()) as session:
        session.view.model(IDS)


def test_a_wrong_layer_input_is_a_hook_error():
    @dataclass(eq=False)
    class Wrong:
        traits = Traits(layers=(0,))

        @hookimpl
        def pre_attention(self, inputs):
            return inputs.hidden_states

    with pytest.raises(HookError, match=r"expected LayerInputs \(inputs.replace"), attach(tiny_llama(), Wrong()) as s:
        s.view.model(IDS)


def test_misspelt_fields_raise():
    @dataclass(eq=False)
    class Wrong:
        traits = Traits(layers=(0,))

        @hookimpl
        def pre_attention(self, inputs):
            return inputs.replace(hidden_state=None)

    with pytest.raises(TypeError, match="did you mean 'hidden_states'"), attach(tiny_llama(), Wrong()) as session:
        session.view.model(IDS)


def test_selecting_needs_the_declaration():
    @dataclass(eq=False)
    class Undeclared:
        traits = Traits(layers=(1,))

        @hookimpl
        def pre_attention(self, inputs):
            return inputs.select(torch.zeros(1, 1, dtype=torch.int64))

    with pytest.raises(HookError, match=r"writes=\{'tokens'\}"), attach(tiny_llama(), Undeclared()) as session:
        session.view.model(IDS)


def test_pre_decoder_changes_positions():
    model = tiny_llama(layers=2)

    @dataclass(eq=False)
    class Shift:
        traits = Traits(writes=frozenset({"positions"}))

        @hookimpl
        def pre_decoder(self, call, inputs):
            return inputs.replace(position_ids=torch.arange(call.query_length)[None] * 3)

    with attach(model, Shift()), torch.no_grad():
        shifted = model(IDS).logits
    with torch.no_grad():
        expected = model(IDS, position_ids=torch.arange(10)[None] * 3).logits
    assert torch.equal(shifted, expected)


def test_the_decoder_called_alone_runs_the_hooks_too():
    model, seen = tiny_llama(layers=2), []
    with attach(model, Observer("a", seen)):
        model.model(IDS)
    assert ("a", "post_layer", 1) in seen


def test_state_lives_as_long_as_the_forward_and_the_cache():
    found = []

    @dataclass(eq=False)
    class Counting:
        traits = Traits(layers=(0,), **methods.EVERYTHING)

        @hookimpl
        def pre_attention(self, call):
            here, sequence = call.state(self), call.cache_state("counting")
            here["n"] = here.get("n", 0) + 1
            sequence["n"] = sequence.get("n", 0) + 1
            found.append((here["n"], sequence["n"]))

    model = tiny_llama()
    with attach(model, Counting()):
        model.generate(IDS, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        model.generate(IDS, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert found == [(1, 1), (1, 2), (1, 3), (1, 1), (1, 2)]


def test_copies_pickles_and_saved_models(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        plain = model(IDS).logits
    with attach(model, Damp()), torch.no_grad():
        attached = model(IDS).logits
        twin = copy.deepcopy(model)
        model.save_pretrained(tmp_path)
        torch.save(model, buffer := io.BytesIO())
    assert active_session(twin) is None
    with torch.no_grad():
        assert torch.equal(twin(IDS).logits, attached)
        assert strip(twin) > 0
        assert torch.equal(twin(IDS).logits, plain)
        assert strip(twin) == 0
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=False)
        assert torch.equal(loaded(IDS).logits, attached)
        strip(loaded)
        assert torch.equal(loaded(IDS).logits, plain)
        again = type(model).from_pretrained(tmp_path)
        assert torch.equal(again(IDS).logits, plain)


def test_strip_closes_an_open_session():
    model = tiny_llama()
    session = attach(model, Damp())
    model(IDS)
    assert strip(model) > 0
    assert session.closed


def test_a_forgotten_session_dies_with_its_model():
    model = tiny_llama()
    attach(model, Quiet())
    model(IDS)
    ref = weakref.ref(model)
    del model
    gc.collect()
    assert ref() is None


def test_nothing_attached_means_no_hooks_and_no_extra_calls():
    model = tiny_llama()
    model(IDS)
    with attach(model, Quiet()):
        model(IDS)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.get_decoder().layers.modules())


def test_a_quiet_layer_costs_a_fixed_number_of_python_calls():
    """What an idle method costs is held by counting Python calls, not by timing."""

    def calls(model) -> int:
        count = 0

        def profile(frame, event, arg):
            nonlocal count
            count += event == "call"

        model(IDS)
        sys.setprofile(profile)
        try:
            model(IDS)
        finally:
            sys.setprofile(None)
        return count

    @dataclass(eq=False)
    class OneHook:
        traits = Traits(layers=(0, 1))

        @hookimpl
        def pre_attention(self, site, call, inputs):
            return None

    few, many = tiny_llama(layers=2), tiny_llama(layers=10)
    with torch.no_grad():
        base = calls(many) - calls(few)
        with attach(few, Quiet()), attach(many, Quiet()):
            extra = calls(many) - calls(few) - base
    # Per layer: torch's slow path (3 calls), our two hooks, LayerInputs, the two methods, and Module.__getattr__.
    assert extra <= 9 * 8
    with torch.no_grad(), attach(many, OneHook()):
        selected = calls(many)
        unselected_layers = [m for m in many.get_decoder().layers[2:] if m._forward_pre_hooks or m._forward_hooks]
    assert unselected_layers == []
    assert selected > 0


@pytest.mark.parametrize("family", sorted(TEXT_FAMILIES.keys() - {"bloom"}))
def test_every_family_runs_every_hook(family):
    model, seen = tiny_text(family, layers=2), []
    model(IDS)
    before = fingerprint(model)
    with torch.no_grad():
        plain = model(IDS).logits
    with attach(model, Observer("a", seen)), torch.no_grad():
        assert torch.equal(model(IDS).logits, plain)
    assert [s[1:] for s in seen[2:-1]] == [(h, i) for i in range(2) for h in ("pre_attention", "post_layer")]
    with attach(model, _FlipRows()), torch.no_grad():
        assert not torch.allclose(model(IDS).logits, plain)
    assert fingerprint(model).differences(before) == []


@dataclass(eq=False)
class _FlipRows:
    traits = Traits(layers=(0,))

    @hookimpl
    def pre_attention(self, inputs):
        return inputs.replace(hidden_states=inputs.hidden_states.flip(1))


def test_a_decoder_that_keeps_keyword_arguments_to_itself_is_noticed(monkeypatch):
    """A decoder of an unknown family that looks open but is not: an error, not silent idleness."""
    monkeypatch.setattr("paperhooks.compat.layers.CLOSED_LAYERS", ())
    with pytest.raises(UnsupportedModel, match="does not hand keyword arguments"):  # noqa: SIM117
        with attach(tiny_text("bloom"), Quiet()) as session:
            session.view.model(IDS)


def test_bloom_is_refused_with_the_reason():
    with pytest.raises(UnsupportedModel, match="BloomBlock receives no keyword arguments"):
        attach(tiny_text("bloom"), Quiet())


def test_what_is_no_model_is_refused():
    with pytest.raises(UnsupportedModel, match=r"expected a transformers model.*got Linear"):
        attach(torch.nn.Linear(2, 2), Quiet())


def test_a_model_without_decoder_layers_is_refused():
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    with pytest.raises(UnsupportedModel, match="no list of decoder layers"):
        attach(model, Quiet())


def test_several_sessions_on_several_models():
    one, two = tiny_llama(seed=1), tiny_llava(seed=2)
    with attach(one, Damp(0.5)) as a, attach(two, Damp(0.1)) as b:
        assert isinstance(a, Session)
        one(IDS)
        two(**vlm_inputs(two))
        assert active_session(one) is a
        assert active_session(two) is b


def test_an_untested_transformers_is_warned_about_once(monkeypatch):
    from paperhooks.sessions import versions

    newest = versions.tested("transformers")[-1]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "6.1.0")
    versions.warn_untested.cache_clear()
    with pytest.warns(UserWarning, match=rf"tested with transformers .* to {newest}, this is 6.1.0"):
        versions.warn_untested()
    versions.warn_untested()
    monkeypatch.undo()
    versions.warn_untested.cache_clear()


def test_public_names_resolve():
    for name in ("attach", "strip", "Session", "Call", "Site", "ModelView", "LayerInputs", "DecoderInputs"):
        assert getattr(paperhooks, name).__name__ == name
