"""Where the images of a request go, and how large they may be. The same for every backend.

``prepend``
    All images of a message before its text.
``interleave``
    Every image where the task put it.
``joined``
    As prepend, with all images of the request side by side in one: for models that take a single image.
``text-only``
    No images; what is left is the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from paperhooks.errors import DataError, did_you_mean
from paperhooks.generation.pending_images import PendingImage, side_by_side
from paperhooks.generation.requests import Request
from paperhooks.io.images import Picture, fitted_image, upright_image

__all__ = ["Layout", "arrange", "check_layout"]

Layout: TypeAlias = Literal["prepend", "interleave", "joined", "text-only"]

_Part = Mapping[str, Any]


def check_layout(layout: str) -> str:
    """The layout, if there is such a one; raises DataError."""
    if layout not in (known := get_args(Layout)):
        raise DataError(f"there is no layout {layout!r}; {did_you_mean(layout, known)}")
    return layout


def arrange(request: Request, layout: str, max_pixels: int | None = None, *, opened: bool = True) -> Request:
    """The request with its images laid out, upright, in RGB, and no larger than ``max_pixels`` each.

    Every message of the result has a list of parts, in which the n-th image part stands for ``images[n]`` and texts
    without an image between them are one part. A request with a finished prompt keeps prompt and order.

    :param opened: False: a :class:`paperhooks.io.Picture` becomes a :class:`PendingImage`, which is opened later.
    :raises DataError: a request without question, a part of unknown type, an image part without image, or images of a
        finished prompt that are to be left out.
    """
    if not request.messages and not request.prompt and not request.prompt_ids:
        raise DataError("the request has neither a prompt nor messages nor prompt_ids; give one of them")
    if request.prompt and request.messages:
        raise DataError("the request has both a prompt and messages; give one of them")
    if request.prompt_ids and (request.prompt or request.messages):
        raise DataError("the request has both prompt_ids and a prompt or messages; give one of them")
    if request.prompt_ids:
        return request
    if request.prompt and request.images and layout == "text-only":
        raise DataError("the request has a finished prompt, whose images cannot be left out; use another layout")
    if request.prompt:
        return dataclasses.replace(request, images=_ready(request.images, max_pixels, opened))
    numbered = _numbered(request, layout)
    shown = sorted({part["index"] for _, parts in numbered for part in parts if part["type"] == "image"})
    if layout == "joined" and len(shown) > 1:
        return _joined(request, [request.images[index] for index in shown], numbered, max_pixels, opened)
    messages, order = [], []
    for role, parts in numbered:
        placed = _placed(parts, layout)
        order += [part["index"] for part in placed if part["type"] == "image"]
        messages.append({"role": role, "content": _merged(placed)})
    images = _ready([request.images[index] for index in order], max_pixels, opened)
    return dataclasses.replace(request, messages=messages, images=images)


def _numbered(request: Request, layout: str) -> list[tuple[str, list[_Part]]]:
    """Role and parts of every message; each image part has its index, and images without a part get one."""
    count = 0
    used: set[int] = set()
    messages: list[tuple[str, list[_Part]]] = []
    for message in request.messages:
        content = message.get("content", "")
        parts: list[_Part] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "image":
                index = _checked_index(part.get("index", count), request)
                count += 1
                used.add(index)
                other = part.get("only", layout) != layout
                parts.append(_text(part, layout) if other else {**part, "index": index})
            elif part.get("type") == "text" and isinstance(part.get("text"), str):
                parts.append(dict(part))
            else:
                raise DataError(f"the request has the part {part!r}; expected type 'text' with a text, or 'image'")
        messages.append((str(message.get("role", "user")), parts))
    loose: list[_Part] = [{"type": "image", "index": i} for i in range(len(request.images)) if i not in used]
    first = next((parts for role, parts in messages if role == "user"), messages[0][1])
    first[:0] = loose
    return messages


def _checked_index(index: Any, request: Request) -> int:
    if not isinstance(index, int) or not 0 <= index < len(request.images):
        raise DataError(f"the request shows image {index!r} (counted from 0), but has {len(request.images)} of them")
    return index


def _placed(parts: Sequence[_Part], layout: str) -> list[_Part]:
    if layout == "interleave":
        return [part if part["type"] == "image" else _text(part, layout) for part in parts]
    texts = [_text(part, layout) for part in parts]
    if layout == "text-only":
        return texts
    shown = sorted({part["index"] for part in parts if part["type"] == "image"})
    return [{"type": "image", "index": index} for index in shown] + texts


def _text(part: _Part, layout: str) -> _Part:
    return {"type": "text", "text": part.get(layout, part.get("text", ""))}


def _merged(parts: Sequence[_Part]) -> list[dict[str, Any]]:
    """The parts with neighbouring texts in one, since chat templates may put something between parts."""
    merged: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "image":
            merged.append({"type": "image"})
        elif merged and merged[-1]["type"] == "text":
            merged[-1]["text"] += part["text"]
        elif part["text"]:
            merged.append({"type": "text", "text": part["text"]})
    return merged or [{"type": "text", "text": ""}]


def _joined(
    request: Request, images: Sequence[Any], numbered: Sequence[tuple[str, Sequence[_Part]]], max_pixels: int | None,
    opened: bool,
) -> Request:  # fmt: skip
    messages = []
    shown = False
    for role, parts in numbered:
        placed = [_text(part, "joined") for part in parts]
        if not shown and any(part["type"] == "image" for part in parts):
            placed.insert(0, {"type": "image"})
            shown = True
        messages.append({"role": role, "content": _merged(placed)})
    if all(isinstance(image, Picture) for image in images):
        pending = PendingImage(tuple(images), max_pixels)
        row = pending.open() if opened else pending
    else:
        row = fitted_image(side_by_side(_ready(images, None)), max_pixels)
    return dataclasses.replace(request, messages=messages, images=[row])


def _ready(images: Sequence[Any], max_pixels: int | None, opened: bool = True) -> list[Any]:
    return [_placed_image(image, max_pixels, opened) for image in images]


def _placed_image(image: Any, max_pixels: int | None, opened: bool) -> Any:
    if isinstance(image, Picture):
        pending = PendingImage((image,), max_pixels)
        return pending.open() if opened else pending
    return fitted_image(upright_image(image), max_pixels) if hasattr(image, "getexif") else image
