"""Drawn answers of a transformers model: the same ids whatever else is in the batch, beside greedy ones; token ids."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from paperhooks.errors import DataError
from paperhooks.generation import (
    CallableBackend,
    ReplayBackend,
    Request,
    Response,
    Sampling,
    TransformersBackend,
    arrange,
    ask,
    prompt_hash,
)
from paperhooks.testing import run_ranks, tiny_llama
from transformers import WatermarkingConfig
from word_tokenizers import word_tokenizer


def backend_of(**options: Any) -> TransformersBackend:
    model = tiny_llama(layers=2, **options)
    model.generation_config.eos_token_id = [2, 9]
    return TransformersBackend(model, word_tokenizer(model.config.vocab_size))


def requests(count: int = 10, limit: int = 8) -> dict[str, Request]:
    """Prompts of several lengths with settings of several kinds, each with a seed of its own."""
    kinds = [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 9}, {"temperature": 1.5, "top_p": 0.8, "top_k": 30}]
    return {
        f"{i}/y+": Request(
            prompt=" ".join(f"w{3 + (7 * i + j) % 60}" for j in range(1 + i % 4)),
            max_new_tokens=limit + i % 3,
            sampling=Sampling(seed=1000 + i, **kinds[i % 4]),
        )
        for i in range(count)
    }


def answered(backend: TransformersBackend, asked: dict[str, Request], size: int) -> dict[str, Response]:
    prompts = [backend.prompt(key, request) for key, request in asked.items()]
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return {
        prompt.id: found
        for batch in batches
        for prompt, found in zip(batch, backend.answer(batch), strict=True)
    }  # fmt: skip


def ids_of(found: dict[str, Response]) -> dict[str, tuple[Any, ...]]:
    return {key: (one.ids, one.end, one.finish, one.text) for key, one in sorted(found.items())}


def test_the_same_is_drawn_in_every_batch(tmp_path: Path) -> None:
    backend, asked = backend_of(), requests()
    alone = answered(backend, asked, 1)
    assert len({one.ids for one in alone.values()}) == len(alone)
    for size in (2, 5, 10):
        assert ids_of(answered(backend, asked, size)) == ids_of(alone)
    backwards = dict(reversed(asked.items()))
    assert ids_of(answered(backend, backwards, 3)) == ids_of(alone)
    assert ids_of(ask(backend, asked, out=tmp_path / "run", batch_size=4)) == ids_of(alone)
    assert ids_of(ask(backend, asked, out=tmp_path / "run")) == ids_of(alone)


@pytest.mark.slow
def test_the_real_model_draws_the_same_in_every_batch() -> None:
    from paperhooks_testbed import load_smollm2

    backend = TransformersBackend(*load_smollm2())
    texts = [
        "The capital of France is",
        "One, two,",
        "Roses are red, violets are",
        "def add(a, b):",
        "Once upon a time",
    ]
    asked = {
        text: Request(prompt=text, max_new_tokens=8, sampling=Sampling(1.0, 0.9, seed=place))
        for place, text in enumerate(texts)
    }
    alone = answered(backend, asked, 1)
    for size in (2, 5):
        assert ids_of(answered(backend, asked, size)) == ids_of(alone)


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    backend = backend_of()
    torch.manual_seed(0)
    first = answered(backend, requests(), 5)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert ids_of(answered(backend, requests(), 5)) == ids_of(first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    draws = {answered(backend, {"a": Request(prompt="w5", sampling=Sampling(seed=s))}, 1)["a"].ids for s in range(20)}
    assert len(draws) == 20


def test_greedy_requests_of_the_same_batch_stay_greedy() -> None:
    backend = backend_of()
    plain = {f"greedy {key}": Request(prompt=one.prompt, max_new_tokens=9) for key, one in requests().items()}
    alone = answered(backend, plain, 20)
    mixed = answered(backend, {**plain, **requests()}, 20)
    assert {key: mixed[key] for key in alone} == alone
    inputs = backend.tokenizer("w3 w4", return_tensors="pt")
    stock = backend.model.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    found = answered(backend, {"x": Request(prompt="w3 w4", max_new_tokens=9)}, 1)["x"]
    assert [*found.ids, *([] if found.end is None else [found.end])] == stock.tolist()


def test_draws_follow_the_model_s_probabilities() -> None:
    """The first token of 3,000 seeds against the softmax of the logits; stock sampling from the same ones."""
    backend = backend_of()
    count = 3000
    asked = {
        str(s): Request(prompt="w5 w6", max_new_tokens=1, sampling=Sampling(0.8, 0.9, seed=s)) for s in range(count)
    }
    found = answered(backend, asked, 500)
    tokens = torch.tensor([[*one.ids, one.end][0] for one in found.values()])
    with torch.no_grad():
        logits = backend.model(backend.tokenizer("w5 w6", return_tensors="pt")["input_ids"]).logits[0, -1]
    shares, order = (logits.double() / 0.8).softmax(dim=0).sort(descending=True)
    shares[shares.cumsum(0) - shares >= 0.9] = 0
    expected = torch.zeros_like(shares).scatter(0, order, shares / shares.sum()) * count
    counted = torch.bincount(tokens, minlength=len(expected))
    assert counted[expected == 0].sum() == 0
    often = expected >= 5
    statistic = float(((counted - expected)[often] ** 2 / expected[often]).sum())
    assert statistic < int(often.sum()) + 4 * (2 * int(often.sum())) ** 0.5


def test_processors_of_the_model_s_own_settings_stand_before_the_draw() -> None:
    backend = backend_of()
    free = answered(backend, requests(), 5)
    used = {token for one in free.values() for token in one.ids}
    backend.model.generation_config.suppress_tokens = sorted(used)
    forbidden = answered(backend, requests(), 5)
    assert not used & {token for one in forbidden.values() for token in one.ids}


def test_a_watermark_that_would_be_lost_is_refused() -> None:
    backend = backend_of()
    backend.model.generation_config.watermarking_config = WatermarkingConfig()
    with pytest.raises(DataError, match="has a watermarking_config, which drawn answers would not carry"):
        answered(backend, requests(1), 1)
    assert answered(backend, {"a": Request(prompt="w5", max_new_tokens=2)}, 1)["a"].ids


# -- how an answer ends ------------------------------------------------------------------------------------------------


class Script:
    """Makes a model say given tokens, whatever it is asked."""

    def __init__(self, model: Any, tokens: Sequence[int]) -> None:
        self.model, self.tokens, self.start = model, tokens, 0

    def __enter__(self) -> None:
        self.handle = self.model.register_forward_hook(self.say, with_kwargs=True)
        self.said = 0

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def say(self, _: Any, args: Any, kwargs: Any, output: Any) -> Any:
        logits = torch.full_like(output.logits, -50.0)
        logits[..., self.tokens[min(self.said, len(self.tokens) - 1)]] = 50.0
        self.said += 1
        output.logits = logits
        return output


@pytest.mark.parametrize("sampling", [None, Sampling(seed=3)])
@pytest.mark.parametrize(
    ("tokens", "request_", "expected"),
    [
        ([5, 6, 2, 7], Request(prompt="w5"), ((5, 6), 2, "eos", "w5 w6")),
        ([5, 6, 9, 7], Request(prompt="w5"), ((5, 6), 9, "eos", "w5 w6")),
        ([2], Request(prompt="w5"), ((), 2, "eos", "")),
        ([5, 6, 7], Request(prompt="w5", max_new_tokens=2), ((5, 6), None, "length", "w5 w6")),
        ([5, 6, 2], Request(prompt="w5", max_new_tokens=2), ((5, 6), None, "length", "w5 w6")),
        ([5, 6, 7, 8], Request(prompt="w5", stop=("w6 w7",)), ((5, 6, 7), None, "stop", "w5")),
        ([5, 1, 6, 2], Request(prompt="w5"), ((5, 1, 6), 2, "eos", "w5 w6")),
    ],
)
def test_the_ids_and_how_it_ended_are_told(
    tokens: list[int], request_: Request, expected: tuple[Any, ...], sampling: Sampling | None
) -> None:
    backend = backend_of()
    with Script(backend.model, tokens):
        found = answered(backend, {"a": dataclasses.replace(request_, sampling=sampling)}, 1)["a"]
    assert (found.ids, found.end, found.finish, found.text) == expected
    assert found.new_tokens == len(found.ids)


def test_a_model_whose_logits_are_no_numbers_answers_nothing() -> None:
    backend = backend_of()
    with torch.no_grad():
        backend.model.lm_head.weight[7] = float("nan")
    found = answered(backend, {"a": Request(prompt="w5", sampling=Sampling()), "b": Request(prompt="w5")}, 2)
    assert found["a"].error == "nothing can be drawn: the model's logits are NaN or infinite"
    assert found["a"].prompt_tokens == 2
    assert not found["b"].error


# -- token ids as the prompt -------------------------------------------------------------------------------------------


def test_token_ids_are_asked_as_they_are() -> None:
    backend = backend_of()
    seen: list[dict[str, Any]] = []
    handle = backend.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append({name: kwargs[name] for name in ("input_ids", "attention_mask")}),
        with_kwargs=True,
    )
    ids = [(1, 5, 6, 1, 7), (8,), (0, 2, 5)]  # padding and end tokens of a conversation are the user's to give
    asked = {str(one): Request(prompt_ids=one, max_new_tokens=1) for one in ids}
    answered(backend, asked, 3)
    handle.remove()
    assert seen[0]["input_ids"].tolist() == [[1, 5, 6, 1, 7], [0, 0, 0, 0, 8], [0, 0, 0, 2, 5]]
    assert seen[0]["attention_mask"].tolist() == [[1] * 5, [0, 0, 0, 0, 1], [0, 0, 1, 1, 1]]


def test_ids_and_text_of_one_prompt_get_one_answer() -> None:
    backend = backend_of()
    for key, request in requests().items():
        ids = tuple(backend.tokenizer(request.prompt)["input_ids"])
        assert ids.count(1) == 1
        told = Request(prompt_ids=ids, max_new_tokens=request.max_new_tokens, sampling=request.sampling)
        first, second = answered(backend, {key: request}, 1), answered(backend, {key: told}, 1)
        assert first == second
        assert backend.prompt(key, told).tokens == len(ids)


def test_ids_and_texts_do_not_share_a_batch(tmp_path: Path) -> None:
    backend = backend_of()
    asked = {**requests(4), **{f"ids {i}": Request(prompt_ids=(1, 5 + i), max_new_tokens=3) for i in range(4)}}
    found = ask(backend, asked, out=tmp_path / "run", batch_size=8)
    assert ids_of(found) == ids_of(answered(backend, asked, 1))


def test_ids_that_a_model_does_not_have_are_refused(tmp_path: Path) -> None:
    backend = backend_of()
    size = backend.model.config.vocab_size
    with pytest.raises(DataError, match=f"'a' has the token id {size}, and the model knows {size} tokens"):
        ask(backend, {"a": Request(prompt_ids=(1, size))}, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt_ids": [1, -1]}, r"prompt_ids\[1\] is -1"),
        ({"prompt_ids": ["a"]}, r"prompt_ids\[0\] is 'a'"),
        ({"prompt_ids": [1], "images": ["x"]}, "prompt_ids shows no images"),
        ({"sampling": 0.7}, "sampling is 0.7; expected a paperhooks.generation.Sampling, or None"),
    ],
)
def test_requests_are_checked_when_made(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Request(**options)


def test_ids_and_a_prompt_exclude_each_other() -> None:
    request = Request(prompt_ids=torch.tensor([1, 5]))
    assert arrange(request, "text-only") is request
    assert request.prompt_ids == (1, 5)
    for other in ({"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}):
        with pytest.raises(DataError, match="both prompt_ids and a prompt or messages"):
            arrange(Request(prompt_ids=(1,), **other), "prepend")


# -- files -------------------------------------------------------------------------------------------------------------


def test_hashes_of_requests_without_sampling_are_what_they_were() -> None:
    backend = CallableBackend(str)
    made = backend.prompt("a", Request(prompt="w1 w2", max_new_tokens=7, stop=("x",)))
    assert prompt_hash(made) == "99e7b900dabc68a73892b1738b44ae94f3132f4dfe87297bf92a435c30e1ca39"
    changed = {
        prompt_hash(backend.prompt("a", Request(prompt="w1 w2", max_new_tokens=7, stop=("x",), sampling=one)))
        for one in (None, Sampling(), Sampling(seed=1), Sampling(0.9), Sampling(top_p=0.9), Sampling(top_k=4))
    }
    changed |= {prompt_hash(backend.prompt("a", Request(prompt_ids=ids))) for ids in ((1,), (2,), (1, 2))}
    assert len(changed) == 9


def test_another_sampling_of_a_known_id_is_refused(tmp_path: Path) -> None:
    backend = backend_of()
    ask(backend, {"a": Request(prompt="w5", sampling=Sampling(seed=1))}, out=tmp_path / "run")
    for changed in (Request(prompt="w5"), Request(prompt="w5", sampling=Sampling(seed=2))):
        with pytest.raises(DataError, match="another request of 'a': its prompt, limit, stop strings or sampling"):
            ask(backend, {"a": changed}, out=tmp_path / "run")


def test_ids_come_back_from_the_file(tmp_path: Path) -> None:
    backend, asked = backend_of(), requests()
    first = ask(backend, asked, out=tmp_path / "run", batch_size=3)
    assert ask(backend, asked, out=tmp_path / "run") == first
    rows = [json.loads(line) for line in (tmp_path / "run" / "replies.jsonl").read_text().splitlines()]
    assert {row["id"]: tuple(row["ids"]) for row in rows} == {key: one.ids for key, one in first.items()}
    replayed = ask(ReplayBackend(tmp_path / "run" / "replies.jsonl"), asked, out=tmp_path / "again")
    assert {key: (one.text, one.ids, one.end) for key, one in replayed.items()} == {
        key: (one.text, one.ids, one.end) for key, one in first.items()
    }


def test_a_function_is_given_the_sampling_and_the_ids(tmp_path: Path) -> None:
    backend = CallableBackend(lambda request: f"{request.sampling.seed} {request.prompt_ids}")
    asked = {"a": Request(prompt_ids=(4, 5), sampling=Sampling(seed=8))}
    assert ask(backend, asked, out=tmp_path / "run")["a"].text == "8 (4, 5)"
    whole = Response("w5", 1, "eos", prompt_tokens=2, ids=(5,), end=2)
    assert ask(CallableBackend(lambda _: whole), asked, out=tmp_path / "whole") == {"a": whole}


def drawn_by_ranks(out: str, model: str) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    backend = TransformersBackend(AutoModelForCausalLM.from_pretrained(model), word_tokenizer(64))
    return {key: list(one.ids) for key, one in ask(backend, requests(), out=out, batch_size=2).items()}


def test_the_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    backend_of().model.save_pretrained(tmp_path / "model")
    alone = drawn_by_ranks(str(tmp_path / "alone"), str(tmp_path / "model"))
    assert run_ranks(drawn_by_ranks, tmp_path / "shared", tmp_path / "model") == [alone] * 2
