"""The method against values computed with the authors' code: section 4 of the paper on one image, every sample its own.

The official code is wrong for batches (only the first sample gets the concentric mask), so every stored value is of a
batch of one, and batches made here must give the same rows.
"""

from __future__ import annotations

import golden_cca as golden
import pytest
import torch
from paperhooks import attach
from paperhooks_cca import CCA, allowed_mask, positions, ring_table
from paperhooks_cca.schemes import levels

KERNELS = ("sdpa", "eager")


def seen(model, inputs, **options):
    """Positions and mask that reach the first layer."""
    found = {}

    def look(module, args, kwargs):
        found["positions"], found["mask"] = kwargs["position_ids"], kwargs["attention_mask"]

    handle = model.model.language_model.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    with attach(model, CCA(**options)), torch.no_grad():
        logits = model(**inputs).logits
    handle.remove()
    return logits, found["positions"], found["mask"]


def test_ring_table_is_the_official_one():
    assert torch.equal(ring_table(24, 24), golden.cases()["ring_24x24"])
    assert ring_table(24, 24).flatten().bincount().tolist() == [92 - 8 * r for r in range(12)]


@pytest.mark.parametrize("name", sorted(golden.geometry()["rings"]))
def test_ring_tables_of_other_grids(name):
    height, width = map(int, name.split("x"))
    assert ring_table(height, width).tolist() == golden.geometry()["rings"][name]


@pytest.mark.parametrize("name", sorted(golden.geometry()["num_rings"]))
def test_number_of_rings(name):
    height, width = map(int, name.split("x"))
    assert levels("concentric", height, width) == golden.geometry()["num_rings"][name]


@pytest.mark.parametrize("name", sorted(golden.geometry()["geometry"]))
def test_positions_and_mask_of_token_layouts(name):
    layout = golden.geometry()["geometry"][name]
    ids, mask = torch.tensor([layout["tokens"]]), torch.tensor([layout["attention_mask"]])
    grids = [tuple(grid) for grid in layout["grids"]]
    found = positions(ids, mask, image_token_id=-1, grids=grids)
    real = mask[0].bool()
    assert found[0, real].tolist() == torch.tensor(layout["position_ids"])[real].tolist()
    expected = torch.tensor([[c == "1" for c in row] for row in layout["allowed"]])
    assert torch.equal(allowed_mask(found, mask)[0][real], expected[real])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("name", "side"), [("A", 24), ("F.s1", 6), ("F.s2", 6)])
def test_logits_positions_and_mask(name, side, kernel):
    model, values = golden.llava(side, kernel), golden.cases()
    logits, placed, mask = seen(model, golden.case_inputs(model, name))
    rows = values[f"{name}.logit_rows"] if f"{name}.logit_rows" in values else slice(None)
    torch.testing.assert_close(logits[0, rows], values[f"{name}.logits"].view(-1, 128), atol=1e-4, rtol=0)
    assert torch.equal(placed, values[f"{name}.position_ids"])
    bare = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    assert torch.equal(bare, golden.allowed(name))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["C", "E.text"])
def test_text_alone_is_left_as_it_is(name, kernel):
    model, values = golden.llava(6, kernel), golden.cases()
    inputs = golden.case_inputs(model, name)
    with torch.no_grad():
        plain = model(**inputs).logits
    with attach(model, CCA()), torch.no_grad():
        logits = model(**inputs).logits
    assert torch.equal(logits, plain)
    torch.testing.assert_close(logits, values[f"{name}.logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["F.s1", "F.s2"])
def test_generation_with_a_cache(name, kernel):
    model, values = golden.llava(6, kernel), golden.cases()
    placed = []

    def look(module, args, kwargs):
        placed.append(kwargs["position_ids"])

    handle = model.model.language_model.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    with attach(model, CCA()):
        out = model.generate(
            **golden.case_inputs(model, name), max_new_tokens=5, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    handle.remove()
    assert torch.equal(out.sequences[:, -5:], values[f"{name}.gen_sequences"])
    steps = torch.stack(out.logits, dim=1)
    torch.testing.assert_close(steps, values[f"{name}.gen_step_logits"], atol=1e-4, rtol=0)
    assert [p.flatten().tolist() for p in placed[1:]] == golden.facts()[f"{name}.decode_position_ids"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_row_of_a_right_padded_batch_is_its_own(kernel):
    """The official code gives the concentric mask to the first sample only: 5.57 off on the second."""
    model, names = golden.llava(6, kernel), ["F.s1", "F.s2", "E.text"]
    with attach(model, CCA()), torch.no_grad():
        logits = model(**golden.batch_inputs(model, names, "right")).logits
    for row, name in enumerate(names):
        expected = golden.cases()[f"{name}.logits"][0]
        torch.testing.assert_close(logits[row, : len(expected)], expected, atol=1e-4, rtol=0)
    assert golden.facts()["D.official_raw_vs_single"][1] > 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("names", [["F.s1", "F.s2"], ["F.s2", "E.text", "F.s1"]])
def test_every_row_of_a_left_padded_batch_generates_its_own(names, kernel):
    model, values = golden.llava(6, kernel), golden.cases()
    with attach(model, CCA()):
        out = model.generate(
            **golden.batch_inputs(model, names, "left"), max_new_tokens=5, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    steps = torch.stack(out.logits, dim=1)
    for row, name in enumerate(names):
        if f"{name}.gen_sequences" in values:
            assert out.sequences[row, -5:].tolist() == values[f"{name}.gen_sequences"][0].tolist()
            torch.testing.assert_close(steps[row], values[f"{name}.gen_step_logits"][0], atol=1e-4, rtol=0)
