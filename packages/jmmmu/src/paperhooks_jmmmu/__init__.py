"""JMMMU: the Japanese exam benchmark for vision-language models, scored as published and as a human reads."""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
