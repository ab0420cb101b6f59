"""Any drops as a list of what is skipped, beside the weights that remain, and what reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from paperhooks import Artefact, DataError
from paperhooks.compat import PreTrainedModel
from paperhooks.io import read_json
from paperhooks.weights import Structure, skipped_modules
from torch import nn

from paperhooks_evopress.export.checkpoint import checked, stored, written
from paperhooks_evopress.export.compat import AutoConfig, model_class, quiet_loading, say_skipped
from paperhooks_evopress.export.depth import branches, skipped_in

__all__ = ["load_skipped", "skip_list"]

_FILE: Final = "skipped.json"
_SCHEMA: Final = 1


def skip_list(
    model: nn.Module, artefact: Artefact, folder: str | Path, *, tokenizer: Any = None, verify: bool = True
) -> Path:
    """Any drops, with only the weights that remain: read it with :func:`load_skipped`.

    ``from_pretrained`` alone gives what is left out new, random weights, and says so. Which modules these are is also
    in the config (``per_layer_config``), for versions of transformers that build models by it. Parameters and errors
    as of :func:`paperhooks_evopress.export.stock`.
    """
    checkpoint = checked(model, artefact)
    told = {
        index: {name for names in branches(checkpoint, index) for name in names} if "" in children else children
        for index, children in skipped_in(checkpoint, artefact).items()
    }
    say_skipped(checkpoint.text_config, told)

    def save(shell: PreTrainedModel, path: Path) -> None:
        shell.save_pretrained(path, state_dict=stored(shell, artefact.skipped))

    return written(
        checkpoint, artefact, folder, read=load_skipped, save=save,
        files={_FILE: {"schema": _SCHEMA, "skipped": list(artefact.skipped)}}, tokenizer=tokenizer, verify=verify,
    )  # fmt: skip


def load_skipped(folder: str | Path, **options: Any) -> Any:
    """The model in a folder written by :func:`skip_list`, in eval mode, with what is left out skipped.

    :param options: for ``from_pretrained``.
    :raises DataError: no such folder, or weights that it should hold are missing.
    """
    path = Path(folder)
    skipped = _skipped(path)
    config = AutoConfig.from_pretrained(path)
    with quiet_loading(), torch.random.fork_rng(devices=[]):  # what is left out gets random weights before it goes
        model, info = model_class(config).from_pretrained(path, output_loading_info=True, **options)
    inside = tuple(f"{name}." for name in skipped)
    odd = sorted(name for name in info["missing_keys"] if not name.startswith(inside))
    if odd or info["unexpected_keys"] or info["mismatched_keys"]:
        raise DataError(f"{path} does not hold {(odd or ['all weights'])[0]} of its model; export it again")
    structure = Structure(model)
    for name in skipped:
        structure.skip(name)
    structure.keep()
    _release(model)
    return model


def _skipped(path: Path) -> list[str]:
    if not (path / _FILE).is_file():
        raise DataError(f"{path} has no {_FILE}; expected a folder that skip_list has written")
    content = read_json(path / _FILE, "a list of skipped modules")
    names = content.get("skipped") if isinstance(content, dict) and content.get("schema") == _SCHEMA else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path / _FILE} is no list of skipped modules of schema {_SCHEMA}; export the model again")
    return names


def _release(model: nn.Module) -> None:
    """Give back the memory of what is skipped for good: it holds random values."""
    used = {id(parameter) for parameter in model.parameters()}
    for module in skipped_modules(model).values():
        for parameter in module.parameters():
            if id(parameter) not in used:
                parameter.data = parameter.data.new_empty(0)
