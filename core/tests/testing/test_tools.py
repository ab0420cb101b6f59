"""The author's tools themselves: a fingerprint that sees every kind of trace, and the fixtures."""

from __future__ import annotations

import gc
import sys
import threading
from dataclasses import dataclass

import numpy
import pytest
import torch
from paperhooks import Traits, UnsupportedModel, attach, hookimpl
from paperhooks.testing import Dropper, check_options, fingerprint, tiny_llama, tiny_llava, tiny_text, vlm_inputs
from paperhooks.testing.fixtures import leaves_no_trace, text_model, vision_model  # noqa: F401
from paperhooks.testing.interrupts import count_lines, interrupted, moments
from paperhooks.testing.leftovers import NewTensors, gathered
from paperhooks.testing.process_state import ProcessState


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.model.layers[0].register_forward_pre_hook(lambda *_: None),
        lambda m: m.model.layers[0].register_forward_hook(lambda *_: None),
        lambda m: setattr(m, "generate", lambda: None),
        lambda m: setattr(m.model.layers[0], "note", 1),
        lambda m: setattr(m.config, "rope_theta", 1.0),
        lambda m: m.lm_head.weight.data[0, 0].add_(1),
        lambda m: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.detach().clone())),
        lambda m: setattr(m.model.layers[0], "__class__", type("Other", (type(m.model.layers[0]),), {})),
        lambda m: m.double(),
    ],
    ids=["pre-hook", "hook", "attribute", "module attribute", "config", "bits", "identity", "class", "dtype"],
)
def test_the_fingerprint_sees(change):
    model = tiny_llama(layers=1)
    before = fingerprint(model)
    assert fingerprint(model) == before
    change(model)
    assert fingerprint(model) != before
    assert fingerprint(model).differences(before)


def test_lists_that_are_called_hooks_are_no_tables_of_hooks():
    """As those in which transformers keeps the hooks of ``enable_input_require_grads``."""
    model = tiny_llama(layers=1)
    model.enable_input_require_grads()
    before = fingerprint(model)
    assert fingerprint(model) == before
    model.disable_input_require_grads()
    assert fingerprint(model) != before


def test_negative_zero_and_nan_are_bits_too():
    model = tiny_llama(layers=1)
    model.lm_head.weight.data[0, :2] = torch.tensor([0.0, float("nan")])
    before = fingerprint(model)
    assert fingerprint(model) == before
    model.lm_head.weight.data[0, 0] = -0.0
    assert fingerprint(model).differences(before) == ["lm_head.weight:bits"]


def test_the_fixture_names_what_was_left_behind(text_model, vision_model, leaves_no_trace):  # noqa: F811
    with leaves_no_trace(vision_model):
        pass
    with pytest.raises(AssertionError, match=r"left behind: .*note"), leaves_no_trace(text_model):
        text_model.note = 1


# -- what the contract is made of --------------------------------------------------------------------------------------


def test_the_dropper_drops_what_it_says_and_never_the_last_token():
    model = tiny_llava()
    seen: dict[int, list[list[int]]] = {}

    @dataclass(eq=False)
    class Alive:
        traits = Traits()

        @hookimpl
        def pre_attention(self, site, call):
            if call.kept is not None and call.past_length == 0:
                index, valid = call.kept
                seen[site.index] = [
                    row.tolist() if valid is None else row[valid[i]].tolist() for i, row in enumerate(index)
                ]

    with attach(model, Dropper(layer=2), Alive()), torch.no_grad():
        model(**vlm_inputs(model, ((3, 4, 2), (1,), (2,), (0, 8)), pad="right"))
    assert sorted(seen) == [3, 4, 5]  # the method in front of layer 2 still saw all
    # Of the first four real tokens the second and the fourth go, and every fourth image token.
    assert seen[3] == [[0, 2, 4, 5, 7, 8], [0], [0, 1], [0, 2, 4, 5, 6, 7]]


def test_the_dropper_refuses_what_it_cannot_shorten():
    with pytest.raises(
        UnsupportedModel, match=r"needs full attention in every layer from 1 on; layer \d of this gemma3"
    ):
        attach(tiny_text("gemma3", sliding_window=4), Dropper())
    with pytest.raises(UnsupportedModel, match="layer 9 of this llama has none"):
        attach(tiny_llama(), Dropper(layer=9))
    assert check_options(Dropper) == []


def test_moments_are_spread_and_counted():
    assert moments(100, 5) == [1, 26, 51, 75, 100]
    assert moments(3, 20) == [1, 2, 3]
    done: list[int] = []

    def work() -> None:
        done.append(1)
        done.append(2)
        done.append(3)

    assert count_lines(work, [__file__]) == 3
    done.clear()
    assert interrupted(work, [__file__], 3).endswith(f"{work.__code__.co_firstlineno + 3}")
    assert done == [1, 2]
    assert interrupted(work, [__file__], 4) == ""
    assert interrupted(work, [__file__], 1, SystemExit)

    def pressed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(pressed, [__file__], 5)


def test_the_end_of_a_block_is_no_moment():
    lock = threading.Lock()

    def work() -> None:
        with lock:
            lock.locked()

    lines = count_lines(work, [__file__])
    assert lines == 2
    for moment in range(1, lines + 1):
        assert interrupted(work, [__file__], moment)
        assert not lock.locked()


def test_the_trace_function_of_others_is_put_back():
    def own(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(own)
    try:
        interrupted(lambda: None, [__file__], 1)
        assert sys.gettrace() is own
    finally:
        sys.settrace(before)


def test_new_tensors_are_those_that_are_alive():
    older = torch.zeros(3)
    with NewTensors() as new:
        kept = torch.zeros(4, dtype=torch.float64)
        cycle: list[object] = [torch.zeros(5)]
        cycle.append(cycle)
        del cycle
        view = kept[1:]
        torch.zeros(6)
        assert {id(t) for t in new.alive()} == {id(kept), id(view)}
        assert new.size() == (2, 32)
        del view, kept
        assert new.size() == (0, 0)
    assert older.shape == (3,)
    assert gc.get_freeze_count() == 0


def test_what_is_gathered_on_a_method():
    class Inner:
        def __init__(self) -> None:
            self.values = {"a": [1, 2, 3]}

    class Method:
        def __init__(self) -> None:
            self.inner = Inner()
            self.tensor = torch.zeros(2, 3)
            self.array = numpy.zeros(5)
            self.model = tiny_llama(layers=1)
            self.log = "ab"
            self.itself = self

    model = tiny_llama(layers=1)
    before = gathered(None, model)
    # The mapping and its key, the list, the tensor, the array and the text; nothing of the other model.
    assert gathered(Method(), model) - gathered(object.__new__(Method), model) == (1 + 1 + 3) + 6 + 5 + 2
    model.lm_head.notes = [1.0, 2.0]
    assert gathered(None, model) - before == 2


def test_the_state_of_the_process_forgives_what_libraries_load():
    model = tiny_llama(layers=1)
    state = ProcessState(model)
    assert state.changes() == []
    module = sys.modules[type(model).__module__]
    module.loaded_later = type(model)
    try:
        assert state.changes() == []
    finally:
        del module.loaded_later
    torch.rand(1)
    assert state.changes() == ["torch's random state was changed"]
    assert state.changes(settings=False) == []


@pytest.mark.parametrize("tied", [False, True])
def test_a_forward_of_an_offloaded_model_leaves_its_fingerprint(tied: bool) -> None:
    """accelerate makes what stands in for the weights anew at every forward, and parts what was tied."""
    from accelerate import cpu_offload

    model = tiny_text("llama", tie_word_embeddings=tied)
    ids = torch.tensor([[3, 4, 5]])
    cpu_offload(model, execution_device=torch.device("cpu"))
    model(ids)
    before = fingerprint(model)
    model(ids)
    assert fingerprint(model).differences(before) == []
