"""Bits as a GGUF file, of the block types that the library ``gguf`` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from paperhooks import Artefact, ArtefactError
from paperhooks.compat import PreTrainedModel
from paperhooks.errors import require
from paperhooks.weights import Quantised
from torch import Tensor, nn

from paperhooks_evopress.export.checkpoint import Checkpoint, checked, stored, written
from paperhooks_evopress.export.compat import read_gguf, rotary_base
from paperhooks_evopress.export.depth import narrowed, renamed

__all__ = ["gguf"]

_EXTRA: Final = "paperhooks-evopress[export]"
_FILE: Final = "model.gguf"
_BLOCK: Final = 32
#: Family to the architecture of a file.
_ARCHITECTURES: Final = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
#: Whose queries and keys are stored with the two halves of rotary positions interleaved.
_INTERLEAVED: Final = ("llama", "mistral")
#: Bits of a code to the block type where the middle code stands for 0, and where any may.
_CENTRED: Final = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}
_SHIFTED: Final = {4: "Q4_1", 5: "Q5_1"}


def gguf(
    model: nn.Module, artefact: Artefact, folder: str | Path, *, tokenizer: Any = None, verify: bool = True
) -> Path:
    """Codes as they are, in blocks of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 in ``model.gguf``.

    Blocks have 32 columns and scales of half precision. All other weights are in their own precision. transformers
    reads the file (``gguf_file="model.gguf"``), a Mistral as a Llama. It holds no tokenizer, which llama.cpp wants in
    it. Layers that are left out are not in it; where parts of layers are, these are in it and end in zeros. Parameters
    and errors as of :func:`paperhooks_evopress.export.stock`.

    :raises ArtefactError: codes that are of none of these types, or a model whose positions or family the file cannot
        tell.
    :raises MissingExtra: gguf is not installed.
    """
    library = require("gguf", _EXTRA, "to export GGUF files")
    checkpoint = checked(model, artefact)
    family = checkpoint.view.family
    windows = checkpoint.view.sliding_window is not None
    if family not in _ARCHITECTURES or windows or rotary_base(checkpoint.text_config) is None:
        raise ArtefactError(
            f"gguf is written for {', '.join(_ARCHITECTURES)} with plain rotary positions and without sliding windows, "
            f"not for this {family}; use compressed_tensors or sparse"
        )
    packed = {name: edit.packed for name, edit in artefact.edits.items() if isinstance(edit.packed, Quantised)}
    types = {name: _type_of(name, each) for name, each in packed.items()}
    layers = narrowed(checkpoint, artefact, "gguf")
    prefix = f"{checkpoint.layer_prefix()}."
    codes = {
        new: (packed[name], kind) for name, kind in types.items() if (new := renamed(name, prefix, layers)) is not None
    }

    def save(shell: PreTrainedModel, path: Path) -> None:
        _write(library, checkpoint, shell, path / _FILE, codes)

    def read(path: Path, **options: Any) -> nn.Module:
        return read_gguf(path, _FILE, dtype=checkpoint.view.model.dtype, **options)

    return written(checkpoint, artefact, folder, read=read, save=save, tokenizer=tokenizer, verify=verify)


def _type_of(name: str, packed: Quantised) -> str:
    """The block type of codes.

    :raises ArtefactError: they are of none.
    """
    known = ", ".join(sorted((*_CENTRED.values(), *_SHIFTED.values())))
    groups = packed.group == _BLOCK or (packed.columns == _BLOCK and packed.group > _BLOCK)
    if not groups or packed.columns % _BLOCK or packed.scales.ndim != 2:
        raise ArtefactError(f"{name} is in groups of {packed.group}; blocks of GGUF ({known}) have {_BLOCK} columns")
    centred = bool((packed.zeros == 2 ** (packed.width - 1)).all())
    kind = (_CENTRED if centred else _SHIFTED).get(packed.width)
    if kind is None:
        told = "the middle code as zero" if centred else "zeros of their own"
        raise ArtefactError(
            f"{name} has codes of {packed.width} bits with {told}; GGUF files are written with {known}, and K-quants "
            "cannot be written"
        )
    scales = packed.scales.float()
    for value in (scales, scales * packed.zeros.float()):
        if (kind in _SHIFTED.values() or value is scales) and not torch.equal(value.half().float(), value):
            raise ArtefactError(
                f"{name} has scales or offsets that half precision does not hold, as {kind} stores them; use levels of "
                "the method evopress/gguf"
            )
    return kind


def _write(
    library: Any, checkpoint: Checkpoint, model: PreTrainedModel, file: Path, codes: dict[str, tuple[Quantised, str]]
) -> None:
    config, architecture = checkpoint.text_config, _ARCHITECTURES[checkpoint.view.family]
    kinds = {value: key for key, value in library.MODEL_ARCH_NAMES.items()}
    names = library.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    writer = library.GGUFWriter(file, architecture)
    try:
        _describe(writer, checkpoint)
        tied = ("lm_head",) if config.tie_word_embeddings else ()
        for name, tensor in stored(model, tied).items():
            owner, _, leaf = name.rpartition(".")
            written_as = names.get_name(owner)
            if written_as is None:
                raise ArtefactError(f"GGUF files of {architecture} have no place for {name}")
            order = _row_order(checkpoint, owner, len(tensor))
            if name in codes:
                packed, kind = codes[name]
                blocks = _blocks(packed, kind, order)
                writer.add_tensor(f"{written_as}.{leaf}", blocks, raw_dtype=library.GGMLQuantizationType[kind])
            else:
                _add(library, writer, f"{written_as}.{leaf}", tensor[order(len(tensor))] if order else tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _describe(writer: Any, checkpoint: Checkpoint) -> None:
    """What the file says of the model."""
    config = checkpoint.text_config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rotary_base(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _row_order(checkpoint: Checkpoint, owner: str, rows: int) -> Callable[[int], Tensor] | None:
    """In which order a file has the rows of queries and keys; None for the order that they are in."""
    config, leaf = checkpoint.text_config, owner.rpartition(".")[2]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(leaf)
    if checkpoint.view.family not in _INTERLEAVED or heads is None:
        return None
    return lambda n: torch.arange(n).view(heads, 2, n // heads // 2).swapaxes(1, 2).reshape(-1)


def _add(library: Any, writer: Any, name: str, tensor: Tensor) -> None:
    """A tensor in its own precision; vectors in float32, as llama.cpp expects these."""
    tensor = tensor.cpu().contiguous()
    if tensor.ndim > 1 and tensor.dtype == torch.bfloat16:
        raw = tensor.view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=library.GGMLQuantizationType.BF16)
    else:
        half = tensor.ndim > 1 and tensor.dtype == torch.float16
        writer.add_tensor(name, (tensor if half else tensor.float()).numpy())


def _blocks(packed: Quantised, kind: str, order: Callable[[int], Tensor] | None) -> np.ndarray[Any, Any]:
    """The bytes of all blocks, uint8 [rows, bytes of a row]: scale, offset, fifth bits, and codes two by two."""
    rows = torch.arange(len(packed.scales)) if order is None else order(len(packed.scales))
    codes = packed.codes().cpu()[rows].numpy().reshape(-1, _BLOCK)
    scales = packed.scales.float().cpu()[rows].numpy().reshape(-1, 1)
    parts: list[np.ndarray[Any, Any]] = [scales.astype("<f2").view(np.uint8)]
    if kind == "Q8_0":
        parts.append((codes.astype(np.int16) - 128).astype(np.int8).view(np.uint8))
    else:
        if kind in _SHIFTED.values():
            zeros = packed.zeros.float().cpu()[rows].numpy().reshape(-1, 1)
            parts.append((-scales * zeros).astype("<f2").view(np.uint8))
        if packed.width == 5:
            parts.append(np.packbits(codes >> 4, axis=-1, bitorder="little"))
        low = codes & 15
        parts.append(low[:, : _BLOCK // 2] | (low[:, _BLOCK // 2 :] << 4))
    return np.concatenate(parts, axis=-1).reshape(len(rows), -1)
