"""Other ways to a choice of levels, for comparison with the search, and for it to start from.

All of them answer one question, a :class:`Setting`, and are measured on the text that its evaluator holds. Each gives a
:class:`Found`, which says how many tokens were read for it.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
