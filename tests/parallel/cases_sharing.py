"""What each rank does in the tests of work that ranks share, whose model is spread over them."""

from __future__ import annotations

from typing import Any

import torch
from evaluation_tasks import Echo, word_tokenizer
from paperhooks.generation import TransformersBackend
from paperhooks.io import Ranks
from paperhooks.models import in_step
from paperhooks.testing import tiny_vlm
from paperhooks_evaluation import evaluate
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig


def spread(kind: str, folder: str) -> Any:
    """The model of a folder as a rank has it; ``fsdp2`` shards it by hand, ``tp fsdp2`` needs four ranks."""
    config = DistributedConfig(tp_size=2, fsdp_size=Ranks().count // 2) if "tp" in kind else None
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=config)
    if kind == "fsdp2":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    return model.eval()


class Asked(TransformersBackend):
    """Notes what it is asked. On rank 1 it fails at its second batch, ``before`` the model is called or ``within``."""

    fails = ""

    def answer(self, prompts: Any) -> Any:
        self.asked = [*getattr(self, "asked", ()), *(prompt.id for prompt in prompts)]
        if Ranks().index == 1 and len(self.asked) > 1 and self.fails:
            if self.fails == "before":
                self.lose()
            self.model.model.layers[1].register_forward_pre_hook(self.lose)
        return super().answer(prompts)

    def lose(self, *_: object) -> None:
        raise RuntimeError("lost its device")


def evaluated(kind: str, folder: str, data: str, out: str, fails: str = "") -> list[Any]:
    """Documents answered, the headline, and what this rank was asked; or its error and the notes on it."""
    backend = Asked(spread(kind, folder), word_tokenizer())
    backend.fails = fails
    try:
        result = evaluate(backend, None, Echo(), data=data, out=out, report=False)
    except Exception as error:
        if fails == "within":  # the group is gone
            raise
        return [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
    return [result.answered, result.headline.value, getattr(backend, "asked", [])]


def with_images_on_one_rank() -> list[Any]:
    """How far logits are from those of the plain model, where the units of the vision tower are passed by rank 0 only,
    and it calls twice what rank 1 calls.
    """
    plain, model = tiny_vlm("llava"), tiny_vlm("llava")
    tower, decoder = model.model.vision_tower, model.get_decoder()
    units = [tower.encoder.layers[0], *decoder.layers]
    for unit in [*units, model]:
        fully_shard(unit)
    size, tokens = model.config.vision_config.image_size, _image_tokens(model)
    image = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)
    text = {"input_ids": torch.arange(1, 8)[None]}
    seen = {"input_ids": torch.tensor([[1, *[model.config.image_token_id] * tokens, 2, 3]]), "pixel_values": image}

    def far(inputs: dict[str, Any]) -> float:
        return float((model(**inputs).logits - plain(**inputs).logits).abs().max())

    with torch.no_grad(), in_step(model):
        found = [far(inputs) for inputs in ([text, seen, seen, text] if Ranks().first else [text, text])]
    with torch.no_grad():  # as before: all ranks alike
        return [*found, far(seen)]


def _image_tokens(model: Any) -> int:
    vision = model.config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2)
