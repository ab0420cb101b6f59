"""The loop: a model samples pairs, is trained on them, and samples again; it goes on wherever it was stopped."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
