"""Methods of different plugins on one model: every ordered pair of what is installed, and of two foreign methods."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from paperhooks import PluginConflict, Traits, attach, hookimpl
from paperhooks.catalog import catalog
from paperhooks.methods import implemented_hooks, known_hooks
from paperhooks.testing import fingerprint, tiny_vlm, vlm_inputs

EXCLUSIVE = {"objective", "positions"}
EVERYTHING = dict.fromkeys(("training", "compile", "beams", "assisted", "static_cache", "chunked_prefill"), True)


@dataclass(eq=False)
class Scale:
    """A third party's method: scales what every layer returns."""

    factor: float = 0.9
    traits = Traits(**EVERYTHING)

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * self.factor


@dataclass(eq=False)
class Lengths:
    """A third party's method: notes how many tokens every layer receives in the prefill."""

    traits = Traits(**EVERYTHING)

    def __post_init__(self) -> None:
        self.seen: dict[int, int] = {}

    @hookimpl
    def pre_attention(self, site, call, inputs):
        if call.past_length == 0:
            self.seen[site.index] = inputs.hidden_states.shape[1]


class LengthsAfter(Lengths):
    """The same under another name: a session takes each method once."""


def runtime_methods() -> list[str]:
    """Addresses of the installed methods that act while a model runs."""
    hooks = set(known_hooks("RuntimeHooks"))
    addresses = [f"{status.name}/{method}" for status in catalog().healthy for method in status.info.methods]
    return [name for name in addresses if hooks & set(implemented_hooks(catalog().method_class(name)))]


MAKERS: dict[str, Any] = {name: (lambda name=name: catalog().create_method(name)) for name in runtime_methods()}
MAKERS |= {"scale": Scale, "lengths": Lengths}
PAIRS = list(itertools.permutations(MAKERS, 2))


def generate(model: Any, inputs: dict[str, Any]) -> list[list[int]]:
    """Four greedy tokens after each prompt."""
    out = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def prompts(model: Any) -> dict[str, Any]:
    """A left-padded batch of two prompts with an image each."""
    return vlm_inputs(model, ((3, 12, 5), (2, 12, 2)))


def test_there_is_something_to_compose() -> None:
    assert set(MAKERS) > {"scale", "lengths"}, "no plugin with a runtime method is installed"


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["+".join(pair) for pair in PAIRS])
def test_pairs_compose_or_are_refused_and_leave_no_trace(first: str, second: str) -> None:
    one, two = MAKERS[first](), MAKERS[second]()
    model = tiny_vlm("llava", layers=8)
    plain = generate(model, prompts(model))
    before = fingerprint(model)
    if EXCLUSIVE & one.traits.writes & two.traits.writes:
        with pytest.raises(PluginConflict, match=r"positions|objective"):
            attach(model, one, two)
    else:
        with attach(model, one, two) as session:
            assert len(session.methods) == 2
            generate(model, prompts(model))
    assert fingerprint(model).differences(before) == []
    assert generate(model, prompts(model)) == plain


@pytest.mark.parametrize("name", runtime_methods())
def test_a_method_that_changes_nothing_changes_nothing_beside_another(name: str) -> None:
    model = tiny_vlm("llava", layers=8)

    def logits(*methods: Any) -> torch.Tensor:
        with attach(model, *methods), torch.no_grad():
            return model(**prompts(model)).logits

    alone = logits(MAKERS[name]())
    assert torch.equal(logits(Scale(1.0), MAKERS[name]()), alone)
    assert torch.equal(logits(MAKERS[name](), Scale(1.0)), alone)


@pytest.mark.parametrize("name", [name for name in runtime_methods() if "tokens" in MAKERS[name]().traits.writes])
def test_the_order_decides_what_the_other_method_sees(name: str) -> None:
    """At one layer the methods run left to right: a method after a selecting one sees what is left."""
    model = tiny_vlm("llava", layers=8)
    after, before = LengthsAfter(), Lengths()
    with attach(model, before, MAKERS[name](), after), torch.no_grad():
        model(**prompts(model))
    assert min(after.seen.values()) < max(after.seen.values())
    assert any(after.seen[layer] < before.seen[layer] for layer in after.seen)
    assert all(after.seen[layer] <= before.seen[layer] for layer in after.seen)
