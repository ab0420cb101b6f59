"""PyramidDrop (arXiv 2410.17247) as a paperhooks plugin.

with paperhooks.attach(model, PyramidDrop(stages={8: 0.5, 16: 0.25, 24: 0.125})):
    model.generate(**inputs)
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
