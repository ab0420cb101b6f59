"""Arrays of safetensors files, mapped into memory: what is not looked at is not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

__all__ = ["read_arrays"]


def read_arrays(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray[Any, Any]]]:
    """Header and arrays of a file; raises SafetensorError or OSError for one that is damaged or not there.

    The arrays may be written to, which changes nothing on disk.
    """
    # Of the frameworks only this one maps the file; numpy's copies it.
    with safe_open(path, framework="pt") as handle:
        names = handle.keys()  # the handle is no mapping
        return handle.metadata() or {}, {name: handle.get_tensor(name).numpy() for name in names}
