"""Shared prefixes give, bit for bit, what a pass of each choice alone gives, with few runs and few switches."""

from __future__ import annotations

import pytest
import scored_models as made
import torch
from paperhooks import Level, ModelView
from paperhooks.errors import UnsupportedModel
from paperhooks.hooks import Levels
from paperhooks.models import last_hidden_state
from paperhooks.testing import tiny_text
from paperhooks_evopress.evaluator.prefix_tree import PrefixTree


def alone(view: ModelView, levels: Levels, choices, batch) -> list[torch.Tensor]:
    found = []
    for choice in choices:
        levels.switch(choice)
        found.append(last_hidden_state(view, batch))
    return found


def mixed(view: ModelView) -> Levels:
    """Layers, attentions and MLPs to leave out, matrices in them to round, and the last norm and the head."""
    offers = {
        name: [Level("drop", "kept", {"bytes": 1}), Level("drop", "out", {"bytes": 0}, skip=True)]
        for name, each in view.sublayers.items()
        if not each.refusal
    }
    offers |= {name: made.rounding(module) for name, module in view.modules(r".*layers\.\d+\..*\.(q|up)_proj")}
    offers |= {name: made.rounding(module) for name, module in view.modules(r"lm_head|model\.norm")}
    return Levels(view, offers)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "phi3", "mixtral", "qwen3"])
def test_states_are_those_of_a_pass_alone_bit_for_bit(family: str) -> None:
    view = ModelView.from_model(tiny_text(family, layers=5))
    levels = made.drop_levels(view)
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    batch = {"input_ids": torch.stack(made.sequences_of([12, 12])), "attention_mask": mask}
    choices = made.random_choices(levels, 12)
    with torch.inference_mode(), levels:
        wanted = alone(view, levels, choices, batch)
        tree = PrefixTree(view, levels)
        found = tree.last([tree.path(choice) for choice in choices], batch)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert 5 < tree.layers_run < 5 * len(choices)


def test_levels_of_several_kinds_in_one_layer() -> None:
    view = ModelView.from_model(tiny_text(layers=4))
    levels = mixed(view)
    batch = {"input_ids": torch.stack(made.sequences_of([9]))}
    choices = made.random_choices(levels, 30, share=0.3)
    with torch.inference_mode(), levels:
        wanted = alone(view, levels, choices, batch)
        tree = PrefixTree(view, levels)
        found = tree.last([tree.path(choice) for choice in choices], batch)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(type(p) is torch.nn.Parameter and not p.is_inference() for p in view.model.parameters())


def test_a_layers_state_changes_once_for_each_that_is_wanted() -> None:
    view = ModelView.from_model(tiny_text(layers=6))
    levels = Levels(view, {n: made.rounding(m) for n, m in view.modules(r".*mlp\.(up|down)_proj")})
    batch = {"input_ids": torch.stack(made.sequences_of([9]))}
    choices = made.random_choices(levels, 20, share=0.5)
    with torch.no_grad(), levels:
        tree = PrefixTree(view, levels)
        paths = [tree.path(choice) for choice in choices]
        calls: list[dict[str, str]] = []
        switch = levels.switch
        levels.switch = lambda choice: (calls.append(dict(choice)), switch(choice))[1]  # type: ignore[method-assign]
        tree.last(paths, batch)
        states = sum(len({path[part] for path in paths} | {()}) - 1 for part in range(len(paths[0])))
        assert len(calls) <= states
        calls.clear()
        tree.last(paths, batch)  # each layer begins with the state that it is in
        assert len(calls) == sum(len({path[part] for path in paths}) - 1 for part in range(len(paths[0])))


def test_a_layer_that_is_left_out_costs_nothing() -> None:
    view = ModelView.from_model(tiny_text(layers=4))
    levels = made.drop_levels(view, ("layer",))
    batch = {"input_ids": torch.stack(made.sequences_of([9]))}
    choice = {"model.layers.1": "out", "model.layers.2": "out"}
    with torch.no_grad(), levels:
        wanted = alone(view, levels, [choice], batch)
        tree = PrefixTree(view, levels)
        found = tree.last([tree.path(choice)], batch)
    assert torch.equal(found[0], wanted[0])
    assert tree.layers_run == 2


def test_choices_of_the_same_model_have_one_path() -> None:
    view = ModelView.from_model(tiny_text(layers=3))
    levels = mixed(view)
    tree = PrefixTree(view, levels)
    kept = {name: levels[name][0].label for name in levels}
    assert tree.path(kept) == tree.path({}) == tree.own
    out = {"model.layers.1.mlp": "out"}
    assert tree.path({**out, "model.layers.1.mlp.up_proj": "fine"}) == tree.path({**kept, **out})
    assert tree.path({**out, "model.layers.1.self_attn.q_proj": "fine"}) != tree.path(out)
    head = tree.path({"lm_head": "fine", "model.norm": "coarse"})
    assert (head[0], head[-1]) == ((("model.norm", "coarse"),), (("lm_head", "fine"),))


def test_a_module_that_contains_all_layers_is_refused_by_name() -> None:
    view = ModelView.from_model(tiny_text(layers=2))
    levels = Levels(view, {"model.layers": [Level("x", "as it is", {"bytes": 1})]})
    with pytest.raises(UnsupportedModel, match=r"model\.layers has levels and contains all layers"):
        PrefixTree(view, levels)


def test_a_model_whose_layers_do_not_run_one_by_one_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    view = ModelView.from_model(tiny_text(layers=3))
    levels = made.drop_levels(view)
    batch = {"input_ids": torch.stack(made.sequences_of([9]))}
    choices = made.random_choices(levels, 6)

    def refuse(*_: object) -> None:
        raise UnsupportedModel("layers hand keys to one another")

    monkeypatch.setattr("paperhooks_evopress.evaluator.prefix_tree.LayerCalls.of", refuse)
    with torch.no_grad(), levels:
        wanted = alone(view, levels, choices, batch)
        tree = PrefixTree(view, levels)
        with pytest.warns(UserWarning, match="share no layers, which takes longer: layers hand keys"):
            found = tree.last([tree.path(choice) for choice in choices], batch)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
