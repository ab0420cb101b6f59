"""Stock processors for the tiny random models of :mod:`paperhooks.testing`, around a tokenizer of single characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paperhooks.testing import IMAGE_TOKEN

#: Ids of tokens that are not text; the tiny models know these.
SPECIAL = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": IMAGE_TOKEN, "<video>": 96, "<[>": 97, "<]>": 98,
    "<fake_token_around_image>": 92, "<global-img>": 93, "<end_of_utterance>": 94,
}  # fmt: skip
CHARACTERS = (
    "ABCDEFGHI0123456789.、。はのをどれですか図表すとが言葉比べ選びなさいメートル倍長何英語"
    "富士山浮世絵茶碗電流利益細胞橋薬楽譜地図城"
)
#: Of any model, with its own token for IMAGE.
TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}。"
)


def tokenizer() -> Any:
    """One token a character; those it does not know are all one."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    free = iter(sorted(set(range(100)) - set(SPECIAL.values())))
    vocabulary = dict(SPECIAL) | {one: next(free) for one in dict.fromkeys(CHARACTERS)}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = Split(Regex("."), "isolated")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **names)
    found.add_special_tokens({"additional_special_tokens": [*SPECIAL][4:]})
    for name, token in {
        "image_token": "<image>", "video_token": "<video>", "context_image_token": "<image>",
        "start_image_token": "<[>", "end_image_token": "<]>",
    }.items():  # fmt: skip
        setattr(found, name, token)
        setattr(found, f"{name}_id", SPECIAL[token])
    return found


def _without_video(processor: Any) -> Any:
    """A processor that needs no torchvision: stock ones look for the class of a video processor that is not there."""

    class Processor(processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return (
                type(argument) if argument is None else super().check_argument_for_proper_class(argument_name, argument)
            )

    Processor.__name__ = processor.__name__
    return Processor


def _llava() -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    chat = TEMPLATE.replace("IMAGE", "<image>")
    return LlavaProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat,
    )  # fmt: skip


def _qwen() -> Any:
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=1, merge_size=2, size={"shortest_edge": 64, "longest_edge": 512}
    )
    return _without_video(Qwen2_5_VLProcessor)(
        images, tokenizer(), chat_template=TEMPLATE.replace("IMAGE", "<[><image><]>")
    )


def _internvl() -> Any:
    from transformers import InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=False)
    return _without_video(InternVLProcessor)(
        images, tokenizer(), image_seq_length=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    )


def _smolvlm() -> Any:
    """Idefics3's processor: SmolVLM's own does the same for images, and needs more for videos."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tile = {"longest_edge": 16}
    images = Idefics3ImageProcessorPil(size=tile, max_image_size=tile, do_image_splitting=False)
    return Idefics3Processor(
        images, tokenizer(), image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    )  # fmt: skip


#: Family to a function that makes its processor.
PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": _llava, "qwen2_5_vl": _qwen, "internvl": _internvl, "smolvlm": _smolvlm,
}  # fmt: skip
