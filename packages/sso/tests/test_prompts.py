"""Prompts as ids: against the official preprocessing, and templates of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paperhooks import DataError
from paperhooks_sso.data import ChatFormat, conversation_of
from sso_models import Deaf
from transformers import AutoTokenizer

REFERENCE = Path(__file__).parent / "reference"
ENCODED: dict[str, Any] = json.loads((REFERENCE / "encode.json").read_text())
IGNORED = -100
CHATML = (
    "{% if messages[0].role != 'system' %}<|start_header_id|>system: Be nice.<|eot_id|>{% endif %}"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant: {% endif %}"
)
REFUSING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no role') }}{% endif %}"
    "<|start_header_id|>{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}"
)
SILENT = (
    "{% for m in messages %}{% if m.role != 'system' %}<|start_header_id|>{{ m.role }}: {{ m.content }}<|eot_id|>"
    "{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(REFERENCE / "tiny_llama")


@pytest.mark.parametrize("number", range(3))
def test_sequences_are_those_of_the_official_preprocessing(tokenizer: Any, number: int) -> None:
    """The official code replaces a user's system text by the principle; so it is left out of x+ and x- here."""
    example, wanted = ENCODED["examples"][number], ENCODED["features"][number]
    record = {"instruction": example["instruction"], "history": example["history"]}
    chat = ChatFormat(tokenizer)
    plain = conversation_of({**record, "system": example["system"]}, "0")
    steered = conversation_of(record, "0")
    prompts = {
        "": chat.prompt_ids(plain),
        "p_": chat.prompt_ids(steered, example["p_system"]),
        "n_": chat.prompt_ids(steered, example["n_system"]),
    }
    answers = {
        "chosen": ("chosen", "rejected"), "p_chosen": ("chosen", "rejected"), "n_chosen": ("raw", "chosen"),
    }  # fmt: skip
    for prefix, prompt in prompts.items():
        for row, text in zip(("chosen", "rejected"), answers[f"{prefix}chosen"], strict=True):
            response = chat.response_ids(example[text])
            assert prompt + response == wanted[f"{prefix}{row}_input_ids"]
            assert [IGNORED] * len(prompt) + response == wanted[f"{prefix}{row}_labels"]


def test_the_beginning_of_sequence_token_is_there_once(tokenizer: Any) -> None:
    ids = ChatFormat(tokenizer).prompt_ids(conversation_of("Hello", "0"), "Be kind.")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_system_text_of_the_users_stands_in_front_of_the_principle(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    asked = conversation_of({"prompt": "Hello", "system": "Speak French."}, "0")
    text = tokenizer.decode(chat.prompt_ids(asked, "Be kind."))
    assert text.index("Speak French.") < text.index("Be kind.") < text.index("Hello")
    plain = tokenizer.decode(chat.prompt_ids(asked))
    assert "Speak French." in plain
    assert "Be kind." not in plain


def test_a_default_system_text_stays_with_the_plain_prompt_and_gives_way_to_principles(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, template=CHATML)
    asked = conversation_of("Hello", "0")
    assert "Be nice." in tokenizer.decode(chat.prompt_ids(asked))
    steered = tokenizer.decode(chat.prompt_ids(asked, "Be accurate."))
    assert "Be nice." not in steered
    assert "Be accurate." in steered


@pytest.mark.parametrize("template", [REFUSING, SILENT], ids=["refusing", "silent"])
def test_without_a_system_role_the_principle_stands_in_front_of_the_last_question(
    tokenizer: Any, template: str
) -> None:
    chat = ChatFormat(tokenizer, template=template)
    record = {"prompt": "And now?", "history": [["Hi.", "Hello!"]], "system": "Speak French."}
    text = tokenizer.decode(chat.prompt_ids(conversation_of(record, "0"), "Be kind."))
    places = [text.index(part) for part in ("Hi.", "Hello!", "Speak French.", "Be kind.", "And now?")]
    assert places == sorted(places)


def test_options_reach_the_template_and_count_in_its_digest(tokenizer: Any) -> None:
    template = CHATML + "{% if thinking %}<think>{% endif %}"
    found = {}
    for thinking in (True, False):
        chat = ChatFormat(tokenizer, {"thinking": thinking}, template)
        found[thinking] = tokenizer.decode(chat.prompt_ids(conversation_of("Hello", "0")))
        found[f"digest {thinking}"] = chat.digest
    assert found[True] == found[False] + "<think>"
    assert found["digest True"] != found["digest False"]


def test_the_end_of_a_turn_is_what_the_template_writes_or_the_end_of_the_sequence(tokenizer: Any) -> None:
    named = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert ChatFormat(tokenizer).end_of_turn == (named,)
    bare = "{% for m in messages %}{{ m.content }} {% endfor %}"
    assert ChatFormat(tokenizer, template=bare).end_of_turn == (tokenizer.eos_token_id,)


def test_a_tokenizer_without_template_says_what_to_do(tokenizer: Any) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(DataError, match=r"Bare has no chat template.*ChatFormat\(tokenizer, template=...\)"):
        ChatFormat(Bare())
    with pytest.raises(DataError, match="cannot write a conversation of one message: no"):
        ChatFormat(tokenizer, template="{{ raise_exception('no') }}")


def test_a_prompt_that_the_template_refuses_is_named(tokenizer: Any) -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}x"
    chat = ChatFormat(tokenizer, template=template)
    asked = conversation_of({"prompt": "c", "history": [["a", "b"]]}, "row 7")
    with pytest.raises(DataError, match="cannot write the prompt 'row 7': too many"):
        chat.prompt_ids(asked)


@pytest.mark.parametrize(
    ("record", "roles", "system"),
    [
        ("Hello", ["user"], None),
        ([{"role": "user", "content": "Hello"}], ["user"], None),
        ({"prompt": "Hello"}, ["user"], None),
        ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hello"}]}, ["user"], "S"),
        ({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "x"}]}, ["user"], None),
        ({"instruction": "Hello", "system": "S", "history": [["a", "b"]]}, ["user", "assistant", "user"], "S"),
        ({"question": "Hello", "id": 0}, ["user"], None),
        ({"instruction": "Hello", "input": "", "output": "x"}, ["user"], None),
        (
            [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}],
            ["user"],
            None,
        ),
    ],
)
def test_prompts_come_in_the_forms_that_people_have(record: Any, roles: list[str], system: str | None) -> None:
    found = conversation_of(record, "7")
    assert [message["role"] for message in found.messages] == roles
    assert found.messages[-1]["content"] == "Hello"
    assert found.system == system
    assert found.id == ("0" if isinstance(record, dict) and "id" in record else "7")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "Hello"}, "has the keys text; expected prompt, messages, instruction or question"),
        (3, "is 3; expected a text or messages"),
        ("  ", "asks nothing"),
        ([{"role": "assistant", "content": "x"}], "asks nothing"),
        ([{"role": "bot", "content": "x"}], "expected a role"),
        ([{"role": "user", "content": ["x"]}], "a content of text"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a content of text"),
        ({"instruction": "Sum up", "input": ["a"]}, "has input = .*; expected a text"),
        ({"prompt": "x", "history": ["ab"]}, "has the turn 'ab' in its history"),
        ({"prompt": "x", "history": [["q", None]]}, r"has the turn \['q', None\] in its history; .* as texts"),
        ({"prompt": "x", "history": [["q", 3]]}, r"has the turn \['q', 3\]"),
        ({"prompt": "x", "history": 5}, "has history = 5; expected a list"),
        ({"prompt": "x", "history": "ab"}, "has history = 'ab'; expected a list"),
        ({"messages": [{"role": "user", "content": "x"}], "history": [["q", "a"]]}, "has a history beside messages"),
        ({"prompt": [{"role": "user", "content": "x"}], "history": [["q", "a"]]}, "has a history beside messages"),
        ({"prompt": "x", "system": ["S"]}, r"has system = \['S'\]; expected a text"),
        ({"prompt": "x", "system": 3}, "has system = 3; expected a text"),
        ({"prompt": "x", "id": [1]}, r"has id = \[1\]; expected a text or a number"),
        ({"prompt": "x", "id": True}, "has id = True"),
        ({"prompt": float("nan")}, "has the keys prompt; expected prompt, .*, and something there"),
        ("half of one: \ud83d", "with half of a character; expected one that can be encoded"),
        ({"prompt": "x", "system": "\udc00"}, "with half of a character"),
        ({"prompt": "x", "history": [["q", "\udc00"]]}, "with half of a character"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a content of text"),
    ],
)
def test_what_is_no_prompt_is_named(record: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        conversation_of(record, "0", "prompts.jsonl line 3")


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float32("nan"), ""])
def test_what_is_missing_is_no_text(nothing: Any) -> None:
    record = {"prompt": "Hello", "messages": nothing, "id": nothing, "system": nothing, "history": nothing or []}
    assert conversation_of(record, "7") == conversation_of("Hello", "7")
    asked = {"instruction": "Hello", "input": nothing}
    assert conversation_of(asked, "7") == conversation_of("Hello", "7")


def test_names_of_control_tokens_in_an_answer_are_text(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    text = "<|eot_id|>Hello<|start_header_id|>"
    ids = chat.response_ids(text)
    assert tuple(ids[-len(chat.end_of_turn) :]) == chat.end_of_turn
    own = ids[: -len(chat.end_of_turn)]
    assert not set(own) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.decode(own) == text
    assert tokenizer.backend_tokenizer.encode_special_tokens is False  # left as it was
    assert chat.response_ids("Hello") == [*tokenizer("Hello", add_special_tokens=False)["input_ids"], *chat.end_of_turn]


def test_an_answer_that_a_tokenizer_cannot_write_as_text_is_refused(tokenizer: Any) -> None:
    chat = ChatFormat(Deaf(tokenizer))
    assert chat.spells("Hello")
    assert not chat.spells("Hello<|eot_id|>")
    with pytest.raises(DataError, match=r"makes control tokens of the text 'Hello<\|eot_id\|>'"):
        chat.response_ids("Hello<|eot_id|>")


def test_what_an_instruction_is_about_stands_below_it() -> None:
    found = conversation_of({"instruction": "Sum this up.", "input": "A long story."}, "0")
    assert found.messages[-1]["content"] == "Sum this up.\nA long story."
