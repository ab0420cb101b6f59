"""Concentric Causal Attention (arXiv 2410.15926) as a paperhooks plugin.

with paperhooks.attach(model, CCA()):
    model.generate(**inputs)
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
