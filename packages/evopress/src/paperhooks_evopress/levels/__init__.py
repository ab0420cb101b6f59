"""Methods that offer levels: what is left out, pruned and quantised, each of them also of use to other searches."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
