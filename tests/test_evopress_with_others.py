"""Other methods on a model that was compressed by EvoPress: they run on what is left, and all of it is undone."""

from __future__ import annotations

from typing import Any

import paperhooks
import pytest
import torch
from paperhooks import attach
from paperhooks.testing import IMAGE_TOKEN, fingerprint, tiny_vlm, vlm_inputs

cca = pytest.importorskip("paperhooks_cca")
evopress = pytest.importorskip("paperhooks_evopress")
pyramiddrop = pytest.importorskip("paperhooks_pyramiddrop")

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")

PARTS = ((3, 16, 5), (2, 16, 2), (6,))
TARGETS = {"depth=0.34": {}, "depth=1": {"whole_layers": True}, "sparsity=0.5": {}, "bits=3": {}, "bytes=260kB": {}}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny() -> Any:
    model = tiny_vlm("llava", layers=6)
    model.lm_head.weight.data[IMAGE_TOKEN] = 0  # a random model would say the placeholder now and then
    return model


def compressed(model: Any, target: str) -> Any:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 90, (20 + i,), generator=generator).tolist() for i in range(6)]
    search = evopress.EvoPress(
        schedule="quick", generations=1, check_model=False, finalists=0, **TARGETS[target]
    )  # fmt: skip
    return paperhooks.compress(model, search, data=texts, target=target, progress=False)


def methods(skipped: set[int]) -> list[Any]:
    """Dropping ranks tokens by the attention of its layers, which have to have one."""
    left = [layer for layer in range(1, 6) if layer not in skipped]
    return [cca.CCA(), pyramiddrop.PyramidDrop(stages={left[0]: 0.5, left[2]: 0.25})]


def generated(model: Any, rows: slice = slice(None)) -> list[list[int]]:
    inputs = vlm_inputs(model, PARTS, rows=rows)
    out = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("target", TARGETS)
def test_methods_run_on_a_compressed_model_and_everything_is_undone(target: str) -> None:
    model = tiny()
    whole, tokens = fingerprint(model), generated(model)
    artefact = compressed(model, target)
    assert artefact.applicable
    before, alone = fingerprint(model), generated(model)
    # Rows of a batch are what each is by itself: caches of layers that are left out stay in step.
    skipped = {int(name.split("layers.")[1].split(".")[0]) for name in artefact.skipped if not name.endswith("mlp")}
    with attach(model, *methods(skipped)) as session:
        together = generated(model)
        rows = [generated(model, slice(row, row + 1))[0] for row in range(len(PARTS))]
        assert together == rows == generated(model)
        described = session.describe()
        assert "cca" in described
        assert "pyramiddrop" in described
        assert all(name in described for name in artefact.skipped)
        with torch.no_grad():
            changed = model(**vlm_inputs(model, PARTS[:1])).logits
    with torch.no_grad():
        assert float((model(**vlm_inputs(model, PARTS[:1])).logits - changed).abs().max()) > 1e-3
    assert fingerprint(model).differences(before) == []
    assert generated(model) == alone
    artefact.undo()
    assert fingerprint(model).differences(whole) == []
    assert generated(model) == tokens


def test_a_layer_without_attention_ranks_no_tokens() -> None:
    """Dropping at a layer whose attention is left out is refused by name, and not done by another layer's."""
    model = tiny()
    artefact = compressed(model, "depth=0.34")
    before = fingerprint(model)
    gone = next(int(name.split("layers.")[1].split(".")[0]) for name in artefact.skipped if name.endswith("attn"))
    with (
        pytest.raises(paperhooks.PaperhooksError, match=rf"\b{gone}\b"),
        attach(model, pyramiddrop.PyramidDrop(stages={gone: 0.5})),
    ):
        generated(model)
    assert fingerprint(model).differences(before) == []
