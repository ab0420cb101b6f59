"""Shared by this package's tests: no network, few threads, no word-by-word progress."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(scope="session", autouse=True)
def _quiet_threads():
    import torch

    torch.set_num_threads(1)
