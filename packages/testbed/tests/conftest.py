from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads on small matrices cost more than they give, and other processes share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def vlm():
    """The shipped model and its processor."""
    from paperhooks_testbed import load_vlm

    return load_vlm()


@pytest.fixture(scope="session")
def processor():
    """A processor that needs no trained weights."""
    from paperhooks_testbed.architecture import build_processor

    return build_processor()
