"""Settings of the documentation; ``nox -s docs`` builds it."""

from __future__ import annotations

import importlib.metadata

project = "paperhooks"
author = "The paperhooks authors"
copyright = author
release = importlib.metadata.version("paperhooks")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
root_doc = "index"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"paperhooks {release}"
html_theme_options = {"navigation_with_keys": True}

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
