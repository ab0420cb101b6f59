"""The model that a loop works on: a copy of the given one, which takes the weights of one checkpoint after another."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from paperhooks import DataError, UnsupportedModel, active_session
from paperhooks.io import model_digest
from paperhooks.models import running_model
from torch import nn

from paperhooks_sso.loop.rounds import START

__all__ = ["Policy", "save_checkpoint"]


class Policy:
    """A copy of a model, in eval mode, so that the given one stays as it is.

    :param given: on its device and in its dtype; with PEFT adapters only these are trained and saved.
    :param out: the folder of the loop, in which rounds have their checkpoints.
    :raises UnsupportedModel: a model that cannot be copied: methods are attached, or it is spread over devices.
    """

    def __init__(self, given: nn.Module, out: Path) -> None:
        _check(given)
        self.given, self.out = given, out
        self.model: Any = copy.deepcopy(given).eval()
        self.digests = {START: model_digest(given)}
        self._held = START

    def check_trained(self) -> None:
        """Raise UnsupportedModel where nothing would learn, before anything is sampled."""
        if not any(p.requires_grad for p in self.model.parameters()):
            raise UnsupportedModel(
                f"no parameter of {type(self.given).__name__} learns: all have requires_grad=False; load adapters with "
                "PeftModel.from_pretrained(..., is_trainable=True), or say model.requires_grad_()"
            )

    def put(self, name: str) -> Any:
        """The model with the weights of a round's checkpoint, or of the given model.

        :raises DataError: the checkpoint has other weights than the round has left.
        """
        if name != self._held:
            self._held = ""  # whatever happens on the way
            if name == START:
                self.model.load_state_dict(self.given.state_dict())
            else:
                self._load(self.out / name / "checkpoint")
            if model_digest(self.model) != self.digests[name]:
                raise DataError(
                    f"{self.out / name / 'checkpoint'} holds other weights than its round has left; put them back, or "
                    "use another folder"
                )
            self._held = name
        return self.model.eval()

    def changed(self) -> None:
        """The weights are about to be those of no checkpoint."""
        self._held = ""

    def keeps(self, name: str, digest: str) -> None:
        """The weights are those of a round's checkpoint now, with this digest."""
        self._held, self.digests[name] = name, digest

    def _load(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder} is not there, and a later round goes on from it; put it back")
        if (adapter := _adapter(self.model)) is not None:
            from peft import load_peft_weights, set_peft_model_state_dict

            place = folder if adapter == "default" else folder / adapter
            device = str(next(self.model.parameters()).device)
            set_peft_model_state_dict(self.model, load_peft_weights(str(place), device=device), adapter)
            return
        inner = running_model(self.model)
        loaded = type(inner).from_pretrained(folder, dtype=inner.dtype)  # type: ignore[attr-defined]
        inner.load_state_dict(loaded.state_dict())


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save model (or adapters) and tokenizer beside the folder, then put them in its place."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    adapter = _adapter(model)
    chosen = {} if adapter is None else {"selected_adapters": [adapter]}
    model.save_pretrained(part, **chosen)
    if tokenizer is not None:
        tokenizer.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)  # left by a kill before its round was told of it
    os.replace(part, folder)


def _adapter(model: Any) -> str | None:
    """The adapter that is trained, of a model with adapters of PEFT; None of another."""
    if not hasattr(model, "peft_config"):
        return None
    active = model.active_adapter() if callable(getattr(model, "active_adapter", None)) else model.active_adapter
    names = [active] if isinstance(active, str) else list(active)
    if len(names) != 1:
        raise UnsupportedModel(f"the adapters {', '.join(names)} act together; train one: model.set_adapter(name)")
    return str(names[0])


def _check(model: nn.Module) -> None:
    inner = running_model(model)
    if active_session(inner) is not None:
        raise UnsupportedModel(
            "methods are attached to this model, which the loop would copy along; detach them, and attach what is to "
            "act while the result is used to the result"
        )
    devices = {p.device for p in inner.parameters()}
    if len(devices) > 1 or torch.device("meta") in devices:
        raise UnsupportedModel(
            f"{type(inner).__name__} is spread over {', '.join(sorted(map(str, devices)))}, and the loop works on one "
            "device; load it on one, or train the pairs by a Trainer of your own: paperhooks sso sample and pairs make "
            "them"
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise UnsupportedModel(
            "the loop runs in one process; with several, make the pairs first (paperhooks sso sample, then pairs) and "
            "train on them with SSO behind HooksTrainerMixin"
        )
