"""Where images of a request go."""

from __future__ import annotations

import pytest
from paperhooks.generation import Request, arrange
from PIL import Image


@pytest.mark.parametrize(
    ("layout", "text", "colours"),
    [
        ("prepend", "[]a <1> b <2> c", [1]),
        ("interleave", "a [] b [] c", [1, 2]),
        ("joined", "[]a <1> b <2> c", [1]),
        ("text-only", "a <1> b <2> c", []),
    ],
)
def test_an_image_of_one_layout_alone(layout: str, text: str, colours: list[int]) -> None:
    """It leaves its text elsewhere, and is not joined to the others."""
    content = [
        {"type": "text", "text": "a "}, {"type": "image", "index": 0, "text": "<1>"}, {"type": "text", "text": " b "},
        {"type": "image", "index": 1, "text": "<2>", "only": "interleave"}, {"type": "text", "text": " c"},
    ]  # fmt: skip
    images = [Image.new("RGB", (2, 2), (colour, 0, 0)) for colour in (1, 2)]
    found = arrange(Request([{"role": "user", "content": content}], images=images), layout)
    parts = found.messages[0]["content"]
    assert "".join("[]" if part["type"] == "image" else part["text"] for part in parts) == text
    assert [image.getpixel((0, 0))[0] for image in found.images] == colours
    assert all(image.size == (2, 2) for image in found.images)
