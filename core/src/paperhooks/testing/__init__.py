"""Test tools for plugin authors: :func:`fingerprint`, tiny models, :class:`MethodContract`, :class:`TaskContract`.

Load the fixtures with ``pytest_plugins = ["paperhooks.testing.fixtures"]``; nothing is loaded without being asked for.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
