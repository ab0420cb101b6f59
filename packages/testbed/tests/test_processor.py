"""The processor: 196 image tokens, left padding, a round trip through its files, no torchvision."""

from __future__ import annotations

import torch
from paperhooks_testbed import prompt, question_set
from paperhooks_testbed.training.packer import pixels
from paperhooks_testbed.world import IMAGE_TOKENS
from transformers import AutoProcessor, LlavaProcessor


def test_one_prompt_becomes_196_image_tokens(processor):
    question = question_set("dev", 1)[0]
    inputs = processor(images=question.image(), text=prompt(question), return_tensors="pt")
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    ids = inputs["input_ids"][0]
    assert int((ids == image_id).sum()) == IMAGE_TOKENS == 196
    assert ids[0] == processor.tokenizer.bos_token_id
    assert processor.decode(ids[197:]) == question.text
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)


def test_pixels_in_training_are_those_of_the_processor(processor):
    question = question_set("dev", 3)[2]
    inputs = processor(images=question.image(), text=prompt(question), return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], pixels([question.scene]), rtol=0, atol=1e-6)


def test_batches_are_padded_on_the_left(processor):
    questions = question_set("dev", 5)
    texts = [prompt(q) for q in questions]
    inputs = processor(images=[q.image() for q in questions], text=texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"]
    assert mask.sum(1).tolist() == [197 + len(q.text.split()) for q in questions]
    assert bool((mask[:, -1] == 1).all())
    assert bool((mask.diff(dim=1) >= 0).all())


def test_files_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    question = question_set("dev", 1)[0]
    for again in (LlavaProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(again, LlavaProcessor)
        first = processor(images=question.image(), text=prompt(question), return_tensors="pt")
        second = again(images=question.image(), text=prompt(question), return_tensors="pt")
        assert all(torch.equal(first[key], second[key]) for key in first)
