"""What a caller hands over is checked once, by core, for every method: visual masks and target masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from paperhooks import DataError, HooksTrainerMixin, Traits, attach, hookimpl
from paperhooks.testing import tiny_llama, tiny_vlm, vlm_inputs
from transformers import Trainer, TrainingArguments

PARTS = ((3, 12, 5), (5, 8, 4))


@dataclass(eq=False)
class Look:
    """Notes the masks of every forward."""

    traits = Traits(beams=True, assisted=True, training=True)

    def __post_init__(self) -> None:
        self.images: list[Any] = []
        self.targets: list[Any] = []

    @hookimpl
    def pre_decoder(self, call):
        self.images.append(call.image_mask)
        self.targets.append(call.target_mask)


def embeddings(rows: slice = slice(None)):
    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, PARTS, rows=rows)
    visual = inputs["input_ids"] == 95
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    return model, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}, visual


WRONG = {
    "short": lambda mask: mask[:, :10],
    "long": lambda mask: torch.nn.functional.pad(mask, (0, 1)),
    "one row for two": lambda mask: mask[:1],
    "a row too many": lambda mask: torch.cat([mask, mask[:1]]),
    "flat": lambda mask: mask[0],
    "numbers": lambda mask: mask.long(),
    "floats": lambda mask: mask.float(),
    "a list": lambda mask: mask.tolist(),
}


@pytest.mark.parametrize("name", ["visual_mask", "target_mask"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_mask_that_does_not_fit_a_call_is_refused(wrong, name):
    model, inputs, visual = embeddings()
    with attach(model, Look()), torch.no_grad():
        with pytest.raises(DataError, match=rf"{name} is .*; expected bool \[2, 20\]"):
            model(**inputs, **{name: WRONG[wrong](visual)})
        with pytest.raises(DataError, match=rf"{name} is"):
            model.model.language_model(**inputs, **{name: WRONG[wrong](visual)})
        model(**inputs, **{name: visual})


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mask_that_does_not_fit_the_prompt_is_refused_by_generate(wrong):
    model, inputs, visual = embeddings()
    with attach(model, Look()):
        for options in ({}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
            with pytest.raises(DataError, match="visual_mask"):
                model.generate(**inputs, **options, visual_mask=WRONG[wrong](visual), max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 1), ({"num_beams": 3}, 3), ({"num_return_sequences": 2, "do_sample": True}, 2), ({"use_cache": False}, 1)],
)
def test_rows_of_beams_and_returned_sequences_have_their_prompts_mask(options, rows):
    model, inputs, visual = embeddings()
    method = Look()
    with attach(model, method):
        model.generate(**inputs, **options, visual_mask=visual, max_new_tokens=3)
    assert torch.equal(method.images[0], visual.repeat_interleave(rows, 0))
    ahead = 0 if "use_cache" not in options else visual.shape[1]  # without a cache every forward holds the prompt
    assert all(mask is None or not mask[:, ahead:].any() for mask in method.images[1:])


def test_the_mask_of_a_second_turn_is_the_part_that_is_new():
    from paperhooks.compat import cache_parameter, dynamic_cache

    model = tiny_vlm("llava", layers=2)
    inputs = vlm_inputs(model, ((3, 12, 5),))
    ids = torch.cat([inputs["input_ids"], torch.tensor([[7, 95, 95, 8]])], 1)
    visual, method = ids == 95, Look()
    cache = dynamic_cache(model)
    given = {cache_parameter(model.forward): cache}
    with attach(model, method), torch.no_grad():
        model(**inputs, **given)
        model.generate(ids, visual_mask=visual, max_new_tokens=1, **given)
    assert method.images[-1].tolist() == [[False, True, True, False]]


def test_targets_are_read_off_labels_or_given_beside_them():
    model, method = tiny_llama(layers=1), Look()
    ids = torch.tensor([[5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 7, 8]])
    wanted = [[False, False, True, True]]
    with attach(model, method):
        model(ids, labels=labels)
        model(ids, target_mask=labels != -100)
        model(ids, completion_mask=(labels != -100).long())
        model(ids, labels=labels, shift_labels=torch.tensor([[-100, 7, 8, -100]]))
        model(ids)
    assert [None if m is None else m.tolist() for m in method.targets] == [wanted] * 4 + [None]


class Batches(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.tensor([5, 6, 7, 8]) + index
        return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(4) < 2, -100)}


@pytest.mark.parametrize("taken", ["label smoothing", "a loss function"])
def test_a_trainer_that_takes_the_labels_away_leaves_the_targets_known(tmp_path, taken):
    class HooksTrainer(HooksTrainerMixin, Trainer):
        pass

    model, method = tiny_llama(layers=1), Look()
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "max_steps": 2, "save_strategy": "no"}
    if taken == "label smoothing":
        options["label_smoothing_factor"] = 0.1
    own = None if "label_smoothing_factor" in options else lambda outputs, labels, **_: outputs.logits.mean()
    arguments = TrainingArguments(**options, disable_tqdm=True)
    with attach(model, method):
        HooksTrainer(model, arguments, train_dataset=Batches(), compute_loss_func=own).train()
    assert method.targets
    assert all(mask[:, :2].sum() == 0 and mask[:, 2:].all() for mask in method.targets)


def test_a_forward_on_another_prompt_inside_generate_has_masks_of_its_own():
    from transformers import LogitsProcessor

    model, inputs, visual = embeddings(slice(0, 1))
    method, other = Look(), torch.full((1, visual.shape[1]), 7)
    inside = []

    class Nested(LogitsProcessor):
        def __call__(self, input_ids, scores):
            model(other, use_cache=True)
            inside.append(method.images[-1])
            return scores

    with attach(model, method):
        model.generate(**inputs, visual_mask=visual, max_new_tokens=3, logits_processor=[Nested()])
    assert torch.equal(method.images[0], visual)
    assert len(inside) == 3
    assert not any(mask.any() for mask in inside)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}])
def test_virtual_tokens_before_the_prompt_move_its_mask(options):
    """Prompt tuning puts tokens before the embeddings that ``generate`` was given a mask for."""
    peft = pytest.importorskip("peft")
    model, _, visual = embeddings(slice(0, 1))
    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5, "num_layers": 2, "token_dim": 32}
    wrapper = peft.get_peft_model(model, peft.PromptTuningConfig(**settings, num_attention_heads=4)).eval()
    method = Look()
    ids = torch.full((1, visual.shape[1]), 7)
    with attach(wrapper, method), torch.no_grad():
        wrapper.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), visual_mask=visual, max_new_tokens=2, **options
        )
    assert torch.equal(method.images[0][:, 5:], visual)
    assert not method.images[0][:, :5].any()
