"""Rings and dropping on one LLaVA, against a plain computation that applies both with a mask and positions by hand.

The reference knows nothing of either plugin: a stock model with eager attention gets positions and a mask written out
token by token, its own attention weights rank the image tokens, and dropped ones are masked from their layer on.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from paperhooks import PluginConflict, Traits, attach, hookimpl
from paperhooks.testing import IMAGE_TOKEN, fingerprint, image_outputs, tiny_vlm, vlm_inputs

cca = pytest.importorskip("paperhooks_cca")
pyramiddrop = pytest.importorskip("paperhooks_pyramiddrop")

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")

SIDE = 4
STAGES = {2: 0.5, 4: 0.25}
PARTS = ((3, 16, 5), (2, 16, 4, 16, 3), (9,), (0, 16, 6))
LEAST = torch.finfo(torch.float32).min


def rings(tokens: list[int]) -> tuple[list[int], torch.Tensor]:
    """Concentric positions and mask bool [T, T] of one row."""
    places: list[int] = []
    image: list[int] = []
    counter = seen = 0
    for token in tokens:
        if token != IMAGE_TOKEN:
            places.append(counter)
            image.append(-1)
            counter += 1
            continue
        i, j = divmod(seen % SIDE**2, SIDE)
        places.append(counter + min(i, j, SIDE - 1 - i, SIDE - 1 - j))
        image.append(seen // SIDE**2)
        seen += 1
        counter += SIDE // 2 if seen % SIDE**2 == 0 else 0
    mask = [
        [places[k] <= places[q] if image[q] == image[k] != -1 else k <= q for k in range(len(tokens))]
        for q in range(len(tokens))
    ]
    return places, torch.tensor(mask)


@contextmanager
def dropped(model: Any, alive: dict[int, torch.Tensor]):
    """From every drop layer on, columns that are not alive are masked (a dropped row still sees itself)."""

    def hide(index: int):
        keep = torch.stack([a for layer, a in alive.items() if layer <= index]).all(0)

        def hook(module, args, kwargs):
            mask = kwargs["attention_mask"]
            dead = ~keep[None, :] & ~torch.eye(len(keep), dtype=torch.bool)
            return args, {**kwargs, "attention_mask": mask.masked_fill(dead, LEAST)}

        return hook

    layers = list(enumerate(model.model.language_model.layers))
    handles = [
        layer.register_forward_pre_hook(hide(i), with_kwargs=True) for i, layer in layers if alive and i >= min(alive)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model: Any, ids: torch.Tensor, images: list[torch.Tensor], alive: dict[int, torch.Tensor]) -> Any:
    """One forward of the stock model, without a cache, with attention weights."""
    places, mask = rings(ids.tolist())
    given = {"mm_encoder_outputs": {"image": image_outputs(model, images)}} if images else {}
    alive = {layer: torch.nn.functional.pad(a, (0, len(ids) - len(a)), value=True) for layer, a in alive.items()}
    with dropped(model, alive), torch.no_grad():
        return model(
            input_ids=ids[None],
            attention_mask=torch.zeros(mask.shape).masked_fill(~mask, LEAST)[None, None],
            position_ids=torch.tensor([places]),
            use_cache=False,
            output_attentions=True,
            **given,
        )


def ranked(model: Any, ids: torch.Tensor, images: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Which tokens of a prompt are alive from each drop layer on, by the attention of its last token."""
    visual, alive = ids == IMAGE_TOKEN, {}
    for layer, share in STAGES.items() if bool(visual.any()) else ():
        score = run(model, ids, images, alive).attentions[layer][0, :, -1].mean(0)
        before = torch.stack(list(alive.values())).all(0) if alive else torch.ones_like(visual)
        best = score.masked_fill(~(visual & before), -1).topk(int(int(visual.sum()) * share)).indices
        alive[layer] = ~visual
        alive[layer][best] = True
    return alive


def reference(model: Any, ids: torch.Tensor, images: list[torch.Tensor], steps: int) -> tuple[torch.Tensor, list[int]]:
    """Logits of the prompt's last token, and greedy tokens by recomputing everything."""
    alive, new, first = ranked(model, ids, images), [], None
    for _ in range(steps):
        logits = run(model, ids, images, alive).logits[0, -1]
        first = logits if first is None else first
        new.append(int(logits.argmax()))
        ids = torch.cat([ids, logits.argmax()[None]])
    assert first is not None
    return first, new


def tiny(kernel: str = "eager") -> Any:
    model = tiny_vlm("llava", layers=6, attn_implementation=kernel)
    model.lm_head.weight.data[IMAGE_TOKEN] = 0  # a random model would say the placeholder now and then
    return model


def methods(order: str) -> list[Any]:
    both = [cca.CCA(), pyramiddrop.PyramidDrop(stages=STAGES)]
    return both if order == "cca first" else both[::-1]


def rows(model: Any) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Every row's tokens without padding, and its images."""
    inputs = vlm_inputs(model, PARTS)
    images = list(inputs["mm_encoder_outputs"]["image"].pooler_output)
    found = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        real = ids[mask.bool()]
        count = int((real == IMAGE_TOKEN).sum()) // SIDE**2
        found.append((real, images[:count]))
        images = images[count:]
    return found


def generated(model: Any, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    out = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("order", ["cca first", "pyramiddrop first"])
def test_both_equal_the_plain_computation_in_prefill_and_cached_decoding(order, kernel):
    """pre_decoder runs before pre_attention, so the order in which the two were written decides nothing."""
    plain, model = tiny(), tiny(kernel)
    expected = [reference(plain, ids, images, 5) for ids, images in rows(plain)]
    inputs = vlm_inputs(model, PARTS)
    with attach(model, *methods(order)), torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        tokens = generated(model, inputs)
        searched = generated(model, vlm_inputs(model, PARTS), num_beams=2)  # generate repeats the features in place
        alone = [generated(model, vlm_inputs(model, PARTS, rows=slice(r, r + 1)), num_beams=2)[0] for r in range(4)]
    torch.testing.assert_close(logits, torch.stack([first for first, _ in expected]), atol=1e-4, rtol=0)
    assert tokens == [new for _, new in expected]
    assert searched == alone
    # Each of the two matters: without one of them the figures are others.
    for one in methods(order):
        with attach(model, one), torch.no_grad():
            assert float((model(**vlm_inputs(model, PARTS)).logits[0, -1] - expected[0][0]).abs().max()) > 1e-2


def test_cached_steps_equal_steps_without_a_cache():
    """Later tokens follow the drops of the prompt; recomputation drops anew, so it is told to rank by the prompt."""
    model = tiny("sdpa")
    inputs = vlm_inputs(model, PARTS[:2])
    length = inputs["input_ids"].shape[1]

    def by_prompt(call):
        row = torch.zeros_like(call.input_ids, dtype=torch.bool)
        row[:, length - 1] = True
        return row

    drop = pyramiddrop.PyramidDrop(stages=STAGES, query=by_prompt)
    with attach(model, cca.CCA(), drop), torch.no_grad():
        out = model(**inputs, use_cache=True)
        ids, mask, cache = inputs["input_ids"], inputs["attention_mask"], out.past_key_values
        step = out.logits[:, -1]
        for _ in range(4):
            token = step.argmax(-1, keepdim=True)
            ids, mask = torch.cat([ids, token], dim=1), torch.cat([mask, torch.ones_like(token)], dim=1)
            step = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits[:, -1]
            cache_free = model(**{**inputs, "input_ids": ids, "attention_mask": mask}, use_cache=False).logits[:, -1]
            torch.testing.assert_close(step, cache_free, atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", ["cca first", "pyramiddrop first"])
def test_undo_is_exact(order):
    model = tiny("sdpa")
    inputs = vlm_inputs(model, PARTS)
    tokens = generated(model, inputs)
    before = fingerprint(model)
    with attach(model, *methods(order)) as session:
        assert generated(model, inputs) != tokens
        assert "cca" in session.describe()
        assert "pyramiddrop" in session.describe()
    assert fingerprint(model).differences(before) == []
    assert generated(model, inputs) == tokens


def test_gradients_flow_through_both():
    model = tiny("sdpa").train()
    inputs = vlm_inputs(model, PARTS, pad="right")
    hidden = (inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE_TOKEN)
    labels = inputs["input_ids"].masked_fill(hidden, -100)
    with attach(model, *methods("cca first")):
        model(**inputs, labels=labels, use_cache=False).loss.backward()
    found = [p.grad for p in model.model.language_model.parameters() if p.grad is not None]
    assert found
    assert all(torch.isfinite(g).all() for g in found)


def test_renumbering_is_refused_beside_rings():
    model = tiny()
    for renumbering in (pyramiddrop.PaperPyramidDrop(), pyramiddrop.PyramidDrop(positions="renumber")):
        with pytest.raises(PluginConflict, match="positions"):
            attach(model, cca.CCA(), renumbering)


@dataclass(eq=False)
class Norms:
    """A third party's observer: the mean norm of every layer's output."""

    traits = Traits(beams=True, assisted=True, static_cache=True, training=True)

    def __post_init__(self) -> None:
        self.seen: dict[int, float] = {}

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        if call.query_length > 1:
            self.seen[site.index] = float(hidden_states.norm(dim=-1).mean())


def test_an_observer_sees_the_layers_under_rings_and_changes_nothing():
    plain, model = tiny(), tiny()
    ids, images = rows(plain)[0]
    expected = [float(h.norm(dim=-1).mean()) for h in hidden_states(plain, ids, images)]
    inputs = vlm_inputs(model, PARTS[:1])
    with attach(model, cca.CCA()):
        alone = generated(model, inputs)
    for chosen in ([cca.CCA(), Norms()], [Norms(), cca.CCA()]):
        observer = next(m for m in chosen if isinstance(m, Norms))
        with attach(model, *chosen):
            assert generated(model, inputs) == alone
        assert [observer.seen[i] for i in range(6)] == pytest.approx(expected, abs=1e-4)


def hidden_states(model: Any, ids: torch.Tensor, images: list[torch.Tensor]) -> list[torch.Tensor]:
    """What every layer of the stock model returns, with positions and mask by hand."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, args, out: found.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.model.language_model.layers
    ]
    run(model, ids, images, {})
    for handle in handles:
        handle.remove()
    return found
