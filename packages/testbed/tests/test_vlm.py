"""The shipped model: it answers, it needs the image, and it needs it below the first layers."""

from __future__ import annotations

import json
from math import isclose

import pytest
import torch
from paperhooks.io import hash_file
from paperhooks_testbed import (
    Share,
    accuracy,
    answer,
    depth_profile,
    load_vlm,
    noise_image,
    prompt,
    question_set,
    vlm_folder,
)


def test_the_card_belongs_to_the_weights():
    weights = vlm_folder() / "model.safetensors"
    results = json.loads((vlm_folder() / "results.json").read_text())
    assert results["sha256"] == hash_file(weights)
    assert hash_file(weights) in (vlm_folder() / "MODEL_CARD.md").read_text()
    assert sum(path.stat().st_size for path in vlm_folder().iterdir()) < 12e6
    right, total = results["accuracy"]["all"]
    assert total == 1000
    assert right / total >= 0.85


def test_accuracy_and_noise_on_held_out_questions(vlm):
    questions = question_set("test", 200, seed=1)
    own = accuracy(*vlm, questions)
    noise = accuracy(*vlm, questions, [noise_image(i) for i in range(len(questions))])
    assert own["all"].value >= 0.85, own
    assert own["all"].value - noise["all"].value >= 0.35, noise


@pytest.mark.slow
def test_accuracy_on_a_thousand_held_out_questions(vlm):
    own = accuracy(*vlm, question_set("test", 1000))
    results = json.loads((vlm_folder() / "results.json").read_text())
    assert own["all"].value >= 0.85
    # Another machine's sums may round another way, but only a few close calls can change.
    assert abs(own["all"].right - results["accuracy"]["all"][0]) <= 5


def test_dropping_the_image_hurts_early_and_not_late(vlm):
    profile = [share.value for share in depth_profile(*vlm, question_set("test", 45, seed=2))]
    assert len(profile) == 9
    assert profile[0] < 0.5
    assert profile[2] < profile[-1] - 0.3
    assert profile[-2] > profile[-1] - 0.1
    middle = [value for value in profile if profile[0] + 0.1 < value < profile[-1] - 0.1]
    assert middle, profile


def test_the_profile_is_the_same_with_both_attention_kernels(vlm):
    questions = question_set("test", 5, seed=3)
    eager = load_vlm(attn_implementation="eager")
    assert depth_profile(*vlm, questions, batch_size=3) == depth_profile(*eager, questions)


def test_the_last_depth_is_the_model_itself(vlm):
    questions = question_set("test", 10, seed=4)
    assert depth_profile(*vlm, questions)[-1] == accuracy(*vlm, questions)["all"]


def test_batches_answer_like_single_prompts(vlm):
    questions = question_set("test", 10, seed=5)
    images, texts = [q.image() for q in questions], [prompt(q) for q in questions]
    assert answer(*vlm, images, texts, batch_size=10) == answer(*vlm, images, texts, batch_size=1)
    with pytest.raises(ValueError, match="got 1 images and 10 prompts"):
        answer(*vlm, images[:1], texts)


def test_generate_stops_after_one_word(vlm):
    model, processor = vlm
    question = question_set("test", 1, ["colour"], seed=6)[0]
    inputs = processor(images=question.image(), text=prompt(question), return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert len(output) == 2
    assert output[1] == processor.tokenizer.eos_token_id


def test_loading_in_another_dtype_keeps_the_answers():
    questions = question_set("test", 20, seed=7)
    model, processor = load_vlm(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert accuracy(model, processor, questions)["all"].value >= 0.75


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accuracy_on_a_gpu(dtype):
    model, processor = load_vlm("cuda", dtype)
    assert accuracy(model, processor, question_set("test", 200, seed=1))["all"].value >= 0.85


def test_wilson_interval_of_a_known_case():
    low, high = Share(90, 100).interval
    assert isclose(low, 0.8256, abs_tol=1e-4)
    assert isclose(high, 0.9448, abs_tol=1e-4)
    assert Share(0, 0).interval == (0.0, 1.0)


def test_noise_is_seeded():
    assert noise_image(1).tobytes() == noise_image(1).tobytes() != noise_image(2).tobytes()
    assert noise_image(1).size == (224, 224)
