"""How far compressed models are from the model itself: many candidates on one text, in one process or several."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
