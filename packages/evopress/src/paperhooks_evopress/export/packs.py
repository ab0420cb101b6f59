"""Bits as compressed-tensors' ``pack-quantized``: one group of the config for each scheme, with its modules by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from paperhooks import Artefact, ArtefactError, DataError
from paperhooks.compat import PreTrainedModel, inside
from paperhooks.errors import require
from paperhooks.weights import Quantised
from safetensors.torch import load_file
from torch import Tensor, nn

from paperhooks_evopress.export.checkpoint import checked, stored, written
from paperhooks_evopress.export.compat import AutoConfig, model_class
from paperhooks_evopress.export.depth import narrowed, renamed

__all__ = ["compressed_tensors", "load_packed"]

_EXTRA: Final = "paperhooks-evopress[export]"
_FORMAT: Final = "pack-quantized"
_PARTS: Final = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
_WIDTHS: Final = range(2, 9)


def compressed_tensors(
    model: nn.Module, artefact: Artefact, folder: str | Path, *, tokenizer: Any = None, verify: bool = True
) -> Path:
    """Codes of 2 to 8 bits with their scales as compressed-tensors stores them; all other weights are plain.

    transformers reads it with compressed-tensors installed, but from 5.23 on only where all codes are symmetric: it
    expects zeros of another shape than compressed-tensors stores, and :func:`load_packed` is what reads these. Layers
    that are left out are not in it; where parts of layers are, these are in it and end in zeros. Parameters and errors
    as of :func:`paperhooks_evopress.export.stock`.

    :raises ArtefactError: codes that the format cannot hold, or no codes at all.
    :raises MissingExtra: compressed-tensors is not installed.
    """
    library = require("compressed_tensors.compressors.pack_quantized.helpers", _EXTRA, "to export packed bits")
    checkpoint = checked(model, artefact)
    packed = {name: edit.packed for name, edit in artefact.edits.items() if isinstance(edit.packed, Quantised)}
    if not packed:
        raise ArtefactError("nothing in this artefact is quantised; use sparse, stock or zeroed")
    for name, each in packed.items():
        _check(checkpoint.view.model, name, each)
    prefix = f"{checkpoint.layer_prefix()}."
    layers = narrowed(checkpoint, artefact, "compressed_tensors")
    schemes: dict[tuple[int, int | None, bool], list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, each in packed.items():
        module = renamed(name.removesuffix(".weight"), prefix, layers)
        if module is None:
            continue
        symmetric = bool((each.zeros == 2 ** (each.width - 1)).all())
        group = each.group if each.group < each.columns else None
        schemes.setdefault((each.width, group, symmetric), []).append(module)
        tensors |= {f"{module}.{part}": value for part, value in _parts(library, each, symmetric).items()}
    readable = all(symmetric for _, _, symmetric in schemes)

    def save(shell: PreTrainedModel, path: Path) -> None:
        shell.config.quantization_config = _config(schemes)
        weights = (f"{module}.weight" for modules in schemes.values() for module in modules)
        shell.save_pretrained(path, state_dict={**stored(shell, weights), **tensors})

    return written(
        checkpoint, artefact, folder, read=None if readable else load_packed, save=save, tokenizer=tokenizer,
        verify=verify,
    )  # fmt: skip


def load_packed(folder: str | Path, **options: Any) -> Any:
    """The model in a folder written by :func:`compressed_tensors`, with the rounded values as plain weights, in eval
    mode.

    :param options: for ``from_pretrained``.
    :raises DataError: no such folder. :raises MissingExtra: compressed-tensors is not installed.
    """
    path = Path(folder)
    packs = require("compressed_tensors.compressors", _EXTRA, "to read packed bits")
    schemes = require("compressed_tensors.quantization", _EXTRA, "to read packed bits")
    files = sorted(path.glob("*.safetensors"))
    config: Any = AutoConfig.from_pretrained(path) if files else None
    told = getattr(config, "quantization_config", None)
    if not isinstance(told, dict) or told.get("format") != _FORMAT:
        raise DataError(f"{path} holds no weights in the format {_FORMAT}; expected a folder of compressed_tensors")
    state: dict[str, Tensor] = {}
    for file in files:
        state |= load_file(file)
    for group in told["config_groups"].values():
        scheme = schemes.QuantizationScheme(**group)
        for module in group["targets"]:
            own = {part: state.pop(f"{module}.{part}") for part in _PARTS if f"{module}.{part}" in state}
            unpacked = packs.PackedQuantizationCompressor.decompress(own, scheme)["weight"]
            state[f"{module}.weight"] = unpacked
    del config.quantization_config
    return model_class(config).from_pretrained(None, config=config, state_dict=state, **{"dtype": "auto", **options})


def _check(model: nn.Module, name: str, packed: Quantised) -> None:
    """Raise ArtefactError where the format cannot hold the codes of a parameter."""
    owner, _, leaf = name.rpartition(".")
    module = inside(model.get_submodule(owner))
    if not isinstance(module, nn.Linear) or leaf != "weight":
        raise ArtefactError(
            f"{name} is quantised and belongs to a {type(module).__name__}; compressed_tensors holds weights of linear "
            "layers alone; use sparse for the rounded values"
        )
    if packed.width not in _WIDTHS:
        raise ArtefactError(f"{name} has codes of {packed.width} bit; compressed_tensors is written for 2 to 8 bits")
    if packed.group < packed.columns and packed.columns % packed.group:
        raise ArtefactError(
            f"{name} has {packed.columns} columns in groups of {packed.group}, the last of them shorter, which "
            "compressed_tensors cannot say; use groups that divide the columns"
        )


def _parts(library: Any, packed: Quantised, symmetric: bool) -> dict[str, Tensor]:
    """What is stored of a weight: codes and zeros are moved to a range around 0, as signed numbers."""
    middle = 2 ** (packed.width - 1)
    codes = (packed.codes().to(torch.int16) - middle).to(torch.int8)
    parts = {
        "weight_packed": library.pack_to_int32(codes, packed.width),
        "weight_scale": packed.scales.contiguous(),
        "weight_shape": torch.tensor(codes.shape),
    }
    if not symmetric:
        zeros = (packed.zeros.to(torch.int16) - middle).to(torch.int8)
        parts["weight_zero_point"] = library.pack_to_int32(zeros, packed.width, packed_dim=0).contiguous()
    return parts


def _config(schemes: dict[tuple[int, int | None, bool], list[str]]) -> dict[str, Any]:
    """The config's entry: a group for each width, group size and symmetry, with all its modules."""
    groups = {}
    for number, ((width, group, symmetric), modules) in enumerate(sorted(schemes.items(), key=str)):
        weights = {
            "num_bits": width,
            "type": "int",
            "symmetric": symmetric,
            "strategy": "channel" if group is None else "group",
            "group_size": group,
            "dynamic": False,
        }
        groups[f"group_{number}"] = {"targets": sorted(modules), "weights": weights, "format": _FORMAT}
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
    }
