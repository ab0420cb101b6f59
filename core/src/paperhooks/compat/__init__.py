"""The one door to transformers: every name of it that has changed, or that its documentation does not promise.

Names are resolved from signatures and from what is installed, once, when a session attaches; nothing else in core or in
a package spells them. Where a version hands things over in a way that is not known here, the answer is an error that
names the version and what was missing, never a guess.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
