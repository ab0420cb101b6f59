"""Prompts from files and lists, cut alike in their three forms, and what is asked for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from paperhooks import DataError
from paperhooks.generation import Sampling
from paperhooks_sso.data import (
    CONCISION,
    ROLES,
    ChatFormat,
    GuidedPrompt,
    PrincipleBank,
    RequestMaker,
    chosen_principles,
    conversation_of,
    cut_conversation,
    guided_prompt,
    prompts_digest,
    read_prompts,
    sample_seed,
)
from sso_models import REFERENCE
from transformers import AutoTokenizer

BANK = PrincipleBank.load()


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(REFERENCE / "tiny_llama"))


def test_prompts_of_files_and_lists_have_ids(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, [{"prompt": "a"}, {"prompt": "b", "id": "own"}, "c"])))
    found = read_prompts(str(file))
    assert [each.id for each in found] == ["0", "own", "2"]
    assert read_prompts(["a", {"prompt": "b", "id": "own"}, "c"]) == found
    assert read_prompts(found) == found
    assert [each.id for each in read_prompts(iter(["a", "b", "c"]), limit=2)] == ["0", "1"]
    text = tmp_path / "prompts.txt"
    text.write_text("a\n\nb b\n\n\nc\n")
    assert [each.messages[0]["content"] for each in read_prompts(str(text))] == ["a", "b b", "c"]
    assert prompts_digest(found) != prompts_digest(found[:2])
    with pytest.raises(DataError, match=r"record 1: there are two prompts with the id 'x'"):
        read_prompts([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}])
    with pytest.raises(DataError, match="the source holds no prompt"):
        read_prompts([])


def test_a_long_prompt_loses_its_oldest_turns_and_then_the_beginning_of_the_question() -> None:
    turns = [["first question", "first answer"], ["second question", "second answer"]]
    prompt = conversation_of({"prompt": "one two three four", "history": turns, "system": "S"}, "7")

    def within(limit: int) -> Any:
        return cut_conversation(prompt, lambda c: sum(len(m["content"].split()) for m in c.messages) <= limit)

    assert within(12).conversation == prompt
    assert not within(12).cut
    assert [m["content"] for m in within(8).conversation.messages] == [
        "second question", "second answer", "one two three four",
    ]  # fmt: skip
    assert within(8).turns == 2
    last = within(3)
    assert [m["content"] for m in last.conversation.messages] == ["two three four"]
    assert (last.turns, last.characters, last.conversation.system) == (4, 4, "S")
    assert within(0) is None


def test_the_three_forms_of_a_prompt_share_their_cut(chat: ChatFormat) -> None:
    prompt = conversation_of(" ".join(f"word{n}" for n in range(200)), "7")
    principles = [BANK["Accuracy"]]
    whole = guided_prompt(prompt, principles, chat, None)
    assert whole is not None
    assert not whole.asked.cut
    limit = len(whole.ids["good"]) - 300
    cut = guided_prompt(prompt, principles, chat, limit)
    assert cut is not None
    question = cut.asked.conversation.messages[0]["content"]
    assert max(map(len, cut.ids.values())) <= limit < max(map(len, whole.ids.values()))
    assert max(map(len, cut.ids.values())) > limit - 12  # as much as fits
    assert question.endswith("word199")
    for group, ids in cut.ids.items():
        text = chat.tokenizer.decode(ids)
        assert question in text
        assert "word0 " not in text, group
    assert cut.good_system in chat.tokenizer.decode(cut.ids["good"])
    assert guided_prompt(prompt, principles, chat, limit, cut=False) is None
    assert guided_prompt(prompt, principles, chat, 20) is None
    assert GuidedPrompt.from_record(json.loads(json.dumps(cut.record()))) == cut


def test_seeds_depend_on_run_iteration_prompt_and_role_alone() -> None:
    seeds = {sample_seed(*each) for each in [
        (0, 1, "17", "y+"), (1, 1, "17", "y+"), (0, 2, "17", "y+"), (0, 1, "18", "y+"), (0, 1, "17", "y-"),
    ]}  # fmt: skip
    assert len(seeds) == 5
    assert sample_seed(0, 1, "17", "y+") == sample_seed(0, 1, "17", "y+")
    assert all(Sampling(seed=seed) for seed in seeds)


def test_answers_are_asked_by_ids_with_seeds_of_their_own(chat: ChatFormat) -> None:
    prompt = guided_prompt(conversation_of("Why?", "17"), [BANK["Accuracy"]], chat, None)
    assert prompt is not None
    asked = dict(RequestMaker(seed=3, iteration=2, max_new_tokens=9).answers([prompt]))
    assert list(asked) == ["17/y+", "17/y-", "17/yo"]
    for role, group in ROLES.items():
        request = asked[f"17/{role}"]
        assert request.prompt_ids == prompt.ids[group]
        assert request.max_new_tokens == 9
        assert request.sampling == Sampling(0.7, 0.8, seed=sample_seed(3, 2, "17", role))
    assert list(dict(RequestMaker().answers([prompt], ["y+", "y-"]))) == ["17/y+", "17/y-"]


def test_features_and_principles_are_asked_as_texts_to_go_on_with(chat: ChatFormat) -> None:
    prompt = conversation_of(" ".join(f"word{n}" for n in range(900)), "17")
    maker = RequestMaker(limit=3000)
    ((key, request),) = maker.features([prompt], BANK.features, chat.tokenizer)
    assert key == "17/features"
    assert request.stop == ("###",)
    assert len(request.prompt_ids) <= 3000
    text = chat.tokenizer.decode(request.prompt_ids)
    assert text.endswith("word899\nFeatures:")
    assert "word0 " not in text
    ((key, request),) = maker.principles(conversation_of("Why?", "17"), [BANK["Accuracy"]], chat.tokenizer)
    assert key == "17/principle/Accuracy" == maker.principle_key("17", "Accuracy")
    assert chat.tokenizer.decode(request.prompt_ids).endswith("Query: Why?\nFeature: Accuracy\nJSON:")


def test_principles_are_those_that_matter_and_sometimes_concision() -> None:
    def names(reply: str, seed: int, concision: float = 0.0) -> list[str]:
        return [p.feature for p in chosen_principles(reply, BANK, BANK.features, 2, concision, seed)]

    assert set(names(" Accuracy, Safety\n", 0)) == {"Accuracy", "Safety"}
    drawn = {tuple(names("", seed)) for seed in range(20)}
    assert len(drawn) > 5
    assert all(len(set(pair)) == 2 for pair in drawn)
    assert names("Accuracy", 4) == names("Accuracy", 4)
    assert names("", 0, 1.0)[-1] == CONCISION
    share = sum(CONCISION in names("", seed, 0.2) for seed in range(300)) / 300
    assert 0.13 < share < 0.27
