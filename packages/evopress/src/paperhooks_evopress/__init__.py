"""EvoPress (arXiv 2410.14649) as a paperhooks plugin: the best non-uniform compression under one budget, searched.

artefact = paperhooks.compress(model, "evopress", data=texts, target="bits=3.0", out="run/")
artefact.undo()
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
