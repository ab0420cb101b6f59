"""Around the method: commands, information flow of an image, reports, the demo."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch
from paperhooks.authoring import DemoContext
from paperhooks.errors import DataError, PaperhooksError
from paperhooks.testing import commands_of, tiny_vlm
from paperhooks_cca import CCA, SCHEMES, mark
from paperhooks_cca.plugin import PLUGIN

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")


@pytest.fixture
def invoke():
    with commands_of(PLUGIN) as run:
        yield run


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    testbed = pytest.importorskip("paperhooks_testbed")
    file = tmp_path_factory.mktemp("image") / "one.png"
    testbed.question_set("test", 1)[0].image().save(file)
    return file


# -- commands ----------------------------------------------------------------------------------------------------------


def test_rings_prints_the_papers_figures(invoke):
    result = invoke("rings")
    assert result.exit_code == 0, result.output
    assert "concentric: 576 patches on 12 positions" in result.output
    assert "patches a level   92 84 76 68 60 52 44 36 28 20 12 4" in result.output
    assert "615 -> 51 positions" in result.output
    assert "mean distance     308.0 -> 28.0" in result.output
    assert "last position     650 -> 86" in result.output


def test_rings_of_a_small_grid_are_a_table(invoke):
    result = invoke("rings", "--grid", "3x4", "--scheme", "manhattan")
    assert result.output.startswith(" 0 1 1 0\n 1 2 2 1\n 0 1 1 0\nmanhattan: 12 patches on 3 positions\n")
    wide = invoke("rings", "--grid", "2x100", "--scheme", "raster")
    assert wide.output.startswith("raster: 200 patches on 200 positions\nlongest distance"), "too wide for a table"


def test_rings_leaves_figures(invoke, tmp_path):
    pytest.importorskip("matplotlib")
    result = invoke("rings", "--grid", "4x4", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    names = {"rings", "positions", "distances", "decay"}
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.{end}" for name in names for end in ("svg", "png")}
    assert all(file.stat().st_size > 1000 for file in tmp_path.iterdir())


def test_mask_prints_who_sees_whom(invoke, tmp_path):
    result = invoke("mask", "--grid", "3x3", "--before", 1, "--after", 1)
    lines = result.output.splitlines()
    assert lines[:2] == ["#..........", "#####.####."]
    assert lines[5] == "##########.", "the centre sees all patches"
    assert lines[10] == "#" * 11
    pytest.importorskip("matplotlib")
    large = invoke("mask", "--grid", "24x24", "--out", tmp_path)
    assert large.exit_code == 0, large.output
    assert "#" not in large.output
    assert (tmp_path / "mask.png").stat().st_size > 1000


def test_the_command_line_knows_every_scheme():
    from paperhooks_cca.commands import SchemeOption

    assert get_args(get_args(SchemeOption)[0]) == tuple(SCHEMES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rings", "--grid", "24"], "'24' is no grid"),
        (["rings", "--grid", "0x4"], "'0x4' is no grid"),
        (
            ["rings", "--scheme", "concentrik"],
            "is not one of 'concentric', 'reverse', 'raster', 'manhattan'",
        ),
        (["rings", "--after", "0"], "--after"),
        (["mask", "--grid", "24x24"], "give --out"),
        (["flow", "testbed", "no-such.png", "where ?"], "no-such.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_command_cannot_read_is_a_usage_error(invoke, words, message):
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_describe_reads_the_config_and_its_mark(invoke, tmp_path):
    model = tiny_vlm("llava", layers=2)
    for folder, settings in (("plain", None), ("same", CCA().settings), ("other", CCA(scheme="reverse").settings)):
        undo = mark(model, settings) if settings else None
        model.config.save_pretrained(tmp_path / folder)
        if undo is not None:
            undo()
    found = {name: invoke("describe", tmp_path / name).output for name in ("plain", "same", "other")}
    assert "4 x 4 patches take 2 positions instead of 16" in found["plain"]
    assert "not marked" in found["plain"]
    assert "marked: trained with these settings" in found["same"]
    assert found["other"].endswith("marked, with other settings: scheme='reverse'\n")
    mine = invoke("describe", tmp_path / "plain", "--options", "scheme=manhattan")
    assert "manhattan positions and mask" in mine.output


def test_describe_refuses_what_the_method_refuses(invoke, tmp_path):
    tiny_vlm("internvl", layers=2).config.save_pretrained(tmp_path)
    refused = invoke("describe", tmp_path)
    assert isinstance(refused.exception, PaperhooksError)
    assert "CCA(tiles=True)" in str(refused.exception)
    assert "2 x 2 patches" in invoke("describe", tmp_path, "--options", "tiles=True").output


def test_flow_of_the_test_beds_model(invoke, image_file, tmp_path):
    pytest.importorskip("matplotlib")
    result = invoke("flow", "testbed", image_file, "is there a red star ?", "--out", tmp_path, "--layer", 3)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "flow-0.png").stat().st_size > 1000
    recorded = json.loads((tmp_path / "result.json").read_text())["results"]
    assert set(recorded) == {"Layer 3", "Mean over all layers"}
    assert [row["setting"] for row in recorded["Layer 3"]] == ["as it is", "concentric"]
    assert "Where a question looks" in (tmp_path / "report.html").read_text()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    failed = invoke("flow", "testbed", broken, "where ?", "--out", tmp_path / "other")
    assert isinstance(failed.exception, DataError)
    assert "cannot be opened as an image" in str(failed.exception)
    assert not (tmp_path / "other").exists()


# -- information flow of an image --------------------------------------------------------------------------------------


def test_observed_flow_equals_the_models_attention(image_file):
    testbed = pytest.importorskip("paperhooks_testbed")
    from paperhooks_cca.report import observe_flow
    from PIL import Image

    model, processor = testbed.load_vlm(attn_implementation="eager")
    image, text = Image.open(image_file).convert("RGB"), "<image> is there a red star ?"
    found = observe_flow(model, processor, image, text)
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions
    start = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    for layer, one in enumerate(weights):
        expected = one[0, :, start + 196 : -1, start : start + 196].mean((0, 1)).view(14, 14)
        torch.testing.assert_close(found["raster"][layer], expected, atol=1e-6, rtol=1e-5)
    assert found["concentric"].shape == (8, 14, 14)
    assert not torch.allclose(found["concentric"], found["raster"], atol=1e-4)
    own = observe_flow(model, processor, image, text, {"rows": CCA(grid=(7, 28))})
    assert own["rows"].shape == (8, 7, 28)


def test_observed_flow_says_what_it_needs(image_file, tmp_path):
    testbed = pytest.importorskip("paperhooks_testbed")
    from paperhooks_cca.report import flow_report, observe_flow
    from PIL import Image

    image = Image.open(image_file).convert("RGB")
    model, processor = testbed.load_vlm()
    with pytest.raises(DataError, match="attn_implementation='eager'"):
        observe_flow(model, processor, image, "<image> where ?")
    with pytest.raises(DataError, match="holds no image token; write '<image>'"):
        observe_flow(model, processor, image, "where ?")
    with pytest.raises(DataError, match="layer 8 is not there; the model's decoder has layers 0 to 7"):
        flow_report(model, processor, image, "<image> where ?", tmp_path / "run", layer=8)
    assert not (tmp_path / "run").exists()


def test_where_attention_goes_in_numbers():
    from paperhooks_cca.report import flow_rows

    flow = torch.full((4, 6), 0.01)
    flow[-1] = 0.03
    flow[1:3, 2:4] = 0.05
    ((name, reached, lean, centre),) = flow_rows({"x": flow})
    assert name == "x"
    assert reached == pytest.approx(14 * 0.01 + 6 * 0.03 + 4 * 0.05)
    assert lean == pytest.approx(3)
    assert centre == pytest.approx(0.05 / ((10 * 0.01 + 6 * 0.03) / 16))
    assert flow_rows({"one": torch.full((1, 1), 0.5)}) == [("one", 0.5, 1.0, 1.0)]


def test_distances_need_text_behind_the_image():
    from paperhooks_cca.report import text_distances

    assert text_distances((1, 2), 2, "raster") == (3, 2.0)
    assert text_distances((1, 2), 2) == (2, 1.5)
    with pytest.raises(ValueError, match="after=0"):
        text_distances((2, 2), 0)


# -- the demo ----------------------------------------------------------------------------------------------------------


def test_the_demos_questions_are_a_pope_folder(tmp_path):
    pytest.importorskip("paperhooks_testbed")
    from paperhooks_cca.demo import write_pope_folder
    from paperhooks_hallucination import Pope

    write_pope_folder(tmp_path, 6)
    documents = Pope().documents(str(tmp_path))
    assert {(d.groups["split"], d.data["label"]) for d in documents} == {
        (split, label) for split in ("random", "popular", "adversarial") for label in ("yes", "no")
    }
    assert len(documents) == 18
    assert len(list((tmp_path / "images").iterdir())) < 4


def test_the_demo_runs_and_reports(tmp_path):
    pytest.importorskip("paperhooks_testbed")
    pytest.importorskip("matplotlib")
    from paperhooks_cca.demo import run

    lines: list[str] = []
    run(DemoContext(tmp_path, lines.append, quick=True))
    run(DemoContext(tmp_path, lines.append, quick=True, seed=1))  # a second time, with other questions
    text = "\n".join(lines)
    assert "615 -> 51" in text
    assert "untrained change" in text
    assert "raster      accuracy" in text
    html = (tmp_path / "report.html").read_text()
    assert html.count("<img") + html.count("<svg") >= 7
    assert "wilson over clusters" in html
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"]["longest_distance"] == [615, 51]
    assert result["results"]["pope"]["raster"]["accuracy"] > 0.9
    assert json.loads((tmp_path / "concentric" / "result.json").read_text())["inputs"]["task"] == "pope"
