"""Reasoning in tags in front of an answer: told apart, stored beside it, and read either way."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from evaluation_tasks import Echo, rows_of, tiny_model, word_tokenizer
from paperhooks.errors import DataError
from paperhooks.generation import (
    CallableBackend,
    Prompt,
    ReplayBackend,
    Request,
    Response,
    TransformersBackend,
    separate_reasoning,
    split_reasoning,
)
from paperhooks_evaluation import compare, evaluate, rescore

quick = partial(evaluate, report=False)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>no cat, but a dog</think>\nYes", "Yes"),
        ("[THINK]no[/THINK]Yes", "Yes"),
        ("<reasoning>\nno\n</reasoning>\n\nYes. No.", "Yes. No."),
        ("no cat there\n</think>\n\nYes", "Yes"),  # the tag that begins it was in the prompt
        ("<think>no</think><think>not yet</think> Yes", "Yes"),
        ("Well. <think>no</think> Yes", "Yes"),
        (" <THINK>no dog on the left and", ""),
        ("<think>no</think> <think>and then", ""),
        ("<think></think>", ""),
        ("Yes", "Yes"),
        ("", ""),
        ("I would say <think> about it", "I would say <think> about it"),
    ],
)
def test_the_answer_is_what_stands_behind_the_reasoning(text: str, answer: str) -> None:
    reasoning, found = split_reasoning(text)
    assert (found, reasoning + found) == (answer, text)


@pytest.mark.parametrize(
    ("prompt", "text", "answer"),
    [
        ("Is it?<think>\n", "no cat, but", ""),
        ("Is it?<think>\n", "no</think>Yes", "Yes"),
        ("Is it?<think></think>", "Yes", "Yes"),
        ("Is it? <think> about", "Yes", "Yes"),
    ],
)
def test_a_prompt_that_begins_the_reasoning_counts(prompt: str, text: str, answer: str) -> None:
    found = separate_reasoning(Response(text), Prompt("a", prompt, Request()))
    assert (found.text, found.reasoning + found.text) == (answer, text)
    told = separate_reasoning(Response("Yes", reasoning="told apart by the server"), Prompt("a", prompt, Request()))
    assert (told.text, told.reasoning) == ("Yes", "told apart by the server")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([{"id": f"q{i}", "prompt": f"p{i}", "answer": "w1"} for i in range(3)]))
    return file


def thinks(request: Request) -> str:
    return {"p0": "<think>w2 w3</think>\nw1 w4 w5", "p1": "w1", "p2": "<think>w1 w2"}[request.prompt]


def test_a_run_reads_the_answers_and_keeps_the_reasoning(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = evaluate(CallableBackend(thinks), None, Echo(), data=data, out=run)
    assert [one.response for one in result.records] == ["w1 w4 w5", "w1", ""]
    assert [one.score for one in result.records] == [1, 1, 0]
    assert [one.truncated for one in result.records] == [False, False, True], "reasoning without an end was cut"
    assert [(row["reasoning"], row["reply"]) for row in rows_of(run)] == [
        ("<think>w2 w3</think>\n", "w1 w4 w5"), (None, "w1"), ("<think>w1 w2", ""),
    ]  # fmt: skip
    recorded = json.loads((run / "result.json").read_text())["results"]["reasoning"]
    assert recorded == json.loads((run / "results.json").read_text())["paperhooks"]["reasoning"]
    assert recorded == {"kept": False, "responses": 2}
    assert "Reasoning in front of 2 answers was kept apart." in (run / "report.md").read_text()
    again = quick(ReplayBackend(run / "samples.jsonl"), None, Echo(), data=data, out=tmp_path / "again")
    assert again.records == result.records


def test_stored_responses_are_read_either_way(data: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    backend = CallableBackend(lambda request: asked.append(request.prompt) or thinks(request))
    whole = quick(backend, None, Echo(), data=data, out=tmp_path / "a", keep_reasoning=True)
    assert [one.response for one in whole.records] == [thinks(Request(prompt=f"p{i}")) for i in range(3)]
    assert [one.score for one in whole.records] == [0, 1, 0]
    assert rescore(tmp_path / "a", Echo(), report=False).records == whole.records
    apart = rescore(tmp_path / "a", Echo(), keep_reasoning=False, report=False)
    assert [one.score for one in apart.records] == [1, 1, 0]
    assert quick(backend, None, Echo(), data=data, out=tmp_path / "b").records == apart.records
    assert quick(backend, None, Echo(), data=data, out=tmp_path / "b", keep_reasoning=True).records == whole.records
    assert len(asked) == 6
    with pytest.raises(DataError, match="keep_reasoning: False in a, True in b"):
        compare(tmp_path / "a", tmp_path / "b")


def test_tags_that_are_special_tokens_are_seen(monkeypatch) -> None:
    """Special tokens are no part of a response, but for those that tell the reasoning from the answer."""
    import torch

    model, tokenizer = tiny_model(), word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<odd>"]})
    begin, end, odd = tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]", "<odd>"])
    written = torch.tensor([[3, begin, 4, 5, end, 6, odd, 7, 1]])
    monkeypatch.setattr(model, "generate", lambda **_: written)
    backend = TransformersBackend(model, tokenizer)
    prompt = backend.prompt("a", Request(prompt="w1"))
    (response,) = backend.answer([prompt])
    found = separate_reasoning(response, prompt)
    assert (found.reasoning.replace(" ", ""), found.text) == ("[THINK]w2w3[/THINK]", "w4 w5")
