"""The tiny vision-language model before training: a stock Llava with its processor and a word-level tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from paperhooks_testbed.questions import DIRECTIONS, MAX_COUNT, PLACES
from paperhooks_testbed.world import COLOURS, FORMS, IMAGE_PIXELS, IMAGE_TOKENS, PATCH_PIXELS, PLURALS

__all__ = [
    "BOS",
    "EOS",
    "IMAGE_TOKEN",
    "PAD",
    "UNK",
    "WIDTH",
    "build_model",
    "build_processor",
    "build_tokenizer",
    "token_ids",
]

PAD, BOS, EOS, UNK, IMAGE_TOKEN = "<pad>", "<s>", "</s>", "<unk>", "<image>"
_NUMBERS = tuple(str(n) for n in range(MAX_COUNT + 1))
_FRAME = ("what", "which", "colour", "shape", "shapes", "is", "are", "there", "a", "any", "the", "how", "many", "where")
#: Words have ids by their places, and the weights that ship know them: none can be taken out.
_LINKS = ("in", "picture", "and", "of", "above", "below", "?", "yes", "no")

WIDTH = 128
DECODER_LAYERS = 8


def token_ids() -> dict[str, int]:
    """Every token with its id, in that order: special tokens first, then words."""
    words = [PAD, BOS, EOS, UNK, IMAGE_TOKEN, *COLOURS, *FORMS, *PLURALS, *PLACES, *_NUMBERS, *_FRAME, *_LINKS]
    words += [word for phrase in DIRECTIONS for word in phrase.split()]
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one id a word; it puts the beginning-of-sequence token first and pads on the left."""
    ids = token_ids()
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=512,
    )


def build_processor() -> LlavaProcessor:
    """The stock Llava processor around the CLIP image processor that needs Pillow alone (224 x 224, 196 tokens)."""
    size = {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}
    images = CLIPImageProcessorPil(
        size=size,
        crop_size=size,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" takes off again
    )


def build_config() -> LlavaConfig:
    """The configuration: 2 vision layers and 8 decoder layers of width 128, about 2 million parameters."""
    ids = token_ids()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.05,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE_TOKEN],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A freshly initialised model in float32 on the CPU; global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(build_config())
        _set_sinusoidal_positions(model)
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.generation_config.bos_token_id = model.config.text_config.bos_token_id
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    return model


@torch.no_grad()
def _set_sinusoidal_positions(model: LlavaForConditionalGeneration) -> None:
    # With sines and cosines of row and column, "the cell to the left" is a rotation, the same everywhere.
    side = IMAGE_PIXELS // PATCH_PIXELS
    steps = torch.arange(side, dtype=torch.float32)
    angles = steps[:, None] * torch.exp(-torch.arange(WIDTH // 4) * (3.5 / (WIDTH // 4)))[None]  # [side, W/4]
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)  # [side, W/2]
    table = torch.cat([axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)], dim=-1)
    positions = model.model.vision_tower.embeddings.position_embedding.weight  # [1 + side * side, W]
    positions[1:] = 0.3 * table.reshape(side * side, WIDTH)
