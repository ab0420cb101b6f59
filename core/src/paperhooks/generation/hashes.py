"""What tells requests and prompts apart: hashes of everything in them that the answer depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from paperhooks.generation.pending_images import PendingImage
from paperhooks.generation.requests import Prompt, Request
from paperhooks.io.hashing import hash_json
from paperhooks.io.images import Picture

__all__ = ["prompt_hash", "request_hash"]


def prompt_hash(prompt: Prompt) -> str:
    """SHA-256 of everything in a prompt that the answer depends on: text, images, length limit, stop strings, sampling.

    Opened images count by their pixels, pictures by their bytes and how they are scaled and joined.
    """
    request = prompt.request
    images = [_image_hash(image) for image in request.images]
    return hash_json([prompt.text, prompt.special, images, request.max_new_tokens, request.stop, *_more(request)])


def request_hash(request: Request) -> str:
    """SHA-256 of a request before it is laid out: what is asked, and where the answer is cut; not its metadata."""
    images = [_image_hash(image) for image in request.images]
    return hash_json([
        request.messages, request.prompt, images, request.max_new_tokens, request.stop, *_more(request)
    ])  # fmt: skip


def _more(request: Request) -> list[dict[str, Any]]:
    """What requests did not always have: nothing where they have none, so that files from before go on."""
    sampling = {} if request.sampling is None else {"sampling": dataclasses.asdict(request.sampling)}
    ids = {"prompt_ids": list(request.prompt_ids)} if request.prompt_ids else {}
    return [sampling | ids] if sampling or ids else []


def _image_hash(image: Any) -> str:
    if isinstance(image, PendingImage):
        return image.key
    if isinstance(image, Picture):
        return image.digest
    if hasattr(image, "tobytes") and hasattr(image, "size"):
        head = f"{getattr(image, 'mode', '')} {getattr(image, 'shape', image.size)}".encode()
        return hashlib.sha256(head + image.tobytes()).hexdigest()
    return hash_json(str(image))
