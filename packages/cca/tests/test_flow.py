"""Information flow against the mean written out, and figures that show what they say."""

from __future__ import annotations

import pytest
import torch
from paperhooks import ModelView, attach
from paperhooks.errors import DataError
from paperhooks.testing import tiny_vlm, vlm_inputs
from paperhooks_cca import CCA, information_flow

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")
PARTS = ((3, 16, 5), (2, 16, 4, 16, 3))


def attentions_of(model, inputs):
    with attach(model, CCA()), torch.no_grad():
        return model(**inputs, use_cache=False, output_attentions=True).attentions


def test_information_flow_equals_the_mean_written_out():
    model = tiny_vlm("llava", layers=2, attn_implementation="eager")
    inputs = vlm_inputs(model, PARTS, pad="right")
    attentions = attentions_of(model, inputs)
    spans = ModelView.from_model(model).image_spans(inputs["input_ids"])
    lengths = inputs["attention_mask"].sum(1).tolist()
    for layer in (0, 1):
        flows = information_flow(attentions, spans, layer, lengths)
        for flow, (row, start) in zip(flows, [(0, 3), (1, 2), (1, 22)], strict=True):
            weights = attentions[layer][row]  # [heads, T, T]
            rows = range(start + 16, lengths[row] - 1)
            for place in range(16):
                values = [float(w[r, start + place]) for w in weights for r in rows]
                assert float(flow.flatten()[place]) == pytest.approx(sum(values) / len(values), abs=1e-6)
    by_hand = information_flow(attentions[0], [(0, 3, 2, 8)], lengths=lengths)[0]
    assert by_hand.shape == (2, 8)
    assert torch.equal(by_hand.flatten(), information_flow(attentions, spans, 0, lengths)[0].flatten())


def test_information_flow_needs_the_eager_kernel_and_text_behind_the_image():
    model = tiny_vlm("llava", layers=2)
    assert all(a is None for a in attentions_of(model, vlm_inputs(model, PARTS)) or [None])
    with pytest.raises(DataError, match="attn_implementation='eager'"):
        information_flow(attentions_of(model, vlm_inputs(model, PARTS)), [(0, 3, 4, 4)])
    with pytest.raises(DataError, match="attn_implementation='eager'"):
        information_flow(None, [(0, 3, 4, 4)])
    with pytest.raises(DataError, match="at least two tokens behind the image"):
        information_flow(torch.rand(1, 2, 20, 20), [(0, 3, 4, 4)])


def test_figures_show_what_they_say():
    pytest.importorskip("matplotlib")
    from paperhooks_cca import figures

    rings = figures.ring_figure((6, 6), ("concentric", "raster"))
    assert [a.get_title() for a in rings.axes] == ["concentric: 3 positions", "raster: 36 positions"]
    assert rings.axes[0].get_images()[0].get_array()[2, 2] == 2
    raster, ringed = figures.position_figure((4, 4), 2, 3).axes[0].lines
    assert list(raster.get_ydata()) == list(range(21))
    assert list(ringed.get_ydata())[-3:] == [4, 5, 6]
    mask = figures.mask_figure((6, 6), 3, 4).axes[1]
    assert mask.get_images()[0].get_array().sum() == figures.mask_text((6, 6), 3, 4).count("#")
    assert "71.6% inside" in mask.get_title("left")
    labels = [line.get_label() for line in figures.distance_figure((24, 24), 40).axes[0].lines]
    assert labels == ["raster (at most 615)", "manhattan (at most 62)", "concentric (at most 51)"]
    notes = [text.get_text() for text in figures.decay_figure((24, 24), 40).axes[0].texts]
    assert "concentric: patches 40 to 51 away" in notes
    shares = torch.full((7, 7), torch.nan)
    shares[0, 0] = 0.5
    assert "mean 50.0%" in figures.place_figure({"plain": shares}).axes[0].get_title()


def test_the_mask_as_text():
    from paperhooks_cca.figures import mask_text

    lines = mask_text((3, 3), 1, 1).splitlines()
    assert lines[0] == "#.........."
    assert lines[1] == "#####.####."  # the border sees itself and the text before
    assert lines[5] == "##########."  # the centre sees all patches
    assert lines[10] == "#" * 11
