"""What is told of searches and of the choices beside them: reports, figures, lines of text, run folders."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
