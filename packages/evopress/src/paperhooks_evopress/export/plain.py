"""Compressed weights as plain tensors, zeros and rounded values included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paperhooks import Artefact, ArtefactError
from torch import nn

from paperhooks_evopress.export.checkpoint import checked, written

__all__ = ["sparse"]


def sparse(
    model: nn.Module, artefact: Artefact, folder: str | Path, *, tokenizer: Any = None, verify: bool = True
) -> Path:
    """All weights as they are, in plain safetensors: zeros are stored as zeros.

    Of the model's own architecture and size; everything reads it. Parameters and errors as of
    :func:`paperhooks_evopress.export.stock`.

    :raises ArtefactError: modules are left out, which this format cannot say.
    """
    checkpoint = checked(model, artefact)
    if artefact.skipped:
        raise ArtefactError(
            f"sparse holds weights alone, and {', '.join(artefact.skipped)} is left out; use stock, zeroed or skip-list"
        )
    return written(checkpoint, artefact, folder, tokenizer=tokenizer, verify=verify)
