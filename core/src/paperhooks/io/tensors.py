"""Tensors with a header in one safetensors file, written so that equal content gives equal bytes and damage shows.

The header is plain data, kept as JSON with sorted keys; beside it stands a SHA-256 of header and tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import DataError
from paperhooks.io.files import atomic_path, plain
from paperhooks.io.hashing import hash_json, tensor_digest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["read_tensors", "write_tensors"]

_KEY: Final = "paperhooks"
_DIGEST: Final = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor | np.ndarray[Any, Any]], header: Mapping[str, Any]) -> None:
    """Write a file atomically.

    :param tensors: torch tensors or numpy arrays of any shape, by name.
    :param header: plain data; the key ``sha256`` is taken.
    :raises DataError: it cannot be written; what stood there stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {name: _stored(tensor) for name, tensor in tensors.items()}
    content = plain(dict(header))
    text = json.dumps(content | {_DIGEST: _digest(content, stored)}, sort_keys=True)
    with atomic_path(path) as temporary:
        try:
            # One key: safetensors keeps several in no order.
            save_file(stored, temporary, {_KEY: text})
        except SafetensorError as error:
            raise DataError(f"{path} cannot be written: {error}") from error


def read_tensors(path: Path, what: str = "tensors") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of :func:`write_tensors`; the tensors are mapped, and may be written to.

    :param what: what the file should hold, for messages.
    :raises DataError: it is missing, no such file, cut, or changed since it was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:  # the one framework with which the file is mapped, not copied
            text = (handle.metadata() or {}).get(_KEY)
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        header = json.loads(text) if text else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; expected {what}") from error
    if not isinstance(header, dict) or _DIGEST not in header:
        raise DataError(f"{path} was not written by paperhooks; expected {what}")
    if header.pop(_DIGEST) != _digest(header, tensors):
        raise DataError(f"{path} was changed or damaged after it was written: its checksum does not match")
    return header, tensors


def _stored(tensor: Any) -> Tensor:
    import torch

    return torch.as_tensor(tensor).detach().cpu().contiguous()


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    return hash_json([header, {name: tensor_digest(tensor) for name, tensor in tensors.items()}])
