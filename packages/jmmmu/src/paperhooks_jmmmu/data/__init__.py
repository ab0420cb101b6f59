"""The data of JMMMU, JMMMU-Pro and MMMU: subjects, rows as documents, and a synthetic set of the same form."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
