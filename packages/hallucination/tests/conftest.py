"""Folders of data in the published forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from hallucination_data import write_coco, write_mme, write_pope


@pytest.fixture
def pope_folder(tmp_path: Path) -> Path:
    """Three splits over the same images, those in val2014/."""
    return write_pope(tmp_path / "pope")


@pytest.fixture
def mme_folder(tmp_path: Path) -> Path:
    """The release's two layouts: images/ beside questions_answers_YN/, and images beside text files."""
    return write_mme(tmp_path / "MME_Benchmark")


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Three images with instances and captions in COCO's files."""
    return write_coco(tmp_path / "coco")
