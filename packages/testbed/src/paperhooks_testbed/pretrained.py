"""Loading the tiny vision-language model that comes with the package."""

from __future__ import annotations

from pathlib import Path

import torch
from paperhooks.errors import DataError
from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = ["load_vlm", "vlm_folder"]


def vlm_folder() -> Path:
    """The ``save_pretrained`` folder inside the package: model, processor, tokenizer and model card."""
    return Path(__file__).parent / "vlm"


def load_vlm(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the trained model, in evaluation mode, and its processor.

    :param device: where the model goes.
    :param dtype: the dtype of its weights; they are stored in float32.
    :param attn_implementation: as in ``from_pretrained``.
    :raises DataError: if the installation has no weights.
    """
    folder = vlm_folder()
    if not (folder / "model.safetensors").is_file():
        raise DataError(
            f"{folder} has no model.safetensors; reinstall paperhooks-testbed, or train the model: "
            "python -m paperhooks_testbed.training --out RUN, and the same with --export"
        )
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
    )
    return model.to(device).eval(), LlavaProcessor.from_pretrained(folder, local_files_only=True)
