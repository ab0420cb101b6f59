"""Drawing a scene: flat shapes with small variations of size, place and colour on a noisy light background."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from paperhooks_testbed.world import CELL_PIXELS, IMAGE_PIXELS, Scene, Shape

__all__ = ["render", "render_array"]

_RGB: dict[str, tuple[int, int, int]] = {
    "red": (215, 45, 40),
    "green": (40, 160, 60),
    "blue": (45, 85, 215),
    "yellow": (235, 195, 30),
    "purple": (150, 55, 180),
    "black": (35, 35, 35),
}


def _star() -> list[tuple[float, float]]:
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii)]


# Corners in units of half a side, x to the right and y down.
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -0.95), (0.95, 0.85), (-0.95, 0.85)],
    "diamond": [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
    "star": _star(),
    "cross": [
        *((-0.32, -1.0), (0.32, -1.0), (0.32, -0.32), (1.0, -0.32), (1.0, 0.32), (0.32, 0.32)),
        *((0.32, 1.0), (-0.32, 1.0), (-0.32, 0.32), (-1.0, 0.32), (-1.0, -0.32), (-0.32, -0.32)),
    ],
}


def render(scene: Scene) -> Image.Image:
    """Draw the scene as a 224 x 224 RGB image; the same scene always gives the same pixels."""
    return Image.fromarray(render_array(scene))


def render_array(scene: Scene) -> np.ndarray:
    """Draw the scene as an array ``[224, 224, 3]`` of uint8."""
    name = f"paperhooks-testbed drawing {scene.split} {scene.index}"
    rng = random.Random(name)
    background = rng.randint(222, 238)
    image = Image.new("RGB", (IMAGE_PIXELS, IMAGE_PIXELS), (background,) * 3)
    canvas = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _draw(canvas, shape, rng)
    noise = np.random.default_rng(rng.getrandbits(64)).integers(
        -12, 13, (IMAGE_PIXELS, IMAGE_PIXELS, 3), dtype=np.int16
    )
    return np.clip(np.asarray(image, dtype=np.int16) + noise, 0, 255).astype(np.uint8)


def _draw(canvas: ImageDraw.ImageDraw, shape: Shape, rng: random.Random) -> None:
    half = rng.uniform(11.5, 14.0)
    x = (shape.column + 0.5) * CELL_PIXELS + rng.uniform(-1.5, 1.5)
    y = (shape.row + 0.5) * CELL_PIXELS + rng.uniform(-1.5, 1.5)
    fill = tuple(max(0, min(255, c + rng.randint(-15, 15))) for c in _RGB[shape.colour])
    if shape.form == "circle":
        canvas.ellipse((x - 0.9 * half, y - 0.9 * half, x + 0.9 * half, y + 0.9 * half), fill=fill)
    else:
        canvas.polygon([(x + half * dx, y + half * dy) for dx, dy in _CORNERS[shape.form]], fill=fill)
