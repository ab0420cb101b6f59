"""Vision-language models answer questions with several pictures, in every layout, alike in batches of any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exam_runs import quick
from paperhooks.testing import tiny_vlm
from paperhooks_jmmmu import Jmmmu
from tiny_processors import PROCESSORS

LAYOUTS = ("prepend", "interleave", "joined", "text-only")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", PROCESSORS)
def test_replies_do_not_depend_on_the_batch(japanese: Path, tmp_path: Path, family: str) -> None:
    model, processor = tiny_vlm(family, layers=2), PROCESSORS[family]()
    shown = [f"pictures={n}" for n in (0, 2, 4)]

    def replies(layout: str, batch_size: int) -> list[str]:
        result = quick(
            model, processor, Jmmmu(max_new_tokens=5), data=japanese, out=tmp_path / f"{layout}-{batch_size}",
            layout=layout, batch_size=batch_size, groups=shown, limit=4, modes=["official-wrong"],
        )  # fmt: skip
        assert not result.first.failures
        assert {one.document.groups["pictures"] for one in result.records} == {"0", "2", "4"}
        return [one.response for one in result.records]

    found: dict[str, list[str]] = {}
    for layout in LAYOUTS:
        found[layout] = replies(layout, 1)
        assert replies(layout, 4) == found[layout], layout
    assert len(found["prepend"]) == 4
    different = [[a != b for a, b in zip(found[one], found["text-only"], strict=True)] for one in LAYOUTS[:3]]
    assert any(map(any, different)), "the pictures reach the model"
