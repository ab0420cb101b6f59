"""Reading replies: as the published scores do, as a human does, and what a reply is beside its answer."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
