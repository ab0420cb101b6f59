"""On SmolLM2-135M-Instruct: the skill's set hurts the skill, the reversed set hurts the rest. Takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paperhooks.authoring import DemoContext
from paperhooks.testing import forget_peak, resident
from paperhooks_mathneuro import collect, evaluate, select, sweep
from paperhooks_mathneuro.demo import load_demo, run
from paperhooks_mathneuro.selection import weights_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SAMPLES, ITEMS = 14, 10


@pytest.fixture(scope="module")
def material():
    return load_demo(SAMPLES + ITEMS)


def test_the_double_dissociation(material) -> None:
    model, tokenizer, maths, prose = material
    sides = [collect(model, each[:SAMPLES], tokenizer=tokenizer, progress=False) for each in (maths, prose)]
    selection = select(model, *sides, ratio=0.05)
    share = sum(selection.about["counts"].values()) / sum(m.numel for m in selection.matrices)
    assert 0.008 < share < 0.02
    items = {"maths": maths[SAMPLES:], "prose": prose[SAMPLES:]}
    effects = evaluate(model, selection, items, tokenizer=tokenizer, progress=False)
    mean = {
        (one.selection, side): float(effects.deltas(one, side).mean())
        for one in effects.edited
        for side in effects.sides
    }
    isolated = selection.label
    assert mean[isolated, "maths"] >= 1.3 * mean["random", "maths"]
    assert mean[isolated, "maths"] >= 1.3 * mean["next important", "maths"]
    assert mean[isolated, "maths"] > mean[isolated, "prose"]
    assert mean["reversed", "maths"] < mean["reversed", "prose"]
    assert mean["reversed", "prose"] > mean[isolated, "prose"]
    assert mean["top only", "maths"] > 3 * mean[isolated, "maths"]
    selectivity = effects.selectivity(effects.find(isolated, 0.0))
    assert selectivity[1] > 0  # the interval is above zero


def test_sets_of_the_size_that_the_official_code_finds(material) -> None:
    """Compat and exact agree for few samples; what is stored is small."""
    model, tokenizer, maths, prose = material
    sides = [collect(model, each[:4], tokenizer=tokenizer, progress=False) for each in (maths, prose)]
    exact, compat = select(model, *sides), select(model, *sides, mode="compat")
    common = either = 0
    for matrix, weight in weights_of(model, exact.matrices):
        one, two = exact.mask(matrix, weight), compat.mask(matrix, weight)
        common, either = common + int((one & two).sum()), either + int((one | two).sum())
    assert common / either > 0.9


def test_batches_and_permutations_move_an_entry_at_most(material) -> None:
    model, tokenizer, maths, prose = material
    found = []
    for size in (1, 2, 6):
        sides = [
            collect(model, each[:6], tokenizer=tokenizer, batch_size=size, progress=False) for each in (maths, prose)
        ]
        found.append(select(model, *sides))
    sides = [side.take(torch.randperm(6)) for side in sides]
    found.append(select(model, *sides))
    for matrix, weight in weights_of(model, found[0].matrices):
        masks = [one.mask(matrix, weight) for one in found]
        assert all(int((masks[0] != other).sum()) <= 2 for other in masks[1:]), matrix.name


def test_memory_stays_small(material) -> None:
    """Resident memory beyond the model, for collecting and a sweep of eight ratios."""
    model, tokenizer, maths, prose = material
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    collect(model, maths[:1], tokenizer=tokenizer, progress=False)  # buffers of the first forward
    assert forget_peak()
    before = resident("VmRSS")
    sides = [collect(model, each[:8], tokenizer=tokenizer, batch_size=1, progress=False) for each in (maths, prose)]
    sweep(model, *sides, ratios=[0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15])
    assert resident("VmHWM") - before < 0.3 * size + 4 * max(p.numel() for p in model.parameters())


def test_the_demo(tmp_path: Path) -> None:
    said: list[str] = []
    run(DemoContext(tmp_path, said.append, quick=True))
    assert (tmp_path / "report.html").exists()
    assert "undone: the same" in "\n".join(said)
    (tmp_path / "mine.txt").write_text("kept")
    run(DemoContext(tmp_path, said.append, quick=True, seed=1))
    assert (tmp_path / "mine.txt").read_text() == "kept"
