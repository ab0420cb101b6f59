"""Decoding with every kind of cache equals recomputing the whole text with explicit positions and mask."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle_cca import reference_logits
from paperhooks import attach
from paperhooks.errors import DataError
from paperhooks.testing import IMAGE_TOKEN, image_outputs, tiny_vlm, vlm_inputs
from paperhooks_cca import CCA
from transformers import DynamicCache, StaticCache

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")

#: One image; two images with text between; text alone; two adjacent images; an image at the start.
PARTS = ((3, 16, 5), (2, 16, 4, 16, 3), (9,), (4, 16, 0, 16, 2), (0, 16, 6))
STEPS = 5


def model_with(kernel="sdpa"):
    model = tiny_vlm("llava", layers=3, attn_implementation=kernel)
    model.lm_head.weight.data[IMAGE_TOKEN] = 0  # a random model would say the placeholder now and then
    return model


def features_of(model, parts=PARTS):
    """The features of every row's images, as vlm_inputs draws them."""
    pooled = vlm_inputs(model, parts)["mm_encoder_outputs"]["image"].pooler_output
    rows, at = [], 0
    for lengths in parts:
        count = sum(1 for length in lengths[1::2] if length)
        rows.append(list(pooled[at : at + count]))
        at += count
    return rows


def real_tokens(inputs, row):
    return inputs["input_ids"][row][inputs["attention_mask"][row].bool()]


def expected_tokens(model, ids, features, steps=STEPS, **options):
    """Greedy tokens by recomputing everything at each step."""
    new = []
    for _ in range(steps):
        with torch.no_grad():
            token = reference_logits(model, ids, features, **options)[-1].argmax()
        new.append(int(token))
        ids = torch.cat([ids, token[None]])
    return new


def generated(model, inputs, steps=STEPS, **options):
    out = model.generate(**inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}],
    ids=["dynamic", "no cache", "static"],
)
def test_a_left_padded_batch_generates_what_each_row_gives_by_recomputation(kernel, options):
    model = model_with(kernel)
    inputs, features = vlm_inputs(model, PARTS), features_of(model)
    expected = [expected_tokens(model, real_tokens(inputs, row), features[row]) for row in range(len(PARTS))]
    with attach(model, CCA()):
        assert generated(model, inputs, **options) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "reverse"},
        {"scheme": "manhattan"},
        {"scheme": "raster"},
        {"apply_mask": False},
        {"apply_positions": False},
    ],
    ids=str,
)
def test_schemes_and_ablations_generate_what_recomputation_gives(options):
    model = model_with()
    inputs, features = vlm_inputs(model, PARTS), features_of(model)
    reference = {
        "scheme": options.get("scheme", "concentric"),
        "positions": options.get("apply_positions", True),
        "mask": options.get("apply_mask", True),
    }
    expected = [
        expected_tokens(model, real_tokens(inputs, row), features[row], **reference) for row in range(len(PARTS))
    ]
    with attach(model, CCA(**options)):
        assert generated(model, inputs) == expected


@pytest.mark.parametrize("row", range(len(PARTS)))
def test_prompt_lookup(row):
    model = model_with()
    inputs, features = vlm_inputs(model, PARTS), features_of(model)
    expected = expected_tokens(model, real_tokens(inputs, row), features[row], 9)
    with attach(model, CCA()):
        alone = vlm_inputs(model, PARTS, rows=slice(row, row + 1))
        assert generated(model, alone, 9, prompt_lookup_num_tokens=3)[0] == expected


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_equal_those_without_a_cache_and_of_each_row_alone(beams):
    model = model_with()
    with attach(model, CCA()):
        # generate repeats the features it is given in place, so every call gets its own
        found = generated(model, vlm_inputs(model, PARTS), num_beams=beams)
        assert found == generated(model, vlm_inputs(model, PARTS), num_beams=beams, use_cache=False)
        for row in range(len(PARTS)):
            alone = vlm_inputs(model, PARTS, rows=slice(row, row + 1))
            assert generated(model, alone, num_beams=beams) == found[row : row + 1]


def loop(model, inputs, steps=STEPS, cache=None, mask=None):
    """A hand-written decoding loop that gives no positions, and a mask only where one is handed in."""
    given = {k: v for k, v in inputs.items() if k != "attention_mask"}
    new = []
    with torch.no_grad():
        for _ in range(steps):
            out = model(**given, attention_mask=mask, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            new.append(token)
            given = {"input_ids": token}
            mask = torch.cat([mask, torch.ones_like(token)], dim=1) if mask is not None else None
    return torch.cat(new, dim=1).tolist(), cache


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("own_cache", [True, False])
@pytest.mark.parametrize("row", [0, 1, 4])
def test_a_hand_written_loop_without_positions(row, own_cache, with_mask):
    model = model_with()
    alone = vlm_inputs(model, PARTS, rows=slice(row, row + 1))
    features = features_of(model)[row]
    expected = expected_tokens(model, alone["input_ids"][0], features)
    with attach(model, CCA()):
        cache = DynamicCache(config=model.config.text_config) if own_cache else None
        found, _ = loop(model, alone, cache=cache, mask=alone["attention_mask"] if with_mask else None)
    assert found == [expected]


def test_a_hand_written_loop_with_a_preallocated_cache():
    model = model_with()
    alone = vlm_inputs(model, PARTS, rows=slice(1, 2))
    expected = expected_tokens(model, alone["input_ids"][0], features_of(model)[1])
    with attach(model, CCA()):
        cache = StaticCache(config=model.config.text_config, max_cache_len=64)
        assert loop(model, alone, cache=cache, mask=alone["attention_mask"])[0] == [expected]
        cache.reset()
        assert loop(model, alone, cache=cache, mask=alone["attention_mask"])[0] == [expected]


@pytest.mark.parametrize("parts", [(4, 16), (16,), (3, 16, 0, 16)], ids=str)
def test_a_prompt_that_ends_in_an_image(parts):
    model = model_with()
    lengths = (0, 16) if parts == (16,) else parts
    alone = vlm_inputs(model, (lengths,))
    expected = expected_tokens(model, alone["input_ids"][0], features_of(model, (lengths,))[0])
    with attach(model, CCA()):
        assert generated(model, alone) == [expected]
        assert generated(model, alone, cache_implementation="static") == [expected]
        assert loop(model, alone)[0] == [expected]


@pytest.mark.parametrize("first_turn", [(3, 16, 5), (6,)], ids=["an image", "text"])
def test_a_second_turn_with_a_new_image_on_the_same_cache(first_turn, recwarn):
    model = model_with()
    first, second = vlm_inputs(model, (first_turn,)), vlm_inputs(model, ((2, 16, 4),), seed=1)
    features = (features_of(model, (first_turn,))[0] if len(first_turn) > 1 else []) + list(
        second["mm_encoder_outputs"]["image"].pooler_output
    )
    with attach(model, CCA()):
        answer, cache = loop(model, first, 3)
        tokens = torch.cat([first["input_ids"][0], torch.tensor(answer[0][:-1])])
        assert cache.get_seq_length() == len(tokens)
        told = torch.cat([torch.tensor(answer)[:, -1:], second["input_ids"]], dim=1)
        found, _ = loop(model, {**second, "input_ids": told}, cache=cache)
    whole = torch.cat([tokens, told[0]])
    assert found == [expected_tokens(model, whole, features)]
    assert not [w for w in recwarn if "attached after" in str(w.message)]


def test_generate_goes_on_over_the_cache_of_an_earlier_turn():
    model = model_with()
    first = vlm_inputs(model, ((3, 16, 5),))
    with attach(model, CCA()):
        cache = DynamicCache(config=model.config.text_config)
        out = model.generate(**first, past_key_values=cache, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        ids = torch.cat([out, torch.tensor([[7, 8, 9]])], dim=1)
        again = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=3,
            min_new_tokens=3, do_sample=False,
        )  # fmt: skip
    expected = expected_tokens(model, ids[0], features_of(model, ((3, 16, 5),))[0], 3)
    assert again[0, ids.shape[1] :].tolist() == expected


def test_two_caches_in_turn():
    model = model_with()
    rows = [vlm_inputs(model, PARTS, rows=slice(r, r + 1)) for r in (0, 1)]
    features = features_of(model)
    expected = [expected_tokens(model, rows[i]["input_ids"][0], features[i]) for i in (0, 1)]
    found: list[list[int]] = [[], []]
    with attach(model, CCA()), torch.no_grad():
        given, caches = [dict(row) for row in rows], [None, None]
        for _ in range(STEPS):
            for i in (0, 1):
                out = model(**given[i], past_key_values=caches[i], use_cache=True)
                caches[i] = out.past_key_values
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                found[i].append(int(token))
                given[i] = {"input_ids": token}
    assert found == expected


def test_a_copied_cache_goes_on_by_itself():
    model = model_with()
    alone = vlm_inputs(model, PARTS, rows=slice(0, 1))
    with attach(model, CCA()), torch.no_grad():
        out = model(**alone, use_cache=True)
        twin = copy.deepcopy(out.past_key_values)
        token = out.logits[:, -1:].argmax(-1)
        one = model(input_ids=token, past_key_values=out.past_key_values).logits
        two = model(input_ids=token, past_key_values=twin).logits
    assert torch.equal(one, two)


def test_a_cache_filled_before_attaching_says_so_once_and_goes_on_behind_it():
    model = model_with()
    first, second = vlm_inputs(model, ((3, 16, 5),)), vlm_inputs(model, ((2, 16, 4),), seed=1)
    with torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
    seen = []
    with attach(model, CCA()), torch.no_grad():
        handle = model.model.language_model.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
        )
        model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
        with pytest.warns(UserWarning, match="attached after this cache was filled"):
            model(**{k: v for k, v in second.items() if k != "attention_mask"}, past_key_values=cache)
        handle.remove()
    assert seen[0].flatten().tolist() == [24, 25]
    assert seen[1].flatten().tolist()[:4] == [26, 27, 28, 28]


def test_a_cache_cut_into_an_image_is_refused():
    model = model_with()
    alone = vlm_inputs(model, PARTS, rows=slice(0, 1))
    with attach(model, CCA()), torch.no_grad():
        cache = model(**alone, use_cache=True).past_key_values
        cache.crop(-2)  # behind the image: fine
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)
        cache.crop(-8)
        with pytest.raises(DataError, match=r"cut back to 15 tokens, into an image that ends at 19"):
            model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_an_emptied_cache_starts_anew_with_a_single_token():
    model = model_with()
    alone = vlm_inputs(model, PARTS, rows=slice(0, 1))
    with attach(model, CCA()), torch.no_grad():
        cache = model(**alone, use_cache=True).past_key_values
        cache.crop(-cache.get_seq_length())
        expected = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0]
        found = [model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, 0] for token in (5, 6, 7)]
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-5, rtol=1e-4)


def test_a_cache_of_other_rows_is_refused():
    model = model_with()
    with attach(model, CCA()), torch.no_grad():
        cache = model(**vlm_inputs(model, PARTS[:2]), use_cache=True).past_key_values
        with pytest.raises(DataError, match="filled with 2 rows and is used with 3"):
            model(input_ids=torch.ones(3, 1, dtype=torch.int64), past_key_values=cache)


def test_embeddings_with_a_visual_mask_equal_ids():
    model = model_with()
    alone = vlm_inputs(model, PARTS, rows=slice(1, 2))
    ids = alone["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    features = image_outputs(model, list(alone["mm_encoder_outputs"]["image"].pooler_output)).pooler_output
    embeds = embeds.masked_scatter((ids == IMAGE_TOKEN)[..., None], torch.cat(list(features)))
    with attach(model, CCA()), torch.no_grad():
        expected = model(**alone).logits
        torch.testing.assert_close(model(inputs_embeds=embeds, visual_mask=ids == IMAGE_TOKEN).logits, expected)
        tokens = model.generate(
            inputs_embeds=embeds, visual_mask=ids == IMAGE_TOKEN, max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
        assert tokens[0, -4:].tolist() == generated(model, alone, 4)[0]


def test_decoding_reads_nothing_from_the_device(monkeypatch):
    """A decode step costs a lookup: no value of a tensor is asked for, and the model gets no mask but its own."""
    model = model_with()
    alone = vlm_inputs(model, PARTS, rows=slice(0, 1))
    method = CCA()
    with attach(model, method), torch.no_grad():
        out = model(**alone, use_cache=True)
        asked: list[str] = []
        inside = {"on": False}
        original = CCA.pre_decoder

        for name in ("item", "nonzero", "tolist", "__bool__", "__int__", "cpu", "numpy"):
            plain = getattr(torch.Tensor, name)

            def counting(self, *args, _plain=plain, _name=name, **kwargs):
                if inside["on"]:
                    asked.append(_name)
                return _plain(self, *args, **kwargs)

            monkeypatch.setattr(torch.Tensor, name, counting)
        enter = next(h for h in model.model.language_model._forward_pre_hooks.values() if hasattr(h, "chain"))

        def watched(view, call, inputs):
            inside["on"] = True
            try:
                return original(method, view, call, inputs)
            finally:
                inside["on"] = False

        enter.chain.functions = (watched,)
        model(input_ids=torch.tensor([[5]]), past_key_values=out.past_key_values)
        assert asked == []
        model(**alone)
        assert asked  # the counter does count
