"""Pairs of replies: reasons, shares, ids as they were sampled; and files that others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from paperhooks import DataError
from paperhooks.generation import Response
from paperhooks_sso.data import (
    FAULTS,
    ChatFormat,
    GuidedPrompt,
    PairCollator,
    PrincipleBank,
    answer_means,
    conversation_of,
    encoded_prompt,
    export_pairs,
    guided_prompt,
    make_pairs,
    read_lines,
    reference_rows,
    write_lines,
)
from sso_models import REFERENCE, Deaf, drawn_pairs, record_of, tiny
from transformers import AutoTokenizer

BANK = PrincipleBank.load()


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(REFERENCE / "tiny_llama"))


def prompt_of(chat: ChatFormat, key: str, record: Any = "Why is it so?") -> GuidedPrompt:
    found = guided_prompt(conversation_of(record, key), [BANK["Accuracy"]], chat, None)
    assert found is not None
    return found


def replies_of(key: str, **changed: Any) -> dict[str, Response]:
    """Three sound answers; ``good``, ``bad`` and ``plain`` replace them."""
    texts = {"y+": "A good answer.", "y-": "A bad one.", "yo": "Some answer."}
    found = {role: Response(text, 2, "eos", ids=(30, 31 + at), end=1) for at, (role, text) in enumerate(texts.items())}
    for name, role in (("good", "y+"), ("bad", "y-"), ("plain", "yo")):
        if name in changed:
            found[role] = changed[name]
    return {f"{key}/{role}": reply for role, reply in found.items() if reply is not None}


FAULTY: dict[str, dict[str, Any]] = {
    "missing": {"good": Response("", error="a server is down")},
    "empty": {"bad": Response("  ", 1, "eos", ids=(9,), end=1)},
    "cut": {"plain": Response("An answer that", 2, "length", ids=(30, 40))},
    "same": {"bad": Response("Some  answer.", 2, "eos", ids=(30, 44), end=1)},
    "leak": {"bad": Response("As an inaccurate assistant I say no.", 2, "eos", ids=(30, 45), end=1)},
}


def test_every_fault_is_counted_by_its_reason(chat: ChatFormat) -> None:
    prompts = [prompt_of(chat, "sound"), *(prompt_of(chat, fault) for fault in FAULTY)]
    replies = replies_of("sound")
    for fault, changed in FAULTY.items():
        replies |= replies_of(fault, **changed)
    records, report = make_pairs(prompts, replies, chat, total=8)
    assert [record["id"] for record in records] == ["sound"]
    assert report.dropped == {"too_long": 2, **dict.fromkeys(FAULTS, 1)}
    assert (report.prompts, report.kept, report.cut, report.same, report.leaking) == (8, 1, 1 / 6, 1 / 6, 1 / 6)
    assert report.lengths == {"chosen": 2.0, "rejected": (5 * 2 + 1) / 6, "ordinary": 2.0}
    kept, report = make_pairs(prompts, replies, chat, keep_cut=True, drop_leaks=False)
    assert [record["id"] for record in kept] == ["sound", "cut", "leak"]
    assert report.leaking == 1 / 6  # counted all the same


def test_nothing_at_all_gives_a_report_and_no_division(chat: ChatFormat) -> None:
    records, report = make_pairs([], {}, chat, total=3)
    assert records == []
    assert report.dropped["too_long"] == 3
    assert report.cut == report.same == report.leaking == 0
    assert report.lengths == {"chosen": 0.0, "rejected": 0.0, "ordinary": 0.0}
    unanswered = make_pairs([prompt_of(chat, "17")], {}, chat)
    assert unanswered[0] == []
    assert unanswered[1].dropped["missing"] == 1


def test_ids_are_those_that_were_sampled_with_the_end_of_the_turn(chat: ChatFormat) -> None:
    ends = {
        "good": Response("A good answer.", 2, "eos", ids=(30, 31), end=1),
        "bad": Response("A bad one", 2, "length", ids=(30, 32)),
        "plain": Response("Some answer.", 0, ""),  # a server that tells nothing
    }
    (record,), _ = make_pairs([prompt_of(chat, "17")], replies_of("17", **ends), chat, keep_cut=True)
    assert record["chosen_ids"] == [30, 31, 1]
    assert record["rejected_ids"] == [30, 32]  # nothing says that it ends here
    assert record["ordinary_ids"] == chat.response_ids("Some answer.")
    assert record["harmful"] is True
    assert record["features"] == ["Accuracy"]
    assert record["finish"]["rejected"] == "length"
    assert encoded_prompt(record).prompts["plain"] == tuple(chat.prompt_ids(conversation_of("Why is it so?", "17")))
    assert PairCollator()([record])["ids"] == ["17"]


def test_files_say_what_they_hold_and_others_read_them(chat: ChatFormat, tmp_path: Path) -> None:
    asked = {"prompt": "And now?", "history": [["Why?", "Because."]], "system": "Be kind."}
    prompts = [prompt_of(chat, "17", asked), prompt_of(chat, "18", "Why?")]
    records, _ = make_pairs(prompts, replies_of("17") | replies_of("18"), chat)
    digest = write_lines(tmp_path / "pairs.jsonl", records)
    assert write_lines(tmp_path / "again.jsonl", records) == digest
    assert read_lines(tmp_path / "pairs.jsonl") == records
    out = export_pairs(tmp_path / "pairs.jsonl", tmp_path / "export")
    conversational, single = read_lines(out / "preferences.jsonl")
    assert single["prompt"] == [{"role": "user", "content": "Why?"}]
    assert conversational["prompt"] == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."}, {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    assert conversational["chosen"] == [{"role": "assistant", "content": "A good answer."}]
    texts, single = read_lines(out / "llama_factory.jsonl")
    assert (single["prompt"], single["system"], single["history"]) == ("Why?", "", [])
    assert texts == {
        "id": "17", "prompt": "And now?", "chosen": "A good answer.", "rejected": "A bad one.", "system": "Be kind.",
        "history": [["Why?", "Because."]], "harmful": True,
    }  # fmt: skip
    described = json.loads((out / "dataset_info.json").read_text())["sso_pairs"]
    assert described["ranking"] is True
    assert all(column in texts for column in described["columns"].values())
    assert "bad on purpose" in (out / "HARMFUL.txt").read_text()
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    whole = datasets.load_dataset("json", data_files=str(out / "preferences.jsonl"), split="train", cache_dir=tmp_path)
    assert trl.is_conversational(whole[0])


def test_files_that_are_none_of_ours_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs.jsonl is not there; expected pairs"):
        read_lines(tmp_path / "pairs.jsonl")
    write_lines(tmp_path / "pairs.jsonl", [{"id": "1", "prompt": [{"role": "user", "content": "a"}]}])
    with pytest.raises(DataError, match=r"pairs.jsonl:1 has no 'chosen'"):
        export_pairs(tmp_path / "pairs.jsonl", tmp_path / "export")
    write_lines(tmp_path / "pairs.jsonl", [])
    assert read_lines(tmp_path / "pairs.jsonl") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", r"pairs.jsonl:2 is \[1\]; expected an object"),
        ("null", "pairs.jsonl:2 is None"),
        ('{"id": null}', "pairs.jsonl:2 has no id"),
        ('{"id": NaN}', "pairs.jsonl:2 has no id"),
        ('{"id": ""}', "pairs.jsonl:2 has no id"),
        ('{"id": "4", "reference": [NaN]}', r"pairs.jsonl:2 has reference = \[nan\]; expected finite numbers"),
        ('{"id": "4", "more": {"a": -Infinity}}', "pairs.jsonl:2 has more = {'a': -inf}; expected finite numbers"),
        ('{"id": [1]}', r"pairs.jsonl:2 has id = \[1\]; expected a text or a number"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(f'{{"id": 3}}\n{line}\n')
    with pytest.raises(DataError, match=words):
        read_lines(file)


def test_an_id_that_is_a_number_is_read_as_text_and_steps_need_none(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", [{"id": 3}, {"id": "4"}])
    assert [record["id"] for record in read_lines(tmp_path / "pairs.jsonl")] == ["3", "4"]
    write_lines(tmp_path / "steps.jsonl", [{"loss": 3}])
    assert read_lines(tmp_path / "steps.jsonl") == [{"loss": 3}]


def test_a_pair_without_an_id_is_named(tmp_path: Path) -> None:
    record = record_of(drawn_pairs(1)[0])
    del record["id"]
    write_lines(tmp_path / "pairs.jsonl", [record])
    with pytest.raises(DataError, match=r"pairs.jsonl:1 has no id; give each record its own"):
        answer_means(tiny(), read_lines(tmp_path / "pairs.jsonl"))


def test_a_record_that_cannot_be_scored_is_named_by_its_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", [{**record_of(drawn_pairs(1)[0]), "chosen_ids": "12"}])
    with pytest.raises(DataError, match=r"pairs.jsonl:1 has chosen_ids = '12'"):
        answer_means(tiny(), read_lines(tmp_path / "pairs.jsonl"))


SOUND = {"id": "1", "prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"id": None}, "has no id"),
        ({"prompt": "a"}, "has prompt = 'a'; expected messages"),
        ({"prompt": [{"content": "a"}]}, "has the message .*; expected a role"),
        ({"prompt": ["a"]}, "has the message 'a'; expected a role"),
        ({"prompt": [{"role": "system", "content": "a"}]}, "asks nothing"),
        (
            {"prompt": [*SOUND["prompt"], {"role": "assistant", "content": "x"}]},
            "has a prompt that ends with another message",
        ),
        ({"chosen": ["x"]}, r"has chosen = \['x'\]; expected a text"),
        ({"rejected": 3}, "has rejected = 3; expected a text"),
        ({"chosen": "\ud83d"}, "has chosen = .*; expected a text"),
        ({"rejected": ""}, "has no 'rejected'; expected a text"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    write_lines(tmp_path / "pairs.jsonl", [SOUND, {**SOUND, **changed}])
    with pytest.raises(DataError, match=f"pairs.jsonl:2 {words}"):
        export_pairs(tmp_path / "pairs.jsonl", tmp_path / "export")
    write_lines(tmp_path / "pairs.jsonl", [{name: value for name, value in SOUND.items() if name != "id"}])
    with pytest.raises(DataError, match=r"pairs.jsonl:1 has no id"):
        export_pairs(tmp_path / "pairs.jsonl", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_texts_without_ids_that_no_tokenizer_writes_are_counted(chat: ChatFormat) -> None:
    half = {"plain": Response("half of one: \ud83d", 0, "eos")}
    records, report = make_pairs([prompt_of(chat, "17")], replies_of("17", **half), chat)
    assert (records, report.dropped["missing"]) == ([], 1)
    told = replies_of("17", plain=Response("<|eot_id|> x", 0, "eos"))
    (record,), _ = make_pairs([prompt_of(chat, "17")], told, chat)
    assert chat.tokenizer.decode(record["ordinary_ids"][:-1]) == "<|eot_id|> x"
    assert record["ordinary_ids"].count(chat.end_of_turn[0]) == 1
    deaf = ChatFormat(Deaf(chat.tokenizer))
    records, report = make_pairs([prompt_of(chat, "17")], told, deaf)
    assert (records, report.dropped["missing"]) == ([], 1)


@pytest.mark.parametrize("end", [True, False])
def test_means_are_those_of_the_models_own_logits(end: bool) -> None:
    model, pairs = tiny(), drawn_pairs(3)
    found = answer_means(model, pairs, end=end)
    for pair, means in zip(pairs, found, strict=True):
        assert set(means) == {
            "chosen_plain", "chosen_good", "chosen_bad", "rejected_plain", "rejected_good", "rejected_bad",
            "ordinary_plain", "ordinary_bad",
        }  # fmt: skip
        for name, value in means.items():
            answer, group = name.split("_")
            prompt, ids = pair.prompts[group], pair.answers[answer]
            ids = ids if end else ids[:-1]
            row = torch.tensor([[*prompt, *ids]])
            with torch.no_grad():
                logs = model(row).logits.double().log_softmax(-1)[0, len(prompt) - 1 : -1]
            wanted = float(logs.gather(1, torch.tensor(ids)[:, None]).mean())
            assert value == pytest.approx(wanted, rel=1e-5), name
    assert answer_means(model, []) == []


def test_rows_of_a_reference_are_in_the_order_of_the_loss() -> None:
    pair = drawn_pairs(1)[0]
    rows = reference_rows(pair)
    wanted = [(g, a) for g in ("plain", "good", "bad") for a in pair.rows(g)[1:]]
    for (ids, labels), (group, answer) in zip(rows, wanted, strict=True):
        assert ids == [*pair.prompts[group], *answer]
        assert labels == [*[-100] * len(pair.prompts[group]), *answer]
    assert reference_rows(pair, ("good",)) == rows[2:4]
