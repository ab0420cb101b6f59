"""Pytest fixtures for plugin authors. Load them with ``pytest_plugins = ["paperhooks.testing.fixtures"]``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from torch import nn

from paperhooks.testing.fingerprints import fingerprint
from paperhooks.testing.tiny import tiny_text, tiny_vlm

__all__ = ["leaves_no_trace", "text_model", "vision_model"]


@pytest.fixture
def text_model() -> Any:
    """A fresh tiny Llama."""
    return tiny_text("llama")


@pytest.fixture
def vision_model() -> Any:
    """A fresh tiny LLaVA."""
    return tiny_vlm("llava")


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
