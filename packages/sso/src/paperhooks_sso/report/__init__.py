"""Reports of a round and of a whole loop: what was sampled, what was kept, what training did."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
