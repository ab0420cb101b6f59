"""Around the method: calibration, commands, figures and the demo."""

from __future__ import annotations

import json

import pytest
import torch
from paperhooks import ModelView
from paperhooks.authoring import DemoContext
from paperhooks.testing import commands_of, tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import Calibration, DecoderShape, Drop, PyramidDrop, Schedule, calibrate
from paperhooks_pyramiddrop.plugin import PLUGIN


def test_calibration_measures_every_depth_and_ratio():
    model = tiny_vlm()
    prompts = [vlm_inputs(model, ((3, 12, 5), (2, 8, 4))), vlm_inputs(model, ((4, 8, 6),), seed=1)]
    found = calibrate(model, prompts, ratios=(1.0, 0.25), layers=[1, 3, 5], progress=False)
    assert found.prompts == 3
    assert set(found.divergence) == {(d, r) for d in (1, 3, 5) for r in (1.0, 0.25)}
    for depth in (1, 3, 5):
        assert found.divergence[depth, 1.0] == pytest.approx(0, abs=1e-6)
        assert found.divergence[depth, 0.25] > 1e-4
    assert not model.get_decoder().layers[1]._forward_pre_hooks


def test_a_schedule_is_proposed_within_the_budget():
    half = {(1, 0.5): 0.9, (2, 0.5): 0.05, (3, 0.5): 0.3, (4, 0.5): 0.04, (5, 0.5): 0.01}
    quarter = {(depth, 0.25): 2 * kl for (depth, _), kl in half.items()}
    found = Calibration({**half, **quarter}, 10)
    assert found.earliest(0.5, 0.1) == 4, "layer 2 is good by chance: layer 3 behind it is not"
    assert found.schedule([0.5, 0.25], 0.1) == Schedule((4, 5), (0.5, 0.25))
    with pytest.raises(ValueError, match=r"dropping to 0.25 costs at least 0.02 nats; the budget is 0.001"):
        found.schedule([0.25], 0.001)


@pytest.fixture
def invoke():
    with commands_of(PLUGIN) as run:
        yield run


def test_the_schedule_command_prints_the_published_figures(invoke):
    result = invoke("schedule")
    assert result.exit_code == 0, result.output
    assert "layers   8-15     288 visual tokens" in result.output
    assert "3.817 T -> 1.777 T (46.6%)" in result.output
    assert "288.0 MiB -> 135.0 MiB" in result.output
    assert "mean per layer      270" in result.output


def test_the_solver_command(invoke):
    result = invoke("solve", "--average", "62.95", "--drops", "2,8,16")
    assert result.exit_code == 0, result.output
    assert "ratio 0.19" in result.output
    assert "keeps 62.94 of 576" in result.output


def test_savings_count_text_and_grouped_heads():
    shape = DecoderShape(layers=4, hidden=8, intermediate=16, kv_width=4)
    saved = Schedule((2,), (0.5,)).savings(10, shape, text_tokens=6, kv_element_bytes=4)
    assert saved.tokens_per_layer == (10, 10, 5, 5)
    assert saved.kv_bytes == (10 + 10 + 5 + 5 + 4 * 6) * 2 * 4 * 4
    assert saved.flops_before == 4 * (16 * (2 * 64 + 2 * 32 + 3 * 128) + 2 * 256 * 8)
    assert Schedule((2,), (1.0,)).savings(10, shape).flops_ratio == 1.0


def test_the_overlay_shows_kept_tokens_clear_and_dropped_ones_dark():
    pytest.importorskip("matplotlib")
    from paperhooks.models import GridPart
    from paperhooks_pyramiddrop.figures import overlay_figure
    from PIL import Image

    kept = torch.zeros(1, 18, dtype=torch.bool)
    kept[0, 1:5] = True  # the first grid row
    scores = torch.full((1, 18), torch.nan)
    scores[0, 1:17] = torch.arange(16.0)
    figure = overlay_figure(
        Image.new("RGB", (64, 64), "white"), [Drop(3, kept, scores, scores > -1)], GridPart(1, 4, 4, 4)
    )
    before, after = figure.axes
    assert before.get_images()[0].get_array().min() == 1.0
    pixels = after.get_images()[0].get_array()
    assert pixels[:16].min() == 1.0
    assert pixels[16:].max() < 0.3
    assert len(after.patches) == 3
    assert "4 of 16 image tokens" in after.get_title()


def test_the_default_schedule_of_a_model():
    assert PyramidDrop().schedule_for(32).layers == (8, 16, 24)
    assert PyramidDrop(layers=[2, 8, 16], ratio=0.19).schedule_for(32).keep(576) == (109, 20, 3)
    view = ModelView.from_model(tiny_vlm())
    from paperhooks_pyramiddrop.report import decoder_shape

    assert decoder_shape(view) == DecoderShape(layers=6, hidden=32, intermediate=64, kv_width=16)


def test_one_image_is_illustrated(tmp_path):
    testbed = pytest.importorskip("paperhooks_testbed")
    pytest.importorskip("matplotlib")
    from paperhooks import DataError
    from paperhooks_pyramiddrop import illustrate

    model, processor = testbed.load_vlm()
    question = testbed.question_set("test", 1)[0]
    html = illustrate(model, processor, question.image(), testbed.prompt(question), tmp_path, PyramidDrop({4: 0.25}), 2)
    text = html.read_text()
    assert "What each stage sees" in text
    assert (tmp_path / "overlay.png").stat().st_size > 1000
    assert (tmp_path / "staircase.svg").exists()
    assert "49 image tokens kept" in text, "a quarter of 196; text is not counted with them"
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0.4 < result["results"]["flops_ratio"] < 1
    assert not model.get_decoder().layers[4]._forward_pre_hooks
    with pytest.raises(DataError, match="holds no image token"):
        illustrate(model, processor, question.image(), "where ?", tmp_path / "other")


def test_the_demo_runs_and_reports(tmp_path):
    pytest.importorskip("paperhooks_testbed")
    pytest.importorskip("matplotlib")
    from paperhooks_pyramiddrop.demo import run

    lines: list[str] = []
    run(DemoContext(tmp_path, lines.append, quick=True))
    run(DemoContext(tmp_path, lines.append, quick=True))  # a second time into the same folder
    assert any("every image token" in line and "right" in line for line in lines)
    assert any("PyramidDrop" in line and "image tokens a layer" in line for line in lines)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<img") + html.count("<svg") >= 5
