"""MathNeuro (arXiv 2410.16930) as a paperhooks plugin: the parameters of a skill, found with forward passes alone.

target = collect(model, maths, tokenizer=tokenizer)
reference = collect(model, prose, tokenizer=tokenizer)
skill = select(model, target, reference, ratio=0.05)
with apply(model, skill, scale=0.0):  # undone at the end, bit for bit
    model.generate(**inputs)
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
