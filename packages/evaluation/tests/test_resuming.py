"""Requests, layouts, prompts, and a transformers model's answers: batches, stop strings, memory, chat templates."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from evaluation_tasks import (
    WORDS,
    Counting,
    Echo,
    direct,
    rows_of,
    timeless,
    tiny_model,
    word_tokenizer,
    write_questions,
)
from paperhooks.errors import DataError
from paperhooks.generation import Request, Response, TransformersBackend, arrange, make_prompt, prompt_hash
from paperhooks_evaluation import evaluate
from PIL import Image

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

quick = partial(evaluate, report=False)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def tokenizer():
    return word_tokenizer()


def ask(backend: TransformersBackend, *requests: Request, layout: str = "prepend") -> list[Response]:
    """Answers to requests as one batch."""
    with backend.opened():
        return backend.answer([backend.prompt(str(i), arrange(one, layout)) for i, one in enumerate(requests)])


# -- layouts -----------------------------------------------------------------------------------------------------------

RED, BLUE, GREEN = (
    Image.new("RGB", size, name) for name, size in (("red", (8, 4)), ("blue", (4, 4)), ("green", (2, 6)))
)


def parts(request: Request) -> str:
    """Texts in brackets and I for images, in order; messages apart by /."""
    marks = [[f"({p['text']})" if p["type"] == "text" else "I" for p in m["content"]] for m in request.messages]
    return "/".join("".join(one) for one in marks)


NUMBERED = Request(
    messages=[
        {"role": "system", "content": "S"},
        {"role": "user", "content": [
            {"type": "text", "text": "see "},
            {"type": "image", "index": 1, "text": "<2>"},
            {"type": "text", "text": " and "},
            {"type": "image", "index": 0, "text": "<1>"},
            {"type": "text", "text": "; <2>", "interleave": "; the first"},
        ]},
    ],
    images=[RED, BLUE, GREEN],
)  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "told", "shown"),
    [
        ("prepend", "(S)/III(see <2> and <1>; <2>)", [RED, BLUE, GREEN]),
        ("interleave", "(S)/I(see )I( and )I(; the first)", [GREEN, BLUE, RED]),
        ("text-only", "(S)/(see <2> and <1>; <2>)", []),
    ],
)
def test_layouts_put_images_where_they_say(layout: str, told: str, shown: list[Image.Image]) -> None:
    placed = arrange(NUMBERED, layout)
    assert parts(placed) == told
    assert [image.tobytes() for image in placed.images] == [image.tobytes() for image in shown]


def test_images_side_by_side_for_models_that_take_one() -> None:
    placed = arrange(NUMBERED, "joined")
    assert parts(placed) == "(S)/I(see <2> and <1>; <2>)"
    (image,) = placed.images
    assert image.size == (8 + 4 + 2, 6)
    found = [image.getpixel(place) for place in ((0, 0), (8, 3), (12, 5), (0, 5))]
    assert found == [(255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 255)]
    assert arrange(Request(messages=[{"role": "user", "content": "x"}], images=[RED]), "joined").images[0].size == (
        8,
        4,
    )


def test_large_images_are_scaled_only_when_asked_and_all_become_rgb() -> None:
    grey = Image.new("L", (40, 10), 7)
    request = Request(prompt="<image>", images=[grey, RED])
    assert [image.mode for image in arrange(request, "prepend").images] == ["RGB", "RGB"]
    assert [image.size for image in arrange(request, "prepend").images] == [(40, 10), (8, 4)]
    assert [image.size for image in arrange(request, "prepend", max_pixels=100).images] == [(20, 5), (8, 4)]
    assert grey.size == (40, 10)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(), "neither a prompt nor messages"),
        (Request(prompt="a", messages=[{"role": "user", "content": "b"}]), "both a prompt and messages"),
        (Request(messages=[{"role": "user", "content": [{"type": "image"}]}]), "shows image 0"),
        (Request(messages=[{"role": "user", "content": [{"type": "video"}]}]), "expected type 'text'"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_: Request, said: str) -> None:
    with pytest.raises(DataError, match=said):
        arrange(request_, "prepend")


def test_images_of_a_finished_prompt_cannot_be_left_out() -> None:
    with pytest.raises(DataError, match="cannot be left out"):
        arrange(Request(prompt="<image> w1", images=[RED]), "text-only")
    assert arrange(Request(prompt="w1"), "text-only").prompt == "w1"


# -- prompts -----------------------------------------------------------------------------------------------------------


def tiny_llava_with_processor():
    """A tiny random Llava with 4 image tokens, and a stock processor around a word-level tokenizer."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = word_tokenizer("<image>")
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.image_token = "<image>"
    size = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size), words, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **small),
        text_config=LlamaConfig(vocab_size=21, bos_token_id=None, eos_token_id=1, pad_token_id=0, **small),
        image_token_id=20,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config), processor


TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image> {% else %}{{ p['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}w5"
)


def test_images_reach_the_model_in_batches_of_any_size() -> None:
    vlm, processor = tiny_llava_with_processor()
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "white")]
    requests = [Request(prompt="w1 " * i + "<image> w2", images=[p], max_new_tokens=4) for i, p in enumerate(images)]
    backend = TransformersBackend(vlm, processor)
    together = ask(backend, *requests)
    assert together == [ask(backend, request)[0] for request in requests]
    inputs = processor(text=requests[1].prompt, images=[images[1]], return_tensors="pt")
    with torch.no_grad():
        output = vlm.eval().generate(**inputs, max_new_tokens=4, do_sample=False)
    stock = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert together[1].text == stock.strip()
    assert len({prompt_hash(backend.prompt("x", Request(prompt="x", images=[p]))) for p in images}) == 3


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_placeholder_in_a_question_makes_no_image_slot(template: str | None) -> None:
    vlm, processor = tiny_llava_with_processor()
    processor.chat_template = template
    content = [{"type": "image"}, {"type": "text", "text": "what is <image> w3"}]
    request = arrange(Request(messages=[{"role": "user", "content": content}], images=[RED]), "prepend")
    text = make_prompt(processor, "q", request).text
    assert text == "<image> what is < image> w3" + (" w5" if template else "")
    assert ask(TransformersBackend(vlm, processor), request)[0].error == ""
    without = arrange(request, "text-only")
    assert "<image>" not in make_prompt(processor, "q", without).text


def test_messages_go_through_the_chat_template(model, tokenizer) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}w5"
    (response,) = ask(TransformersBackend(model, tokenizer), Request(messages=[{"role": "user", "content": "w1 w2"}]))
    assert response.text == direct(model, tokenizer, "w1 w2 w5", limit=32)


def test_special_tokens_are_added_once(model) -> None:
    from tokenizers.processors import TemplateProcessing

    words = word_tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(single="w7 $A", special_tokens=[("w7", 9)])
    words.bos_token = "w7"
    words.chat_template = "w7 {% for m in messages %}{{ m['content'] }}{% endfor %}"
    backend = TransformersBackend(model, words)
    with backend.opened():
        prompts = [
            backend.prompt("m", arrange(Request(messages=[{"role": "user", "content": "w1 w2"}]), "prepend")),
            backend.prompt("p", arrange(Request(prompt="w1 w2"), "prepend")),
        ]
        assert [prompt.special for prompt in prompts] == [False, True]
        ids = [backend._inputs([prompt])["input_ids"].tolist() for prompt in prompts]
        assert ids[0] == ids[1] == [[9, 3, 4]]
    assert prompts[0].kind != prompts[1].kind


def test_prompts_that_cannot_be_made_say_why(model, tokenizer) -> None:
    with pytest.raises(
        DataError, match=r"takes only text; give .* processor .* leave the images out: layout='text-only'"
    ):
        ask(TransformersBackend(model, tokenizer), Request(prompt="w1", images=[RED]))
    _, processor = tiny_llava_with_processor()
    processor.image_token = processor.tokenizer.image_token = None
    with pytest.raises(DataError, match="neither a chat template nor an image token"):
        make_prompt(processor, "q", arrange(NUMBERED, "prepend"))


def test_without_a_template_the_text_of_all_messages_is_the_prompt(tokenizer) -> None:
    messages = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
    assert make_prompt(tokenizer, "q", arrange(Request(messages=messages), "prepend")).text == "w1\nw2 w3"


# -- answers -----------------------------------------------------------------------------------------------------------


def test_rows_of_a_batch_keep_their_own_limit_and_say_how_they_ended(model, tokenizer) -> None:
    backend = TransformersBackend(model, tokenizer)
    requests = [Request(prompt=f"w{i} w{i + 1}", max_new_tokens=limit) for i, limit in enumerate((2, 9, 40, 5, 40, 40))]
    responses = ask(backend, *requests)
    for request, response in zip(requests, responses, strict=True):
        assert response.text == direct(model, tokenizer, request.prompt, limit=request.max_new_tokens)
        assert (response.finish == "length") == (response.new_tokens == request.max_new_tokens)
    assert {response.finish for response in responses} == {"length", "eos"}


def test_every_end_of_sequence_token_of_the_model_counts(model, tokenizer) -> None:
    plain = ask(TransformersBackend(model, tokenizer), Request(prompt="w3 w4"))[0].text.split()
    second = next(word for word in plain if word != plain[0])
    model.generation_config.eos_token_id = [1, WORDS.index(second)]
    try:
        response = ask(TransformersBackend(model, tokenizer), Request(prompt="w3 w4"))[0]
    finally:
        model.generation_config.eos_token_id = 1
    assert (response.text, response.finish) == (" ".join(plain[: plain.index(second)]), "eos")


def test_stop_strings_end_a_response_and_are_not_part_of_it(model, tokenizer, monkeypatch) -> None:
    prompts = ["w3 w4", "w5", "w1 w2 w6"]
    backend = TransformersBackend(model, tokenizer)
    whole = [one.text for one in ask(backend, *(Request(prompt=p, max_new_tokens=12) for p in prompts))]
    stop = " ".join(whole[0].split()[3:5])  # two tokens, so that it is complete only with the second
    lengths = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **kwargs: lengths.append(out := generate(**kwargs)) or out)
    responses = ask(backend, *(Request(prompt=p, max_new_tokens=12, stop=(stop, "never")) for p in prompts))
    for text, response in zip(whole, responses, strict=True):
        cut = text.find(stop)
        assert response.text == (text if cut < 0 else text[:cut].strip())
        assert (response.finish == "stop") == (cut >= 0)
    alone = ask(backend, Request(prompt=prompts[0], max_new_tokens=12, stop=(stop,)))[0]
    assert (alone, alone.new_tokens) == (responses[0], len(whole[0][: whole[0].find(stop)].split()) + 2)
    assert lengths[-1].shape[1] == 2 + alone.new_tokens  # generation ended there


def test_sampling_settings_of_a_model_are_neither_used_nor_warned_about(model, tokenizer, caplog) -> None:
    expected = ask(TransformersBackend(model, tokenizer), Request(prompt="w3 w4"))
    before = model.generation_config
    noisy = type(before).from_dict({
        **before.to_dict(), "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
        "typical_p": 0.9, "num_beams": 3, "max_length": 20, "min_length": 1, "num_return_sequences": 2,
    })  # fmt: skip
    model.generation_config = noisy
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert ask(TransformersBackend(model, tokenizer), Request(prompt="w3 w4")) == expected
        assert model.generation_config is noisy
    finally:
        model.generation_config = before
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_a_batch_that_does_not_fit_is_halved(model, tokenizer, tmp_path: Path, caplog) -> None:
    data = write_questions(tmp_path / "q.json", model, tokenizer)
    inner = TransformersBackend(model, tokenizer)
    backend = Counting(inner, fits=2)
    with caplog.at_level(logging.WARNING, "paperhooks.evaluation"):
        quick(backend, None, Echo(), data=data, out=tmp_path / "run", batch_size=8)
    assert [len(batch) for batch in backend.batches] == [2] * 5
    assert [record.getMessage()[:30] for record in caplog.records] == [
        "a batch of 8 did not fit into ",
        "a batch of 4 did not fit into ",
    ]
    quick(inner, None, Echo(), data=data, out=tmp_path / "whole")
    assert timeless(rows_of(tmp_path / "run")) == timeless(rows_of(tmp_path / "whole"))


def test_a_document_that_does_not_fit_alone_is_an_error_of_its_own(model, tokenizer, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "q.json", model, tokenizer)

    class Tight(Counting):
        def answer(self, prompts):
            if any(prompt.id == "q3" for prompt in prompts):
                raise MemoryError("q3 is huge")
            return super().answer(prompts)

    backend = Tight(TransformersBackend(model, tokenizer))
    result = quick(backend, None, Echo(), data=data, out=tmp_path / "run", batch_size=4)
    assert result.first.failures == {"q3": "MemoryError: q3 is huge"}


def test_what_counts_as_too_large(model, tokenizer) -> None:
    backend = TransformersBackend(model, tokenizer)
    assert backend.too_large(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert backend.too_large(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert backend.too_large(MemoryError())
    assert not backend.too_large(RuntimeError("shapes cannot be multiplied"))
    assert not backend.too_large(ValueError("out of memory"))


def test_other_errors_of_a_model_end_the_run(model, tokenizer, tmp_path: Path, monkeypatch) -> None:
    data = write_questions(tmp_path / "q.json", model, tokenizer)

    def fail(**kwargs):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        quick(model, tokenizer, Echo(), data=data, out=tmp_path / "run")


def test_dtype_is_the_models(tokenizer) -> None:
    vlm, processor = tiny_llava_with_processor()
    vlm = vlm.to(torch.bfloat16)
    (response,) = ask(TransformersBackend(vlm, processor), Request(prompt="<image> w2", images=[RED], max_new_tokens=2))
    assert response.error == ""
    assert {parameter.dtype for parameter in vlm.parameters()} == {torch.bfloat16}


def test_broken_images_are_errors_of_their_document(tmp_path: Path) -> None:
    vlm, processor = tiny_llava_with_processor()
    data = tmp_path / "q.json"
    data.write_text('[{"id": "a", "answer": ""}, {"id": "b", "answer": ""}]')
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])

    class Shown(Echo):
        def request(self, document):
            image = Image.open(tmp_path / f"{document.id}.png")
            return Request(messages=[{"role": "user", "content": "w1"}], images=[image], max_new_tokens=2)

    result = quick(vlm, processor, Shown(), data=data, out=tmp_path / "run")
    assert list(result.first.failures) == ["b"]
    assert result.first.failures["b"].startswith("prompt: ")


# -- on a GPU ----------------------------------------------------------------------------------------------------------


def test_responses_on_a_gpu_are_those_on_the_cpu(accelerator, model, tokenizer) -> None:
    requests = [Request(prompt=f"w{i} w{i + 1}", max_new_tokens=8) for i in range(6)]
    expected = ask(TransformersBackend(model, tokenizer), *requests)
    try:
        backend = TransformersBackend(model.to(accelerator), tokenizer)
        assert ask(backend, *requests) == expected
        assert backend.about()["device"] == str(accelerator)
    finally:
        model.cpu()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_that_runs_out_on_cuda_is_recognised(model, tokenizer) -> None:
    backend = TransformersBackend(model, tokenizer)
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(4 * free, dtype=torch.uint8, device="cuda")
    assert backend.too_large(caught.value)
    backend.recover()
