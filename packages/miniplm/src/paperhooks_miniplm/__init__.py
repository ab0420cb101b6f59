"""MiniPLM (arXiv 2410.17215) as a paperhooks plugin: score a corpus with two models, keep what teaches.

rows = open_rows("packed/")
score(teacher, rows, "scores/teacher", tokenizer=tokenizer)
score(reference, rows, "scores/reference", tokenizer=tokenizer)
chosen = select(diff("scores/teacher", "scores/reference"), ratio=0.5)
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
