"""Models with less depth in stock architectures: fewer layers, or branches that end in zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from paperhooks import Artefact, ArtefactError, ModelView
from paperhooks.compat import MIXER_NAMES, MLP_NAMES, inside, stood_for
from torch import nn

from paperhooks_evopress.export.checkpoint import Checkpoint, checked, written
from paperhooks_evopress.export.compat import cut_layers

__all__ = ["branches", "cut", "narrowed", "renamed", "skipped_in", "stock", "whole_layers", "zero_ends", "zeroed"]

#: Names of the matrices by which attentions and MLPs end.
_ENDS: Final = ("o_proj", "out_proj", "dense", "c_proj", "wo", "down_proj", "fc2", "dense_4h_to_h", "fc_out", "w2")


def stock(
    model: nn.Module, artefact: Artefact, folder: str | Path, *, tokenizer: Any = None, verify: bool = True
) -> Path:
    """Whole layers that are left out, as a stock model that has fewer of them.

    Layers that lack both attention and MLP count as left out. Everything that reads the model's own checkpoints reads
    this one.

    :param model: live and compressed. :param artefact: what was done to it. :param folder: new.
    :param tokenizer: saved too. :param verify: read it back and compare logits before the folder appears.
    :return: the folder.
    :raises ArtefactError: a layer of which a part is left out, or a model that is not what the artefact tells.
    """
    checkpoint = checked(model, artefact)
    cut(checkpoint, artefact, "stock")
    return written(checkpoint, artefact, folder, read=_reader(checkpoint), tokenizer=tokenizer, verify=verify)


def zeroed(
    model: nn.Module, artefact: Artefact, folder: str | Path, *, tokenizer: Any = None, verify: bool = True
) -> Path:
    """Any drops, in the stock architecture: the matrix that ends a branch is zero, and its bias.

    The logits are the same anywhere, and nothing is faster or smaller. Parameters and errors as of :func:`stock`.

    :raises ArtefactError: a module whose last matrix is not known, or does not end it.
    """
    checkpoint = checked(model, artefact)
    zero_ends(checkpoint, artefact)
    return written(checkpoint, artefact, folder, tokenizer=tokenizer, verify=verify)


def skipped_in(checkpoint: Checkpoint, artefact: Artefact) -> dict[int, set[str]]:
    """What is left out of each layer: names of its children, and the empty name for the layer itself."""
    prefix = f"{checkpoint.layer_prefix()}."
    found: dict[int, set[str]] = {}
    for name in artefact.skipped:
        index, _, child = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix) or not index.isdigit():
            raise ArtefactError(f"{name} is left out, and is no part of the decoder's layers {prefix}*")
        found.setdefault(int(index), set()).add(child)
    return found


def whole_layers(checkpoint: Checkpoint, artefact: Artefact) -> list[int]:
    """Layers of which nothing is left."""
    found = []
    for index, children in skipped_in(checkpoint, artefact).items():
        both = branches(checkpoint, index)
        if "" in children or (all(both) and children >= {name for names in both for name in names}):
            found.append(index)
    return sorted(found)


def branches(checkpoint: Checkpoint, index: int) -> tuple[list[str], list[str]]:
    """Names of what mixes tokens in a layer, and of its MLPs."""
    names = [name for name, _ in inside(stood_for(checkpoint.view.layers[index])).named_children()]
    return [name for name in names if name in MIXER_NAMES], [name for name in names if name in MLP_NAMES]


def cut(checkpoint: Checkpoint, artefact: Artefact, form: str) -> dict[int, int]:
    """Take whole layers out of config and tensors.

    :param form: what cannot hold anything else. :return: new index of each layer that is left, by its old one.
    :raises ArtefactError: parts of layers, or nothing is left.
    """
    gone = whole_layers(checkpoint, artefact)
    prefix = f"{checkpoint.layer_prefix()}."
    for index, children in skipped_in(checkpoint, artefact).items():
        if index not in gone:
            raise ArtefactError(
                f"{form} leaves out whole layers, and of {prefix}{index} only {', '.join(sorted(children))} is left "
                "out; use zeroed or skip-list"
            )
    kept = [i for i in range(len(checkpoint.view.layers)) if i not in gone]
    if not kept:
        raise ArtefactError(f"all layers are left out, and {form} has at least one; use zeroed or skip-list")
    new = {old: i for i, old in enumerate(kept)}
    tensors: dict[str, Any] = {}
    for name, tensor in checkpoint.tensors.items():
        if (moved := renamed(name, prefix, new)) is not None:
            tensors[moved] = tensor
    checkpoint.tensors = tensors
    if gone:
        cut_layers(checkpoint.text_config, kept)
    return new


def narrowed(checkpoint: Checkpoint, artefact: Artefact, form: str) -> dict[int, int]:
    """Whole layers are taken out where nothing else is left out, as :func:`cut`; else all that is left out ends in
    zeros, as :func:`zero_ends`, and layers keep their indices."""
    if set(whole_layers(checkpoint, artefact)) == set(skipped_in(checkpoint, artefact)):
        return cut(checkpoint, artefact, form)
    zero_ends(checkpoint, artefact)
    return {i: i for i in range(len(checkpoint.view.layers))}


def renamed(name: str, prefix: str, new: Mapping[int, int]) -> str | None:
    """The name of a tensor or module when the layers have their new numbers; None in a layer that is gone."""
    if not name.startswith(prefix):
        return name
    index, dot, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{new[int(index)]}{dot}{rest}" if int(index) in new else None


def zero_ends(checkpoint: Checkpoint, artefact: Artefact) -> None:
    """Zeros in the matrices that end what is left out.

    :raises ArtefactError: a module in which none is known.
    """
    for name in artefact.skipped:
        ends = [each for each in checkpoint.tensors if each.startswith(f"{name}.") and _ends(each)]
        if not ends:
            inside_it = sorted({n.removeprefix(f"{name}.") for n in checkpoint.tensors if n.startswith(f"{name}.")})
            raise ArtefactError(
                f"no matrix of {name} is known to end it: looked for {', '.join(_ENDS)}, found {', '.join(inside_it)}; "
                "use skip-list"
            )
        checkpoint.tensors.update({each: torch.zeros_like(checkpoint.tensors[each]) for each in ends})


def _ends(name: str) -> bool:
    """Whether a tensor is weight or bias of a matrix that ends a branch, of one or of all experts together."""
    *_, owner, leaf = name.split(".")
    return owner in _ENDS or leaf in (*_ENDS, *(f"{each}_bias" for each in _ENDS))


def _reader(checkpoint: Checkpoint) -> Callable[..., nn.Module]:
    """Reads a folder, and sees that the layers that are left are of their types."""
    left = tuple(kind for kind in checkpoint.view.layer_types if kind != "skipped")

    def read(path: Path, **options: Any) -> nn.Module:
        found: nn.Module = checkpoint.model_class.from_pretrained(path, **options)
        types = ModelView.from_model(found).layer_types
        if types != left:
            raise ArtefactError(f"layers are {', '.join(types)} when they are read back, and were {', '.join(left)}")
        return found

    return read
