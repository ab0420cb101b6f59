"""Pytest fixtures for plugin authors. Load them with ``pytest_plugins = ["paperhooks.testing.fixtures"]``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from paperhooks.testing import compat
from paperhooks.testing.emulated import emulated_accelerator
from paperhooks.testing.fingerprints import fingerprint
from paperhooks.testing.tiny import tiny_text, tiny_vlm

__all__ = ["emulated", "leaves_no_trace", "text_model", "vision_model"]


@pytest.fixture
def text_model() -> Any:
    """A fresh tiny Llama."""
    return tiny_text("llama")


@pytest.fixture
def vision_model() -> Any:
    """A fresh tiny LLaVA."""
    return tiny_vlm("llava")


@pytest.fixture
def emulated() -> Iterator[torch.device]:
    """The device "emulated:0" of :func:`paperhooks.testing.emulated_accelerator`, whose block is the test.

    A tensor of another device in one operator raises there, on any machine, and
    :func:`paperhooks.testing.host_waits` tells where the host waits. Skips where torch is older than 2.10.
    """
    lacking = compat.needed()
    if lacking:
        pytest.skip(lacking)
    with emulated_accelerator() as device:
        yield device


@pytest.fixture
def leaves_no_trace() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """``with leaves_no_trace(model): ...`` fails when the block changed anything about the model.

    Run the model once before: transformers installs recorders of its own at the first forward.
    """

    @contextmanager
    def check(model: nn.Module) -> Iterator[None]:
        before = fingerprint(model)
        yield
        changed = fingerprint(model).differences(before)
        assert not changed, f"left behind: {', '.join(changed[:5])}"

    return check
