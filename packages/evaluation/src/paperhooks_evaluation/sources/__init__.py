"""Where the data of tasks lie: files, folders and data sets of the hub, and images that are read when needed."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
