"""What core finds in a model: decoder, layers, image tokens, and the grids that runs of them unroll."""

from __future__ import annotations

import pytest
import torch
from paperhooks import ModelView, UnsupportedModel
from paperhooks.models import GridPart
from paperhooks.testing import IMAGE_TOKEN, TEXT_FAMILIES, VLM_FAMILIES, tiny_llama, tiny_text, tiny_vlm


@pytest.mark.parametrize("family", sorted(TEXT_FAMILIES))
def test_text_families(family):
    model = tiny_text(family, layers=3)
    view = ModelView.from_model(model)
    assert view.decoder is model.get_decoder()
    assert len(view.layers) == 3
    assert view.image_token_ids == ()
    assert view.text_config.vocab_size == 100
    assert all(view.attention(i) is not None for i in range(3))
    expected = "sliding_attention" if family in ("gemma2", "gemma3") else "full_attention"
    assert view.layer_types[0] == expected


@pytest.mark.parametrize("family", VLM_FAMILIES)
def test_vision_language_families(family):
    model = tiny_vlm(family, layers=3)
    view = ModelView.from_model(model)
    assert view.family == family
    assert len(view.layers) == 3
    assert view.layers[0] is view.decoder.layers[0]
    assert IMAGE_TOKEN in view.image_token_ids
    assert view.attention_kernel == "sdpa"
    assert view.rotary is view.decoder.rotary_emb
    ids = torch.tensor([[3, IMAGE_TOKEN, IMAGE_TOKEN, 4], [5, 6, 7, IMAGE_TOKEN]])
    assert view.image_mask(ids).tolist() == [[False, True, True, False], [False, False, False, True]]


def _ids(*runs: tuple[int, int]) -> torch.Tensor:
    """One row: text of the first length, image tokens of the second, and so on; ends with one text token."""
    row: list[int] = []
    for text, image in runs:
        row += [3] * text + [IMAGE_TOKEN] * image
    return torch.tensor([[*row, 4]])


def test_llava_grids_and_neighbouring_images():
    view = ModelView.from_model(tiny_vlm("llava"))  # 32 pixels, patches of 8: 4 x 4 tokens an image
    spans = view.image_spans(_ids((2, 16), (1, 32)))
    assert [(s.start, s.stop) for s in spans] == [(2, 18), (19, 35), (35, 51)]
    assert spans[0].parts == (GridPart(2, 4, 4, 4),)
    assert spans[0].parts[0].indices() == list(range(2, 18))


def test_qwen_grids_come_from_the_inputs():
    view = ModelView.from_model(tiny_vlm("qwen2_5_vl"))
    grids = {"image_grid_thw": torch.tensor([[1, 4, 8], [1, 4, 4]])}  # patches; merged two by two
    spans = view.image_spans(_ids((1, 8), (2, 4)), grids)
    assert [s.parts for s in spans] == [(GridPart(1, 2, 4, 4),), (GridPart(11, 2, 2, 2),)]


@pytest.mark.parametrize("family", ["smolvlm", "internvl"])
def test_tiles_are_grids_of_their_own(family):
    view = ModelView.from_model(tiny_vlm(family))  # 2 x 2 tokens a tile
    spans = view.image_spans(_ids((1, 8)))
    assert [s.parts[0] for s in spans] == [GridPart(1, 2, 2, 2), GridPart(5, 2, 2, 2)]


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (64, 32), (50, 64), (64, 40), (21, 60)])
def test_llava_next_grids_have_newlines_and_agree_with_the_model(size):
    """The base grid, then the unpadded tiles with a newline token a row; as many tokens as the model packs."""
    model = tiny_vlm("llava_next")
    view = ModelView.from_model(model)
    features = [torch.zeros(1 + _tiles(model.config, size), 16, 32)]
    _, lengths = model.model.pack_image_features(features, [list(size)], "default", torch.zeros(32))
    count = int(lengths[0])
    (span,) = view.image_spans(_ids((2, count)), {"image_sizes": torch.tensor([size])})
    base, tiles = span.parts
    assert (span.start, span.stop) == (2, 2 + count)
    assert base == GridPart(2, 4, 4, 4)
    assert tiles.start == 18
    assert tiles.stride == tiles.cols + 1
    assert tiles.rows * tiles.stride == count - 16


def _tiles(config, size):
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    return image_size_to_num_patches(list(size), config.image_grid_pinpoints, 32) - 1


def test_a_run_of_unknown_layout_is_one_span_without_grids():
    view = ModelView.from_model(tiny_vlm("llava"))
    (span,) = view.image_spans(_ids((1, 7)))
    assert (span.start, span.stop, span.parts) == (1, 8, ())


def test_modules_by_pattern():
    view = ModelView.from_model(tiny_llama(layers=2))
    names = [name for name, _ in view.modules(r".*\.q_proj")]
    assert names == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]


def test_encoder_decoders_are_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        ModelView.from_model(T5ForConditionalGeneration(config))


def test_a_compiled_model_is_refused_with_the_order_to_keep():
    with pytest.raises(UnsupportedModel, match="attach to the model itself, then compile it"):
        ModelView.from_model(torch.compile(tiny_llama(), backend="eager"))


def test_attaching_after_compiling_is_seen():
    """What was compiled before is discarded, so hooks attached later run."""
    from methods import Damp
    from paperhooks import attach

    model = tiny_llama()
    ids = torch.arange(3, 9)[None]
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = compiled(ids).logits
        with attach(model, Damp()):
            expected = model(ids).logits
            got = compiled(ids).logits
        again = compiled(ids).logits
    torch.testing.assert_close(got, expected)
    assert not torch.equal(got, plain)
    torch.testing.assert_close(again, plain)
    torch.compiler.reset()


def test_offloaded_weights_are_read_on_loan():
    """Under accelerate's CPU offload the weights are on meta between forwards; ``onloaded`` lends them."""
    from accelerate import cpu_offload

    model = tiny_llama(layers=2)
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    cpu_offload(model, execution_device=torch.device("cpu"))
    view = ModelView.from_model(model)
    module = view.layers[0].self_attn
    assert module.q_proj.weight.is_meta
    with view.onloaded(module):
        assert torch.equal(module.q_proj.weight, weight)
    assert module.q_proj.weight.is_meta
