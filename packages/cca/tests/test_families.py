"""Families whose images are more than one square grid: positions and logits against the method written out."""

from __future__ import annotations

import oracle_cca as oracle
import pytest
import torch
from paperhooks import attach
from paperhooks.models import GridPart, ImageSpan
from paperhooks.testing import IMAGE_TOKEN, tiny_vlm, vlm_inputs
from paperhooks_cca import CCA

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")


def placements(model):
    """A list that fills with the first row of positions of every forward."""
    placed: list[list[int]] = []
    model.get_decoder().layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: placed.append(kwargs["position_ids"][0].tolist()), with_kwargs=True
    )
    return placed


@pytest.mark.parametrize(
    ("size", "grids"),
    [((64, 64), [(4, 4), (8, 9)]), ((64, 32), [(4, 4), (8, 5)]), ((32, 64), [(4, 4), (4, 9)])],
    ids=["square", "tall", "wide"],
)
@torch.no_grad()
def test_llava_next_has_a_base_grid_and_a_larger_one_with_newlines(size, grids):
    model = tiny_vlm("llava_next", layers=3)
    inputs = vlm_inputs(model, ((3, sum(h * w for h, w in grids), 5),))
    given = {**inputs, "image_sizes": torch.tensor([size])}
    places, owner = oracle.walk(inputs["input_ids"][0].tolist(), grids, IMAGE_TOKEN)
    explicit = {"position_ids": torch.tensor([places]), "attention_mask": oracle.may_see(places, owner)[None, None]}
    expected = model(**{**given, **explicit}, use_cache=False).logits[0]
    placed = placements(model)
    with attach(model, CCA(tiles=True)):
        logits = model(**given).logits[0]
    assert placed == [places]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_llava_next_generates_with_the_sizes_that_generate_uses_up(options):
    """``generate`` encodes the images before the first forward, and hands their sizes to no one."""
    model = tiny_vlm("llava_next", layers=2)
    model.lm_head.weight.data[IMAGE_TOKEN] = 0  # a random model would say the placeholder now and then
    inputs = vlm_inputs(model, ((3, 88, 5),))
    given = {**inputs, "image_sizes": torch.tensor([[64, 64]]), "max_new_tokens": 3, "min_new_tokens": 3}
    placed = placements(model)
    with attach(model, CCA(tiles=True)):
        model.generate(**given, do_sample=False, **options)
    places, _ = oracle.walk(inputs["input_ids"][0].tolist(), [(4, 4), (8, 9)], IMAGE_TOKEN)
    assert placed[0][: len(places)] == places
    assert placed[-1][0] > places[-1]


@pytest.mark.parametrize("known", ["by their sizes", "by a function"])
def test_llava_next_with_a_preallocated_cache(known):
    """``generate`` uses the sizes up before the first forward, and makes the cache itself."""
    model = tiny_vlm("llava_next", layers=2)
    inputs = vlm_inputs(model, ((3, 88, 5),))
    given = {**inputs, "max_new_tokens": 3, "min_new_tokens": 3, "cache_implementation": "static", "do_sample": False}

    def grids(view, call):
        return [ImageSpan(0, 3, 91, (GridPart(3, 4, 4, 4), GridPart(19, 8, 8, 9)))]

    if known == "by their sizes":
        given["image_sizes"] = torch.tensor([[64, 64]])
    placed = placements(model)
    with attach(model, CCA(tiles=True) if known == "by their sizes" else CCA(grid=grids)):
        model.generate(**given)
    places, _ = oracle.walk(inputs["input_ids"][0].tolist(), [(4, 4), (8, 9)], IMAGE_TOKEN)
    assert placed == [places, [places[-1] + 1], [places[-1] + 2]]


@pytest.mark.parametrize("family", ["smolvlm", "idefics3", "internvl"])
def test_every_tile_has_rings_of_its_own(family):
    """Tiles of 2 x 2 are one ring each, so a run of three takes three positions."""
    model = tiny_vlm(family, layers=2)
    placed = placements(model)
    with attach(model, CCA(tiles=True)), torch.no_grad():
        model(**vlm_inputs(model, ((3, 12, 5),)))
    assert placed == [[0, 1, 2, *[3] * 4, *[4] * 4, *[5] * 4, 6, 7, 8, 9, 10]]
