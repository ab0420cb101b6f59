"""Settings that decide an answer decide the run: half of it is never answered under others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_tasks import Echo, tiny_model, word_tokenizer
from paperhooks.errors import DataError
from paperhooks.generation import TransformersBackend
from paperhooks_evaluation import evaluate
from test_resuming import tiny_llava_with_processor


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([{"id": f"q{i}", "prompt": f"w{i}", "answer": "w1"} for i in range(4)]))
    return file


def setting(path: str, value: Any) -> Callable[[Any, Any], None]:
    """Sets an attribute of the model (m) or the processor (p), such as ``p.image_processor.size``."""

    def change(model: Any, processor: Any) -> None:
        *owners, name = path.split(".")
        owner = {"m": model, "p": processor}[owners[0]]
        for part in owners[1:]:
            owner = getattr(owner, part)
        setattr(owner, name, value)

    return change


def lowercase(model: Any, processor: Any) -> None:
    from tokenizers.normalizers import Lowercase

    processor.tokenizer.backend_tokenizer.normalizer = Lowercase()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (setting("p.image_processor.size", {"height": 8, "width": 8}), r"processor\.image_processor\.size"),
        (setting("p.image_processor.image_std", [1.0, 1.0, 1.0]), r"processor\.image_processor\.image_std = \[0"),
        (setting("p.image_processor.resample", 0), r"processor\.image_processor\.resample = 3, not 0"),
        (setting("p.image_processor.do_rescale", False), r"image_processor\.do_rescale = True, not False"),
        (setting("p.image_processor.min_pixels", 64), r"image_processor\.min_pixels = None, not 64"),
        (setting("p.num_additional_image_tokens", 0), r"processor\.num_additional_image_tokens = 1, not 0"),
        (setting("p.chat_template", "{{ messages }}"), "chat_template"),
        (setting("p.tokenizer.eos_token", "w5"), r"tokenizer\."),
        (setting("p.tokenizer.clean_up_tokenization_spaces", True), "clean_up_tokenization_spaces"),
        (lowercase, r"tokenizer\.rules"),
        (setting("m.generation_config.encoder_repetition_penalty", 1.5), r"generation\.encoder_repetition_penalty"),
        (setting("m.generation_config.renormalize_logits", True), r"generation\.renormalize_logits = None, not True"),
        (setting("m.generation_config.a_setting_of_tomorrow", 1), r"generation\.a_setting_of_tomorrow = None, not 1"),
        (setting("m.config.text_config.rms_norm_eps", 0.1), r"config\.text_config\.rms_norm_eps = 1e-06, not 0\.1"),
        (setting("m.config.vision_feature_layer", -1), r"config\.vision_feature_layer = -2, not -1"),
    ],
)
def test_a_setting_that_decides_answers_is_refused_by_name(data: Path, tmp_path: Path, change: Any, named: str) -> None:
    model, processor = tiny_llava_with_processor()
    run = {"data": data, "out": tmp_path / "run", "report": False}
    evaluate(model, processor, Echo(), limit=2, **run)
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()
    change(model, processor)
    with pytest.raises(DataError, match=rf"inputs\.{named}|inputs\..*{named}"):
        evaluate(model, processor, Echo(), **run)
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before


def test_what_cannot_matter_goes_on(data: Path, tmp_path: Path) -> None:
    """Sampling, where things lie, what padded and cut last, and one more round of saving and loading."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model, processor = tiny_llava_with_processor()
    run = {"data": data, "out": tmp_path / "run", "report": False}
    evaluate(model, processor, Echo(), limit=1, **run)
    model.generation_config.temperature, model.generation_config.do_sample = 0.3, True
    model.generation_config.output_scores = True
    processor.tokenizer(["w1 w2", "w3"], padding="max_length", truncation=True, max_length=8)
    evaluate(model, processor, Echo(), limit=2, **run)
    model.generation_config.output_scores = None
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert evaluate(loaded, LlavaProcessor.from_pretrained(tmp_path / "model"), Echo(), **run).headline.n == 4


def test_a_tokenizer_alone_is_told_by_its_rules() -> None:
    model = tiny_model()
    first = TransformersBackend(model, word_tokenizer()).describe()
    assert first == TransformersBackend(model, word_tokenizer()).describe()
    assert json.loads(json.dumps(first)) == first
    other = TransformersBackend(model, word_tokenizer("more")).describe()
    assert {key for key in first if first[key] != other[key]} == {"tokenizer"}
