"""The two pluggy markers of the project name ``paperhooks``."""

from typing import Final

import pluggy

PROJECT: Final = "paperhooks"

#: Marks a function of :mod:`paperhooks.hookspecs` as the declaration of a hook.
hookspec: Final = pluggy.HookspecMarker(PROJECT)

#: Marks a method of a plugin as the implementation of the hook of the same name.
hookimpl: Final = pluggy.HookimplMarker(PROJECT)
