"""Edited weights and attached methods go together, in either order of undoing."""

from __future__ import annotations

import pytest
import torch
from paperhooks import ModelError, attach
from paperhooks.testing import fingerprint, tiny_vlm, vlm_inputs
from paperhooks_cca import CCA
from paperhooks_mathneuro import apply, collect, select
from paperhooks_pyramiddrop import PyramidDrop

ONE, TWO = [[1, 5, 6, 7, 8], [1, 9, 10, 11]], [[1, 55, 56, 57], [1, 60, 61, 62, 63]]


def prepared():
    model = tiny_vlm("llava", layers=8)
    inputs = vlm_inputs(model, ((3, 16, 5), (2, 16, 2)))
    sides = [collect(model, rows, progress=False) for rows in (ONE, TWO)]
    return model, inputs, select(model, *sides, ratio=0.2)


def tokens(model, inputs) -> list[list[int]]:
    return model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[:, -4:].tolist()


@torch.no_grad()
def test_an_edited_model_runs_with_other_methods() -> None:
    model, inputs, selection = prepared()
    methods = [CCA(), PyramidDrop(stages={2: 0.5, 5: 0.25})]
    tokens(model, inputs)
    before, plain = fingerprint(model), model(**inputs).logits
    with attach(model, *methods):
        attached = model(**inputs).logits
    with apply(model, selection, 0.0):
        edited = model(**inputs).logits
        with attach(model, *methods):
            both = model(**inputs).logits
            tokens(model, inputs)
            with pytest.raises(ModelError, match="attached to a session"):
                collect(model, ONE, progress=False)
        assert torch.equal(model(**inputs).logits, edited)
    assert fingerprint(model) == before
    assert len({float(each.sum()) for each in (plain, attached, edited, both)}) == 4


@torch.no_grad()
def test_the_edit_may_be_undone_while_methods_are_attached() -> None:
    model, inputs, selection = prepared()
    tokens(model, inputs)
    before = fingerprint(model)
    surgery = apply(model, selection, 0.0)
    with attach(model, PyramidDrop(stages={2: 0.5})):
        model(**inputs)
        surgery.undo()
        inside = model(**inputs).logits
    assert fingerprint(model) == before
    with attach(model, PyramidDrop(stages={2: 0.5})):
        assert torch.equal(model(**inputs).logits, inside)
