"""The exercises on image tokens: labels follow from the scene, heads learn, and leave nothing behind."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from paperhooks_testbed import COLOURS, FORMS, generate_scene
from paperhooks_testbed.architecture import WIDTH, build_model
from paperhooks_testbed.questions import PLACES, place_of
from paperhooks_testbed.training.neighbours import NeighbourHead, captured, neighbour_labels, neighbour_loss
from paperhooks_testbed.training.train import QUICK
from paperhooks_testbed.training.trainstate import TrainState
from paperhooks_testbed.training.warmup import patch_labels

SIDES = ((0, -1), (0, 1), (-1, 0), (1, 0))  # left, right, above, below


def test_patch_labels_say_what_is_drawn():
    scene = generate_scene("train", 3, 6)
    labels = patch_labels([scene])
    covered = {token: shape for shape in scene.shapes for token in shape.tokens}
    for token in range(196):
        shape = covered.get(token)
        assert labels["form"][0, token] == (FORMS.index(shape.form) if shape else len(FORMS))
        assert labels["colour"][0, token] == (COLOURS.index(shape.colour) if shape else len(COLOURS))
        assert labels["row"][0, token] == token // 28
        assert labels["column"][0, token] == token % 14 // 2
        if shape:
            assert PLACES[labels["place"][0, token]] == place_of(shape)


def test_neighbour_labels_say_what_stands_beside():
    scene = generate_scene("train", 5, 9)
    labels = neighbour_labels([scene])[0]
    covered = {token: shape for shape in scene.shapes for token in shape.tokens}
    found = 0
    for token in range(196):
        if token not in covered:
            assert bool((labels[token] == -100).all())
            continue
        shape = covered[token]
        for side, (rows, columns) in enumerate(SIDES):
            other = [s for s in scene.shapes if (s.row, s.column) == (shape.row + rows, shape.column + columns)]
            wanted = [FORMS.index(other[0].form), COLOURS.index(other[0].colour)] if other else [6, 6]
            assert labels[token, side].tolist() == wanted
            found += bool(other)
    assert found > 0


def test_the_neighbour_head_learns_from_states_that_hold_the_answer():
    scenes = [generate_scene("train", i, 9) for i in range(8)]
    labels = neighbour_labels(scenes)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(4, 2, 7, WIDTH, generator=generator)
    sides, halves = torch.meshgrid(torch.arange(4), torch.arange(2), indexing="ij")
    states = codes[sides, halves, labels.clamp(min=0)].sum((2, 3))  # [B, 196, D]
    head = NeighbourHead()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    first, _ = neighbour_loss(head, states, labels)
    for _ in range(80):
        loss, share = neighbour_loss(head, states, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * first
    assert share > 0.9


def test_capturing_leaves_no_hook():
    model = build_model(0)
    with captured(model) as outputs, torch.no_grad():
        model.model.language_model(input_ids=torch.tensor([[1, 5, 6]]))
    assert [tuple(o.shape) for o in outputs] == [(1, 3, WIDTH)]
    assert not any(layer._forward_hooks for layer in model.model.language_model.layers)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 or later")
def test_the_neighbour_exercise_starts_at_its_step():
    state = TrainState(dataclasses.replace(QUICK, warmup_steps=0, neighbours_from=1))
    before = state.neighbours.linear.weight.clone()
    state.advance()
    assert torch.equal(state.neighbours.linear.weight, before)
    _, details = state.advance()
    assert not torch.equal(state.neighbours.linear.weight, before)
    assert set(details) == {"answers", "neighbours"}
