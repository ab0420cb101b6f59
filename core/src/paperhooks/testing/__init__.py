"""Test tools for plugin authors: :func:`fingerprint`, tiny models, and :class:`MethodContract`.

Load the fixtures with ``pytest_plugins = ["paperhooks.testing.fixtures"]``; nothing is loaded without being asked for.
"""

from __future__ import annotations

from paperhooks.testing.contract import MethodContract
from paperhooks.testing.dropper import Dropper
from paperhooks.testing.fingerprint import Fingerprint, fingerprint
from paperhooks.testing.tiny import (
    IMAGE_TOKEN,
    TEXT_FAMILIES,
    VLM_FAMILIES,
    cache_argument,
    tiny_llama,
    tiny_llava,
    tiny_text,
    tiny_vlm,
    vlm_inputs,
)

__all__ = [
    "IMAGE_TOKEN",
    "TEXT_FAMILIES",
    "VLM_FAMILIES",
    "Dropper",
    "Fingerprint",
    "MethodContract",
    "cache_argument",
    "fingerprint",
    "tiny_llama",
    "tiny_llava",
    "tiny_text",
    "tiny_vlm",
    "vlm_inputs",
]
