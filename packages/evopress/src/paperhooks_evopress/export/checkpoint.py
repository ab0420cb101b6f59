"""A compressed model as a checkpoint of transformers: config and tensors, written to a folder and read back.

A folder appears when it is whole and the model in it has been read and gives the same logits, and not before.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from paperhooks import Artefact, ArtefactError, DataError, ModelView, PluginConflict, UnsupportedModel, active_session
from paperhooks.compat import PreTrainedModel, inside, stood_for
from paperhooks.io import class_name, tensor_digest, write_json
from paperhooks.models import evaluation_mode
from torch import Tensor, nn

__all__ = ["Checkpoint", "checked", "logits", "stored", "written"]

_TOKENS: Final = 24
#: Difference of logits that is allowed, as a share of the largest.
_TOLERANCE: Final = 1e-5


@dataclass(eq=False)
class Checkpoint:
    """What is stored of a model.

    model_class, config
        What builds it.
    tensors
        All its parameters and buffers by name, also of modules that are skipped, which the model itself shares.
    """

    view: ModelView
    model_class: type[PreTrainedModel]
    config: Any
    tensors: dict[str, Tensor]

    @property
    def text_config(self) -> Any:
        """The part of the config that tells of the decoder."""
        return self.config.get_text_config(decoder=True)

    def built(self) -> PreTrainedModel:
        """A model of the config around the tensors, which are not copied.

        :raises ArtefactError: it needs tensors that are not there, or of other shapes.
        """
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                made: PreTrainedModel = self.model_class(self.config)
            names = list(made.state_dict())
            made.load_state_dict({name: self.tensors[name] for name in names}, assign=True)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise ArtefactError(
                f"no {self.model_class.__name__} can be built with the config and the weights that are left: {error}"
            ) from error
        if made.can_generate():
            made.generation_config = copy.deepcopy(self.view.model.generation_config)
        return made.eval()

    def layer_prefix(self) -> str:
        """Under which name the model has its list of layers."""
        return next(name for name, module in self.view.model.named_modules() if module is self.view.layer_list)


def checked(model: nn.Module, artefact: Artefact) -> Checkpoint:
    """A model that was compressed, once it is sure that it is what the artefact tells.

    :raises ArtefactError: another model, or weights or skipped modules that are not the artefact's.
    :raises PluginConflict: a method is attached. :raises UnsupportedModel: weights that are not all here, as plain
        tensors.
    """
    view = ModelView.from_model(model)
    model = view.model
    if active_session(model) is not None:
        raise PluginConflict("methods are attached to the model; close the session before exporting it")
    if class_name(model) != artefact.model_class:
        raise ArtefactError(f"this artefact belongs to a {artefact.model_class}, not to a {class_name(model)}")
    if getattr(view.config, "quantization_config", None) is not None:
        raise UnsupportedModel("the model was loaded quantised, and holds no plain weights to export; load it plain")
    tensors, skipped = _held(model)
    if odd := sorted(set(skipped) ^ set(artefact.skipped)):
        told = "skips it, the model does not" if odd[0] in artefact.skipped else "does not skip it, the model does"
        raise ArtefactError(f"{odd[0]}: the artefact {told}; apply the artefact to the original model first")
    for name, tensor in tensors.items():
        if tensor.is_meta or hasattr(tensor, "full_tensor"):
            where = "offloaded" if tensor.is_meta else "spread over processes"
            raise UnsupportedModel(f"{name} is {where}; load the model as a whole and apply the artefact there")
    for name, edit in artefact.edits.items():
        after = edit.after or tensor_digest(edit.written())
        if name not in tensors or tensor_digest(tensors[name]) != after:
            raise ArtefactError(f"{name} does not hold what the artefact writes; apply it to the original model first")
    return Checkpoint(view, type(model), copy.deepcopy(model.config), tensors)


def _held(model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """All parameters and buffers by name, also of what is skipped, and what that is."""
    tensors: dict[str, Tensor] = {}
    skipped: list[str] = []

    def walk(module: nn.Module, name: str) -> None:
        module = inside(module)
        if stood_for(module) is not module:
            skipped.append(name)
            module = inside(stood_for(module))
        above = f"{name}." if name else ""
        for own, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            tensors[above + own] = tensor.detach()
        for own, child in module.named_children():
            walk(child, above + own)

    walk(model, "")
    return tensors, skipped


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """What a model says of some tokens that are the same each time, float32 [2, T, V] on the CPU."""
    view = ModelView.from_model(model)
    usable = [i for i in range(int(view.text_config.vocab_size)) if i not in view.image_token_ids]
    places = (torch.arange(2 * _TOKENS, dtype=torch.int64) * 7919 + 3) % len(usable)
    ids = torch.tensor(usable)[places].view(2, _TOKENS)
    with evaluation_mode(model):
        device = next(model.parameters()).device
        found: Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return found.float().cpu()


def written(
    checkpoint: Checkpoint,
    artefact: Artefact,
    folder: str | Path,
    *,
    read: Callable[..., nn.Module] | None = None,
    save: Callable[[PreTrainedModel, Path], object] | None = None,
    files: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    verify: bool = True,
) -> Path:
    """Write a checkpoint with the weights that :meth:`Checkpoint.built` needs, and read it back.

    :param read: reads the folder, with options of ``from_pretrained``; the model's class by default.
    :param save: writes a model that was built to a folder; its ``save_pretrained`` by default.
    :param files: JSON files by name.
    :raises DataError: a folder that is there. :raises ArtefactError: what is read back gives other logits.
    """
    with _folder(Path(folder)) as path:
        shell = checkpoint.built()
        (save or checkpoint.model_class.save_pretrained)(shell, path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        told = {"method": artefact.method, "options": artefact.options, "skipped": list(artefact.skipped)}
        write_json(path / "compression.json", {**told, "levels": artefact.data.get("levels", {})})
        for name, content in (files or {}).items():
            write_json(path / name, content)
        if verify:
            _verify(checkpoint, path, read or checkpoint.model_class.from_pretrained)
    return Path(folder)


def stored(model: PreTrainedModel, without: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a model by name, without some, or without all of the modules that are named."""
    gone = tuple(f"{each}." for each in without)
    return {name: tensor for name, tensor in model.state_dict().items() if not f"{name}.".startswith(gone)}


def _verify(checkpoint: Checkpoint, path: Path, read: Callable[..., nn.Module]) -> None:
    """Read the folder, and compare logits and the types of the layers."""
    model = checkpoint.view.model
    try:
        with torch.random.fork_rng(devices=[]):
            again = read(path, attn_implementation=checkpoint.view.attention_kernel)
        again.to(next(model.parameters()).device)
        _cast_buffers(again, model)
        found = logits(again)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise ArtefactError(f"the {class_name(model)} that was written cannot be read back: {error}") from error
    expected = logits(model)
    far = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not far <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        gone = ", ".join(sorted(_held(model)[1]))
        raise ArtefactError(
            f"the {class_name(model)} that was written gives other logits than the compressed model (by {far:.3g}), so "
            f"nothing was kept{f'; of it are left out {gone}' if gone else ''}; this format cannot hold it"
        )


def _cast_buffers(again: nn.Module, model: nn.Module) -> None:
    """Round what is not stored, such as rotary frequencies, where the model was cast after it was loaded."""
    there = dict(model.named_buffers())
    for name, buffer in again.named_buffers():
        if name in there and buffer.is_floating_point():
            buffer.data = buffer.data.to(there[name].dtype)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that becomes it when the block ends well."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} is there already; choose a new folder for the export")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            path.rmdir()
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
