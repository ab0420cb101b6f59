"""Self-Steering Optimization (arXiv 2410.17131) as a paperhooks plugin: preference pairs that a model writes itself."""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
