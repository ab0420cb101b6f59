"""One test for a GPU and for none: the fixture ``accelerator``; test modules load it with ``pytest_plugins``.

The project's pytest options must know the marker ``cuda``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from paperhooks.testing.fixtures import emulated

__all__ = ["accelerator", "emulated"]


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda), "emulated"])
def accelerator(request: Any) -> Iterator[torch.device]:
    """The device of a test that runs twice: on CUDA, marked ``cuda``, and on the emulated accelerator."""
    if request.param == "emulated":
        yield request.getfixturevalue("emulated")
    elif torch.cuda.is_available():
        yield torch.device("cuda", 0)
    else:
        pytest.skip("needs a CUDA device")
