"""What decides a result decides the run, by content: weights, processors, tokenizers, settings; nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from paperhooks.errors import PaperhooksError
from paperhooks.generation import TransformersBackend
from paperhooks.testing import tiny_text
from paperhooks_evaluation import evaluate
from paperhooks_mathneuro import apply, collect
from paperhooks_mathneuro import select as isolate
from paperhooks_miniplm import byte_tokenizer, convert, diff, open_rows, pack, plan, score
from test_two_runs import ROWS, Echo
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = ["A sentence. Another one.", "What is it? It is this."]


def words(**options: Any) -> Any:
    """A tokenizer of bytes with a chat template."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    inside = Tokenizer(models.WordLevel({sign: i for i, sign in enumerate(["<eos>", *signs])}, unk_token="<eos>"))
    inside.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(False, use_regex=False),
                                                    pre_tokenizers.Split("", "isolated")])  # fmt: skip
    inside.decoder = decoders.ByteLevel()
    if options.pop("lower", False):
        inside.normalizer = normalizers.Lowercase()
    made = PreTrainedTokenizerFast(tokenizer_object=inside, eos_token="<eos>", pad_token="<eos>", **options)
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def model() -> Any:
    return tiny_text(layers=2, vocab_size=320)


def asked(out: Path, changed: Callable[[Any, Any], None] | None = None) -> Any:
    """An evaluation of a tiny model, whose model and tokenizer may be changed before."""
    own, tokenizer = model(), words()
    if changed is not None:
        changed(own, tokenizer)
    return evaluate(own, tokenizer, Echo(), data="x", out=out, report=False, max_new_tokens=2)


def weights(own: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        next(own.parameters()).view(-1)[0] += 1


#: Changes of what decides an answer; whether to draw and how many beams is decided by the evaluation.
DECIDES: dict[str, Callable[[Any, Any], None]] = {
    "weights": weights,
    "repetition penalty": lambda own, _: setattr(own.generation_config, "repetition_penalty", 1.3),
    "no repeats": lambda own, _: setattr(own.generation_config, "no_repeat_ngram_size", 2),
    "bad words": lambda own, _: setattr(own.generation_config, "bad_words_ids", [[5]]),
    "end": lambda own, _: setattr(own.generation_config, "eos_token_id", [0, 7]),
    "watermark-like": lambda own, _: setattr(own.generation_config, "exponential_decay_length_penalty", [5, 1.1]),
    "chat template": lambda _, words: setattr(words, "chat_template", words.chat_template + "!"),
    "rules of the tokenizer": lambda _, words: setattr(words.backend_tokenizer, "normalizer", normalizers.Lowercase()),
    "rope": lambda own, _: own.config.__dict__.update(rms_norm_eps=1e-2),
}


@pytest.mark.parametrize("what", DECIDES)
def test_what_decides_a_response_decides_the_run(tmp_path: Path, what: str) -> None:
    asked(tmp_path / "run")
    with pytest.raises(PaperhooksError, match=r"use another folder|force_new"):
        asked(tmp_path / "run", DECIDES[what])


#: Changes of what does not.
CIRCUMSTANCES: dict[str, Callable[[Any, Any], None]] = {
    "nothing": lambda *_: None,
    "name": lambda own, _: setattr(own.config, "_name_or_path", "elsewhere"),
    "name of the tokenizer": lambda _, words: setattr(words, "name_or_path", "elsewhere"),
    "version": lambda own, _: setattr(own.config, "transformers_version", "4.0.0"),
    "outputs": lambda own, _: setattr(own.generation_config, "output_scores", True),
}


@pytest.mark.parametrize("what", CIRCUMSTANCES)
def test_what_decides_nothing_does_not(tmp_path: Path, what: str) -> None:
    wanted = asked(tmp_path / "run")
    assert asked(tmp_path / "run", CIRCUMSTANCES[what]).first.records == wanted.first.records


@pytest.mark.parametrize("setting", ["size", "image_mean", "image_std", "resample", "do_rescale", "rescale_factor"])
def test_settings_of_a_processor_decide(setting: str) -> None:
    from paperhooks.testing import tiny_vlm
    from transformers import CLIPImageProcessor, LlavaProcessor

    def described(**changed: Any) -> str:
        images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **changed)
        processor = LlavaProcessor(images, words(), patch_size=4, vision_feature_select_strategy="default")
        return json.dumps(TransformersBackend(tiny_vlm("llava"), processor).describe(), sort_keys=True, default=str)

    other = {"size": {"shortest_edge": 18}, "image_mean": [0.1] * 3, "image_std": [0.2] * 3, "resample": 0,
             "do_rescale": False, "rescale_factor": 0.5}[setting]  # fmt: skip
    if setting == "size":

        def sized(edge: int) -> str:
            images = CLIPImageProcessor(size={"shortest_edge": edge}, crop_size={"height": 16, "width": 16})
            processor = LlavaProcessor(images, words(), patch_size=4, vision_feature_select_strategy="default")
            return json.dumps(TransformersBackend(tiny_vlm("llava"), processor).describe(), sort_keys=True, default=str)

        assert sized(16) != sized(18)
        return
    assert described() != described(**{setting: other})
    assert described() == described()


def test_a_recipe_of_a_model_applies_to_it_after_saving(tmp_path: Path) -> None:
    own = tiny_text(layers=2)
    recipe = isolate(own, *(collect(own, part, progress=False) for part in (ROWS[:12], ROWS[12:])), ratio=0.1)
    own.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with apply(again, recipe):
        pass
    with torch.no_grad():
        again.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    with pytest.raises(PaperhooksError, match="q_proj"), apply(again, recipe):
        pass


def test_a_corpus_is_scored_planned_and_converted_with_the_vocabulary_it_was_packed_with(tmp_path: Path) -> None:
    one, other, own = byte_tokenizer(TEXTS), words(), tiny_text(layers=2, vocab_size=600)
    pack(TEXTS, one, tmp_path / "packed", max_length=32)
    rows = open_rows(tmp_path / "packed")
    options = {"max_length": 32}
    assert score(own, rows, tmp_path / "scores", tokenizer=one, progress=False, **options) is not None
    for wrong in (
        lambda: score(own, rows, tmp_path / "other", tokenizer=other, progress=False, **options),
        lambda: plan({"m": own}, rows, tokenizer=other, **options),
        lambda: convert(rows, other, one),
    ):
        with pytest.raises(PaperhooksError, match="was packed with the tokenizer"):
            wrong()
    texts = open_rows(TEXTS, other)
    found = [score(own, open_rows(TEXTS, each), tmp_path / str(i), tokenizer=each, progress=False, **options)
             for i, each in enumerate((one, other))]  # fmt: skip
    assert texts is not None
    with pytest.raises(PaperhooksError, match=r"the scores differ in|other rows"):
        diff(*found)


def test_statistics_of_another_model_with_the_same_config_are_no_statistics(tmp_path: Path) -> None:
    one, other = tiny_text(layers=2, seed=0), tiny_text(layers=2, seed=1)
    assert one.config.to_dict() == other.config.to_dict()
    sides = [collect(one, part, progress=False) for part in (ROWS[:12], ROWS[12:])]
    with pytest.raises(PaperhooksError):
        isolate(other, *sides, ratio=0.1)
    with pytest.raises(PaperhooksError):
        isolate(one, sides[0], collect(other, ROWS[12:], progress=False), ratio=0.1)


def test_other_scores_are_not_those_of_a_corpus(tmp_path: Path) -> None:
    models = {"teacher": tiny_text(layers=2, seed=0), "reference": tiny_text(layers=2, seed=1)}
    records = [{"input_ids": row} for row in ROWS]
    paperhooks.score(models, records, "miniplm", out=tmp_path / "scores")
    swapped = [records[1], records[0], *records[2:]]
    with pytest.raises(PaperhooksError, match="another corpus"):
        paperhooks.select("miniplm", corpus=swapped, ratio=0.5, out=tmp_path / "out", scores=tmp_path / "scores")
