"""What the method refuses or warns about: every message says what was found and what to do."""

from __future__ import annotations

import pytest
import torch
from oracle_cca import reference_logits
from paperhooks import PluginConflict, UnsupportedGeneration, UnsupportedModel, attach
from paperhooks.errors import DataError
from paperhooks.models import GridPart, ImageSpan
from paperhooks.testing import tiny_text, tiny_vlm, vlm_inputs
from paperhooks_cca import CCA
from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")
ONE = ((3, 16, 5),)


def refused(model, error, match, method=None, inputs=None, **given):
    """Attaching, or the forward after it, raises; both kinds are ValueErrors."""
    with pytest.raises(error, match=match) as caught, torch.no_grad(), attach(model, method or CCA()):
        model(**(inputs or vlm_inputs(model, ONE)), **given)
    assert isinstance(caught.value, ValueError)
    assert not any(type(h).__module__.startswith("paperhooks") for h in model._forward_pre_hooks.values())


@pytest.mark.parametrize("options", [{"scheme": "spiral"}, {"grid": (0, 3)}, {"grid": (3,)}], ids=str)
def test_options_are_checked(options):
    with pytest.raises(ValueError):
        CCA(**options)
    with pytest.raises(ValueError, match="leave nothing to do"):
        CCA(apply_positions=False, apply_mask=False)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_3", "paged|sdpa"])
def test_kernels_that_ignore_masks(kernel):
    model = tiny_vlm("llava", layers=2)
    model.config.text_config._attn_implementation = kernel
    refused(model, UnsupportedModel, r"needs an attention kernel that takes a mask.*attn_implementation='sdpa'")


def test_a_kernel_changed_after_attaching():
    model = tiny_vlm("llava", layers=2)
    with attach(model, CCA()), torch.no_grad():
        model(**vlm_inputs(model, ONE))
        model.config.text_config._attn_implementation = "flash_attention_2"
        with pytest.raises(UnsupportedModel, match="flash_attention_2"):
            model(**vlm_inputs(model, ONE))


@pytest.mark.parametrize(
    ("family", "match"),
    [
        ("qwen2_vl", r"apply_positions=False"),
        ("qwen2_5_vl", r"apply_positions=False"),
        ("qwen3_vl", r"apply_positions=False"),
        ("paligemma", r"both directions"),
        ("llava_next", r"CCA\(tiles=True\)"),
        ("llava_onevision", r"CCA\(tiles=True\)"),
        ("internvl", r"CCA\(tiles=True\)"),
        ("idefics3", r"CCA\(tiles=True\)"),
        ("smolvlm", r"CCA\(tiles=True\)"),
    ],
)
def test_families_the_paper_says_nothing_about(family, match):
    refused(tiny_vlm(family, layers=4), UnsupportedModel, match)


def test_models_without_rotary_positions():
    refused(tiny_text("gpt2"), UnsupportedModel, "no rotary", inputs={"input_ids": torch.ones(1, 4, dtype=torch.int64)})


def test_a_class_token_before_the_grid():
    model = tiny_vlm("llava", layers=2)
    model.config.vision_feature_select_strategy = "full"
    refused(model, UnsupportedModel, "class token")


def test_a_config_that_names_no_image_token():
    model = tiny_vlm("llava", layers=2)
    model.config.__dict__["image_token_index"] = None  # as in a config that never had one
    refused(model, UnsupportedModel, "names no image token")


def test_pixtral_has_row_breaks():
    model = tiny_vlm("llava", layers=2)
    model.config.vision_config.model_type = "pixtral"
    refused(model, UnsupportedModel, "row-break")


def test_an_unknown_family_needs_a_grid():
    model = tiny_text("llama")
    refused(model, UnsupportedModel, r"grid of llama is not known; pass grid=\(H, W\)")
    ids = torch.randint(3, 90, (1, 24), generator=torch.Generator().manual_seed(0))
    where = torch.zeros(1, 24, dtype=torch.bool)
    where[:, 3:19] = True
    with attach(model, CCA(grid=(4, 4))), torch.no_grad():
        placed = []
        handle = model.model.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: placed.append(kwargs["position_ids"]), with_kwargs=True
        )
        model(input_ids=ids, visual_mask=where)
        handle.remove()
    assert placed[0][0, 3:19].view(4, 4).tolist() == [[3, 3, 3, 3], [3, 4, 4, 3], [3, 4, 4, 3], [3, 3, 3, 3]]
    assert placed[0][0, 19:].tolist() == [5, 6, 7, 8, 9]


def test_a_sliding_window_shorter_than_the_text():
    model = tiny_text("mistral", sliding_window=16)
    ids = torch.ones(1, 24, dtype=torch.int64)
    where = torch.zeros(1, 24, dtype=torch.bool)
    where[:, 3:19] = True
    given = {"input_ids": ids, "visual_mask": where}
    refused(model, UnsupportedModel, r"sliding window of 16 tokens, and this sequence has 24", CCA(grid=(4, 4)), given)
    with attach(tiny_text("mistral", sliding_window=24), CCA(grid=(4, 4))) as session, torch.no_grad():
        session.view.model(**given)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (((3, 12, 5),), r"sample 0: 12 image tokens from column 3, expected 4 x 4 = 16 tokens an image.*truncated"),
        (((3, 16, 5), (3, 20, 2)), r"sample 1: 20 image tokens from column 3"),
    ],
)
def test_images_that_are_no_whole_grids(parts, match):
    model = tiny_vlm("llava", layers=2)
    refused(model, DataError, match, inputs=vlm_inputs(model, parts, pad="right"))


def test_a_chunk_that_cuts_an_image():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ONE)
    with attach(model, CCA()), torch.no_grad():
        with pytest.raises(DataError, match=r"7 image tokens from column 3.*chunked prefill"):
            model(input_ids=inputs["input_ids"][:, :10], use_cache=True)
        with pytest.raises(
            UnsupportedGeneration, match=r"cca does not support chunked prefill \(prefill_chunk_size=4\)"
        ):
            model.generate(**inputs, prefill_chunk_size=4, max_new_tokens=2)


def test_chunks_between_images_are_fine():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ((3, 16, 5, 16, 4),))
    ids, images = inputs["input_ids"], inputs["mm_encoder_outputs"]["image"].pooler_output
    expected = reference_logits(model, ids[0], list(images))
    with attach(model, CCA()), torch.no_grad():
        part = {"mm_encoder_outputs": {"image": type(inputs["mm_encoder_outputs"]["image"])(pooler_output=images[:1])}}
        one = model(input_ids=ids[:, :21], use_cache=True, **part)
        part = {"mm_encoder_outputs": {"image": type(inputs["mm_encoder_outputs"]["image"])(pooler_output=images[1:])}}
        two = model(input_ids=ids[:, 21:], past_key_values=one.past_key_values, **part)
    logits = torch.cat([one.logits, two.logits], dim=1)[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("holes", "match"), [((5,), "padding inside an image"), ((20,), "padding between tokens")], ids=["image", "text"]
)
def test_padding_where_none_may_be(holes, match):
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ONE)
    inputs["attention_mask"][0, list(holes)] = 0
    refused(model, DataError, f"sample 0: {match}", inputs=inputs)


def test_a_mask_of_the_callers_own():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ONE)
    inputs["attention_mask"] = torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()
    refused(model, DataError, r"cannot join it with a 4-D attention_mask; pass the 2-D mask", inputs=inputs)
    inputs["attention_mask"] = torch.ones(1, 30, dtype=torch.int64)[:, :20]
    refused(model, DataError, r"attention_mask is \[1, 20\]; expected \[B, 24\]", inputs=inputs)


def test_positions_of_the_callers_own():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ((3, 16, 5), (3, 16, 2)))
    mask = inputs["attention_mask"]
    with torch.no_grad():
        with attach(model, CCA()):
            expected = model(**inputs).logits
            for default in ((mask.cumsum(1) - 1).masked_fill(mask == 0, 1), torch.arange(24)[None]):
                assert torch.equal(model(**inputs, position_ids=default).logits, expected)
        shifted = torch.arange(7, 31)[None].expand(2, -1)
        refused(
            model,
            DataError,
            r"not the model's default ones.*CCA\(strict=False\)",
            inputs={**inputs, "position_ids": shifted},
        )
        packed = torch.tensor([[*range(19), *range(5)]]).expand(2, -1)
        refused(model, DataError, "pass document_ids", inputs={**inputs, "position_ids": packed})
        with attach(model, CCA(strict=False)):
            kept = model(**inputs, position_ids=shifted).logits
    assert not torch.allclose(kept, expected, atol=1e-3)  # rings in the mask, the caller's positions in the rotation
    seen = []
    with attach(model, CCA(strict=False)), torch.no_grad():
        cache = model(**inputs, position_ids=shifted, use_cache=True).past_key_values
        handle = (
            model.get_decoder()
            .layers[0]
            .register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["position_ids"].tolist()), with_kwargs=True
            )
        )
        model(input_ids=torch.tensor([[5], [6]]), position_ids=torch.tensor([[31], [31]]), past_key_values=cache)
        handle.remove()
    assert seen == [[[31], [31]]]  # whoever counts goes on counting


def test_packed_documents_see_only_themselves():
    model = tiny_vlm("llava", layers=2)
    one, two = vlm_inputs(model, ((3, 16, 5),)), vlm_inputs(model, ((4, 16, 2),), seed=1)
    ids = torch.cat([one["input_ids"], two["input_ids"]], dim=1)
    images = [*one["mm_encoder_outputs"]["image"].pooler_output, *two["mm_encoder_outputs"]["image"].pooler_output]
    outputs = type(one["mm_encoder_outputs"]["image"])(pooler_output=images)
    documents = torch.tensor([[0] * 24 + [1] * 22])
    restarting = torch.tensor([[*range(24), *range(22)]])
    with attach(model, CCA()), torch.no_grad():
        expected = [model(**one).logits[0], model(**two).logits[0]]
        for positions in (None, restarting):
            packed = model(
                input_ids=ids, position_ids=positions, document_ids=documents, mm_encoder_outputs={"image": outputs}
            ).logits[0]
            torch.testing.assert_close(packed, torch.cat(expected), atol=1e-4, rtol=0)


def test_images_beside_embeddings():
    model = tiny_vlm("llava", layers=2)
    embeds = model.get_input_embeddings()(vlm_inputs(model, ONE)["input_ids"])
    images = {"mm_encoder_outputs": vlm_inputs(model, ONE)["mm_encoder_outputs"]}
    with attach(model, CCA()), torch.no_grad():  # placeholders are still there, as transformers itself looks for them
        found = model(inputs_embeds=embeds, **images).logits
        torch.testing.assert_close(found, model(**vlm_inputs(model, ONE)).logits)
    with attach(model, CCA()), torch.no_grad(), pytest.warns(UserWarning, match="nothing changes; pass visual_mask"):
        model(inputs_embeds=embeds)
    short = torch.ones(1, 3, dtype=torch.bool)
    refused(
        model,
        DataError,
        r"visual_mask is bool \[1, 3\]; expected bool \[1, 24\]",
        inputs={"inputs_embeds": embeds, "visual_mask": short},
    )


def test_videos():
    model = tiny_vlm("llava_onevision", layers=2)
    ids = vlm_inputs(model, ONE)["input_ids"]
    ids = ids.masked_fill(ids == 95, model.config.video_token_index)
    refused(model, DataError, "not defined for video", CCA(tiles=True), {"input_ids": ids})


def test_the_models_own_complaint_about_images_comes_first():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ONE)
    inputs["mm_encoder_outputs"] = vlm_inputs(model, ((3, 16, 5, 16, 2),))["mm_encoder_outputs"]
    with (
        attach(model, CCA()),
        torch.no_grad(),
        pytest.raises(ValueError, match="features and image tokens do not match"),
    ):
        model(**inputs)


def test_two_writers_of_positions_and_a_second_session_are_refused():
    model = tiny_vlm("llava", layers=2)
    with pytest.raises(PluginConflict, match="positions"):
        attach(model, CCA(), type("Other", (CCA,), {})(scheme="reverse"))
    with attach(model, CCA()), torch.no_grad():
        once = model(**vlm_inputs(model, ONE)).logits
        with pytest.raises(PluginConflict, match="attached already"):
            attach(model, CCA())
        assert torch.equal(model(**vlm_inputs(model, ONE)).logits, once)


def test_vipllava_has_a_grid_of_its_own():
    config = tiny_vlm("llava", layers=2).config
    options = {"vision_config": config.vision_config, "text_config": config.text_config, "image_token_index": 95}
    model = VipLlavaForConditionalGeneration(VipLlavaConfig(**options, vision_feature_layers=[-1])).eval()
    assert "4 x 4 patches take 2 positions instead of 16" in CCA().describe(model)
    with attach(model, CCA()), torch.no_grad():
        inputs = vlm_inputs(model, ONE)
        inputs["mm_encoder_outputs"]["image"].pooler_output = torch.cat(
            list(inputs["mm_encoder_outputs"]["image"].pooler_output)
        )
        assert torch.isfinite(model(**inputs).logits).all()


def test_a_function_says_where_images_are():
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ONE)

    def two_halves(view, call):
        return [ImageSpan(0, 3, 19, (GridPart(3, 2, 4, 4), GridPart(11, 2, 4, 4)))]

    with torch.no_grad(), attach(model, CCA(grid=two_halves)):
        halves = model(**inputs).logits
    with torch.no_grad(), attach(model, CCA(grid=(2, 4))):
        assert torch.equal(model(**inputs).logits, halves)
