"""The rows that rank are looked up anew in what survives, at every stage; checked against a plain float64 reading."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import golden_pyramiddrop as golden
import paperhooks
import pytest
import torch
from paperhooks import Traits, hookimpl
from paperhooks.testing import image_outputs
from paperhooks.tokens import compact
from paperhooks_pyramiddrop import Drop, PyramidDrop, RandomDrop, Ranking, policies
from reading import IGNORE, Reading

STAGES = {2: 0.5, 4: 0.25, 6: 0.125}
MODES = ["renumber", "preserve"]
IMAGE = golden.IMAGE_TOKEN


def stages_of(meta):
    return dict(zip(meta["layers"], meta["ratios"], strict=True))


# -- the reading itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", golden.CASES_A + golden.CASES_E)
def test_the_reading_keeps_what_the_references_keep(case, mode):
    embeds, visual = golden.sequence(case)
    meta = golden.GOLDEN.get(case) or golden.REFERENCE[case]
    read = Reading(2 if "gqa" in case else 6).sample(embeds[0], visual[0], stages_of(meta), mode, protect=True)
    expected = golden.REFERENCE[f"{case}/{mode}"]
    assert read.kept == expected["kept_original"]
    assert int(Reading().logits(read.hidden[-1]).argmax()) == expected["greedy_tokens"][0]


@pytest.mark.parametrize("mode", MODES)
def test_the_reading_gives_the_official_loss(mode):
    case, tensors, reading = "C/two_padded", golden.TENSORS, Reading()
    found = []
    for i, n in enumerate(golden.GOLDEN[case]["image_tokens"]):
        real = tensors[f"{case}/attention_mask"][i].bool()
        ids, labels = (tensors[f"{case}/{name}"][i][real].tolist() for name in ("input_ids", "labels"))
        at = ids.index(golden.PLACEHOLDER)
        ids[at : at + 1], labels[at : at + 1] = [IMAGE] * n, [IGNORE] * n
        embeds = reading.embed(torch.tensor(ids))
        embeds[at : at + n] = tensors[f"{case}/image_features{i}"].double()
        visual = torch.tensor(ids) == IMAGE
        found.append(reading.sample(embeds, visual, stages_of(golden.GOLDEN[case]), mode, torch.tensor(labels)))
    expected = golden.REFERENCE[f"{case}/{mode}"]
    assert [read.kept for read in found] == expected["kept_original_per_sample_per_stage"]
    assert reading.loss(found) == pytest.approx(expected["loss"], abs=1e-9)


# -- samples -----------------------------------------------------------------------------------------------------------


def words(generator, n):
    return torch.randint(3, IMAGE, (n,), generator=generator).tolist()


def captions(seed, shapes=((2, 16, 5), (1, 12, 7), (0, 20, 4))):
    """Rows (ids, labels) in which the caption follows the image directly, and the features of the images."""
    generator = torch.Generator().manual_seed(seed)
    rows, features = [], []
    for before, image, after in shapes:
        caption = words(generator, after)
        rows.append((words(generator, before) + [IMAGE] * image + caption, [IGNORE] * (before + image) + caption))
        features.append(torch.randn(image, 48, generator=generator))
    return rows, features


def collated(rows, pad):
    width = max(len(ids) for ids, _ in rows)

    def line(values, fill):
        rest = [fill] * (width - len(values))
        return values + rest if pad == "right" else rest + values

    return {
        "input_ids": torch.tensor([line(ids, 0) for ids, _ in rows]),
        "labels": torch.tensor([line(labels, IGNORE) for _, labels in rows]),
        "attention_mask": torch.tensor([line([1] * len(ids), 0) for ids, _ in rows]),
    }


def read_rows(rows, features, mode, labelled=True):
    """The reading of every row."""
    reading, images, found = Reading(), list(features), []
    for ids, labels in rows:
        tokens = torch.tensor(ids)
        embeds, visual = reading.embed(tokens), tokens == IMAGE
        embeds[visual] = images.pop(0).double()
        found.append(reading.sample(embeds, visual, STAGES, mode, torch.tensor(labels) if labelled else None))
    return reading, found


def kept_by(drops, batch):
    """The kept tokens of every row and stage, in the row's own numbering."""
    starts = [int(mask.argmax()) for mask in batch["attention_mask"]]
    return [[(drop.kept[row].nonzero()[:, 0] - start).tolist() for drop in drops] for row, start in enumerate(starts)]


# -- training: the label follows the image -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pad", ["right", "left"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_captions_right_behind_their_images(seed, pad, mode):
    rows, features = captions(seed)
    reading, read = read_rows(rows, features, mode)
    model, batch, drops = golden.llava().train(), collated(rows, pad), []
    method = PyramidDrop(stages=STAGES, positions=mode, protect_queries=False, restore_outputs=False, record=drops)
    with paperhooks.attach(model, method):
        out = model(**batch, mm_encoder_outputs={"image": image_outputs(model, features)})
    out.loss.backward()
    assert kept_by(drops, batch) == [one.kept for one in read]
    assert out.loss.item() == pytest.approx(reading.loss(read), abs=1e-5)
    for row, one in enumerate(read):  # the scores of every stage, also of those after the first row that ranked is gone
        start = int(batch["attention_mask"][row].argmax())
        for drop, scores in zip(drops, one.scores, strict=True):
            got = {i: float(drop.scores[row, start + i]) for i in scores}
            assert got == pytest.approx(scores, abs=1e-5)


def test_these_captions_lose_the_row_that_ranked_first():
    """The samples above are worth testing: the last image token, which ranks at the first stage, is dropped there."""
    lost = 0
    for seed in (0, 1, 2):
        rows, features = captions(seed)
        for (ids, _), one in zip(rows, read_rows(rows, features, "preserve")[1], strict=True):
            last = len(ids) - 1 - ids[::-1].index(IMAGE)
            lost += last not in one.kept[0]
    assert lost >= 3


@pytest.mark.parametrize("mode", MODES)
def test_two_turns_whose_answers_follow_images(mode):
    """Two query rows, both image tokens; each turn is looked up on its own."""
    generator = torch.Generator().manual_seed(7)
    first, second = words(generator, 3), words(generator, 4)
    ids = [5, *[IMAGE] * 10, *first, 6, *[IMAGE] * 10, *second]
    labels = [IGNORE] * 11 + first + [IGNORE] * 11 + second
    features = [torch.randn(10, 48, generator=generator) for _ in range(2)]
    reading, read = read_rows([(ids, labels)], [torch.cat(features)], mode)
    model, batch, drops = golden.llava().train(), collated([(ids, labels)], "right"), []
    method = PyramidDrop(stages=STAGES, positions=mode, protect_queries=False, restore_outputs=False, record=drops)
    with paperhooks.attach(model, method):
        out = model(**batch, mm_encoder_outputs={"image": image_outputs(model, features)})
    assert kept_by(drops, batch) == [read[0].kept]
    assert out.loss.item() == pytest.approx(reading.loss(read), abs=1e-5)


# -- inference: a prompt that ends in an image -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, 3, 4])
@torch.no_grad()
def test_prompts_that_end_in_an_image(seed, mode):
    shapes = ((4, 16, 0), (2, 12, 0), (3, 9, 5))
    rows, features = captions(seed, shapes)
    reading, read = read_rows(rows, features, mode, labelled=False)
    model, batch, drops = golden.llava(), collated(rows, "left"), []
    del batch["labels"]
    method = PyramidDrop(stages=STAGES, positions=mode, protect_queries=False, record=drops)
    with paperhooks.attach(model, method), pytest.warns(UserWarning, match="its logits are zeros"):
        logits = model(**batch, mm_encoder_outputs={"image": image_outputs(model, features)}).logits
    assert kept_by(drops, batch) == [one.kept for one in read]
    for row, one in enumerate(read):
        alive = logits[row][drops[-1].kept[row]]
        torch.testing.assert_close(alive.double(), reading.logits(one.hidden), atol=1e-4, rtol=0)


# -- functions, and samples in which nothing ranks any more ------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["captions", "prompts"])
def test_a_function_that_marks_the_same_rows_ranks_the_same(training):
    rows, features = captions(0) if training else captions(0, ((4, 16, 0), (2, 12, 0)))
    model, batch = golden.llava(), collated(rows, "left")
    if not training:
        del batch["labels"]

    def marked(call):
        if not training:
            return torch.arange(call.query_length).expand(call.input_ids.shape) == call.query_length - 1
        ahead = torch.nn.functional.pad(call.labels[:, 1:], (0, 1), value=IGNORE)
        return (call.labels == IGNORE) & (ahead != IGNORE)

    found = []
    for query in ("auto", marked):
        expected = nullcontext() if training else pytest.warns(UserWarning, match="its logits are zeros")
        drops: list[Drop] = []
        method = PyramidDrop(stages=STAGES, query=query, protect_queries=False, restore_outputs=False, record=drops)
        with paperhooks.attach(model, method), torch.no_grad(), expected:
            model(**batch, mm_encoder_outputs={"image": image_outputs(model, features)})
        found.append(kept_by(drops, batch))
    assert found[0] == found[1]


def test_a_sample_in_which_nothing_ranks_any_more_is_left_alone():
    """The only row that ranks belongs to an image that goes entirely, and nothing stands in front of it."""
    model, drops = golden.llava(), []
    ids = torch.tensor([[IMAGE] * 3 + [5, 6, 7] + [IMAGE] * 8 + [8]])
    labels = torch.full_like(ids, IGNORE)
    labels[0, 3:5] = ids[0, 3:5]
    features = [torch.randn(n, 48, generator=torch.Generator().manual_seed(n)) for n in (3, 8)]

    def first_image_last(given: Ranking):
        return torch.arange(given.visual.shape[1]).expand(given.visual.shape).float()

    method = PyramidDrop(
        stages={2: 0.5, 4: 0.25}, rank=first_image_last, protect_queries=False, restore_outputs=False, record=drops
    )
    with paperhooks.attach(model, method), torch.no_grad():
        out = model(input_ids=ids, labels=labels, mm_encoder_outputs={"image": image_outputs(model, features)})
    assert [drop.layer for drop in drops] == [2]
    assert int((drops[0].kept & drops[0].visual).sum()) == 5
    assert torch.isfinite(out.loss)


def test_labels_on_image_tokens_go_with_them():
    """A labelled image token that is dropped asks for nothing any more, so the row in front of it does not rank."""
    model, seen = golden.llava(), []
    ids = torch.tensor([[5, IMAGE, IMAGE, IMAGE, IMAGE, 6, 7, 8]])
    labels = torch.full_like(ids, IGNORE)
    labels[0, 4], labels[0, 7] = IMAGE, 8

    def spy(given: Ranking):
        seen.append(given.query_rows[given.query_valid].tolist())
        return -torch.arange(given.visual.shape[1]).expand(given.visual.shape).float()

    method = PyramidDrop(stages={2: 0.5, 4: 0.25}, rank=spy, protect_queries=False, restore_outputs=False)
    with paperhooks.attach(model, method), torch.no_grad():
        features = [torch.randn(4, 48, generator=torch.Generator().manual_seed(0))]
        model(input_ids=ids, labels=labels, mm_encoder_outputs={"image": image_outputs(model, features)})
    assert seen == [[3, 6], [4]]  # at layer 4 the tokens 0, 1, 2, 5, 6, 7 are there, and 6 is the fifth


# -- behind another method that drops ----------------------------------------------------------------------------------


@dataclass(eq=False)
class DropsText:
    """Drops the first real token of a prompt at one layer, and the last one if asked."""

    layer: int = 1
    last: bool = False

    traits = Traits(writes=frozenset({"tokens"}), training=True)

    def selects_layer(self, site: Any) -> bool:
        return site.index == self.layer

    @hookimpl
    def pre_attention(self, site: Any, call: Any, inputs: Any) -> Any:
        if call.query_length == 1:
            return None
        real = inputs.padding_mask
        place = real.long().cumsum(1)
        keep = real & (place > 1) & ~(self.last & (place == real.sum(1, keepdim=True)))
        index, valid = compact(keep, int(keep.sum(1).max()), "left" if bool(real[:, 0].all()) else "right")
        return inputs.select(index, valid)


@torch.no_grad()
def test_behind_a_method_that_drops_the_last_token_the_one_before_it_ranks():
    rows, features = captions(1, ((3, 16, 4), (3, 12, 8)))
    model, batch, seen, drops = golden.llava(), collated(rows, "left"), [], []
    del batch["labels"]

    def spy(given: Ranking):
        seen.append((given.query_rows[given.query_valid].tolist(), given.hidden_states.shape[1]))
        return policies.last_token(given)

    with paperhooks.attach(model, DropsText(last=True), PyramidDrop(stages=STAGES, rank=spy, record=drops)):
        model(**batch, mm_encoder_outputs={"image": image_outputs(model, features)})
    assert seen[0] == ([20, 20], 21)
    assert [int(d.kept[0].sum()) for d in drops] == [5 + 8, 5 + 4, 5 + 2]
    assert [int(d.kept[1].sum()) for d in drops] == [9 + 6, 9 + 3, 9 + 1]


@torch.no_grad()
def test_two_schedules_on_one_model_count_what_the_other_left():
    rows, features = captions(1, ((3, 16, 4), (3, 12, 8)))
    model, batch, drops = golden.llava(), collated(rows, "left"), []
    del batch["labels"]
    with paperhooks.attach(model, RandomDrop(stages={3: 0.25}), PyramidDrop(stages=STAGES, record=drops)):
        model(**batch, mm_encoder_outputs={"image": image_outputs(model, features)})
    assert [(d.kept & d.visual).sum(1).tolist() for d in drops] == [[8, 6], [2, 1]]


@pytest.mark.parametrize("pad", ["left", "right"])
@torch.no_grad()
def test_between_its_stages_another_method_drops_text(pad):
    """Ragged rows, counted anew at every stage that follows; each gives what it gives alone."""
    shapes = ((3, 16, 4), (5, 12, 2), (1, 9, 8))
    rows, features = captions(2, shapes)
    model, found = golden.llava(), []
    for batch, images in [(rows, features), *(([row], [image]) for row, image in zip(rows, features, strict=True))]:
        inputs, drops = collated(batch, pad), []
        del inputs["labels"]
        with paperhooks.attach(model, PyramidDrop(stages={2: 0.5, 4: 0.25, 6: 0.2}, record=drops), DropsText(layer=3)):
            logits = model(**inputs, mm_encoder_outputs={"image": image_outputs(model, images)}).logits
        found.append((kept_by(drops, inputs), logits))
    assert found[0][0] == [one[0][0] for one in found[1:]]
    for row, (_, alone) in enumerate(found[1:]):
        n = len(rows[row][0])
        together = found[0][1][row, :n] if pad == "right" else found[0][1][row, -n:]
        torch.testing.assert_close(together, alone[0], atol=1e-4, rtol=1e-4)
