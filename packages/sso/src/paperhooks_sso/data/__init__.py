"""From prompts to pairs: principles, prompts as token ids, sampled answers, pairs and batches."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
