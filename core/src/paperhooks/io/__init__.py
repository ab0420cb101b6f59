"""Files and records: atomic writing, hashes, checked TOML and options, and processes that share a run."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
